"""How a training is watched: one line of progress on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Record = dict[str, Any]


class TrainingWatch:
    """The silent one: every method may be called and does nothing."""

    def say(self, text: str) -> None:
        """A station that the run has passed."""

    def start(self, steps: int, done: int) -> None:
        """``steps`` batches are to be done, ``done`` of them were done before."""

    def step(self, figures: Record) -> None:
        """One batch is done: loss, clean, certified_estimate, eps, images_per_second so far."""

    def epoch(self, record: Record) -> None:
        """One epoch is done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class ConsoleTrainingWatch(TrainingWatch):
    """Loss, clean and certified accuracy (an estimate while training), eps, images/s, time left."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._progress = Progress(
            TextColumn("step"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, steps: int, done: int) -> None:
        self._task = self._progress.add_task("step", total=steps, completed=done, figures="")
        self._progress.start()

    def step(self, figures: Record) -> None:
        self._progress.update(self._task, advance=1, figures=_line(figures))

    def epoch(self, record: Record) -> None:
        validation = f"validation clean {record['validation_clean']:.2%}, certified (estimate) "
        self.say(
            f"epoch {record['epoch']}: {_line(record)} · {validation}"
            f"{record['validation_certified_estimate']:.2%}"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


def _line(figures: Record) -> str:
    if figures["loss"] is None:
        return "as loaded"
    return (
        f"loss {figures['loss']:.4f} · clean {figures['clean']:.2%} · certified (estimate) "
        f"{figures['certified_estimate']:.2%} · eps {figures['eps']:.4g} · "
        f"{figures['images_per_second']:.0f} images/s"
    )
