"""How a run is watched: a line of progress on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lipcert.certificate import Sample
from lipcert.progress import ProgressLine, Silent


class Watch(Silent):
    """The silent one: every method may be called and does nothing."""

    def say(self, text: str) -> None:
        """A station that the run has passed, for ``--verbose``."""

    def tell(self, text: str) -> None:
        """What became of something that was asked for, unless ``--quiet``."""

    def start(self, total: int, finished: Sequence[Sample], *, estimate: bool) -> None:
        """``total`` samples are to be done, of which ``finished`` were taken from a journal."""

    def advance(self, samples: Sequence[Sample]) -> None:
        """These samples are done."""


class ConsoleWatch(Watch):
    """Progress on a console: what is done now, then done of total, rate, time left, and how many
    are certified so far; see ``ProgressLine``. ``verbose`` prints the stations as well.
    """

    def __init__(self, console: Console, *, verbose: bool = False, bar: bool = True) -> None:
        self._console, self._verbose, self._told = console, verbose, bar
        self._line = ProgressLine(console, "samples", shown=bar)

    def say(self, text: str) -> None:
        if self._verbose:
            self._print(text)

    def tell(self, text: str) -> None:
        if self._told or self._verbose:
            self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        self._line.stage(text)

    def start(self, total: int, finished: Sequence[Sample], *, estimate: bool) -> None:
        self._count = _positive(finished)
        self._word = "ESTIMATED (bounds nothing)" if estimate else "certified"
        self._line.start(total, len(finished), self._figures())

    def advance(self, samples: Sequence[Sample]) -> None:
        self._count += _positive(samples)
        self._line.advance(len(samples), self._figures())

    def stop(self) -> None:
        self._line.stop()

    def _figures(self) -> str:
        speed = self._line.speed
        rate = f"{speed:.3g}/s · " if speed else ""
        return f"{rate}{self._count} {self._word}"


def _positive(samples: Sequence[Sample]) -> int:
    return sum(sample.verdict in ("certified", "estimated") for sample in samples)
