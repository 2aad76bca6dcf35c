"""How a run is watched: a line of progress on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lipcert.certificate import Sample


class Watch:
    """The silent one: every method may be called and does nothing."""

    def say(self, text: str) -> None:
        """A station that the run has passed, for ``--verbose``."""

    def start(self, total: int, finished: Sequence[Sample], *, estimate: bool) -> None:
        """``total`` samples are to be done, of which ``finished`` were taken from a journal."""

    def advance(self, samples: Sequence[Sample]) -> None:
        """These samples are done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class ConsoleWatch(Watch):
    """Progress on a console: done of total, rate, time left, and how many are certified so far.

    The bar appears only where the console is a terminal; ``verbose`` prints the stations.
    """

    def __init__(self, console: Console, *, verbose: bool = False, bar: bool = True) -> None:
        self._console, self._verbose = console, verbose
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[count]} {task.fields[word]}"),
            console=console,
            transient=True,
            disable=not (bar and console.is_terminal),
        )
        self._count = 0

    def say(self, text: str) -> None:
        if self._verbose:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, total: int, finished: Sequence[Sample], *, estimate: bool) -> None:
        self._count = _positive(finished)
        word = "ESTIMATED (bounds nothing)" if estimate else "certified"
        self._task = self._progress.add_task(
            "samples", total=total, completed=len(finished), rate="", count=self._count, word=word
        )
        self._progress.start()

    def advance(self, samples: Sequence[Sample]) -> None:
        self._count += _positive(samples)
        self._progress.update(self._task, advance=len(samples), count=self._count)
        speed = self._progress.tasks[0].speed
        self._progress.update(self._task, rate=f"{speed:.3g}/s" if speed else "")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


def _positive(samples: Sequence[Sample]) -> int:
    return sum(sample.verdict in ("certified", "estimated") for sample in samples)
