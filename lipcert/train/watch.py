"""How a training is watched: one line of progress on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from lipcert.progress import ProgressLine, Silent

Record = dict[str, Any]


class TrainingWatch(Silent):
    """The silent one: every method may be called and does nothing."""

    def say(self, text: str) -> None:
        """A station that the run has passed."""

    def start(self, steps: int, done: int) -> None:
        """``steps`` batches are to be done, ``done`` of them were done before."""

    def step(self, figures: Record) -> None:
        """One batch is done: loss, clean, certified_estimate, eps, images_per_second so far."""

    def epoch(self, record: Record) -> None:
        """One epoch is done."""


class ConsoleTrainingWatch(TrainingWatch):
    """Loss, clean and certified accuracy (an estimate while training), eps, images/s, time left."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._line = ProgressLine(console, "steps", shown=not quiet)

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        self._line.stage(text)

    def start(self, steps: int, done: int) -> None:
        self._line.start(steps, done)

    def step(self, figures: Record) -> None:
        self._line.advance(1, _short(figures))

    def epoch(self, record: Record) -> None:
        validation = f"validation clean {record['validation_clean']:.2%}, certified (estimate) "
        self.say(
            f"epoch {record['epoch']}: {_line(record)} · {validation}"
            f"{record['validation_certified_estimate']:.2%}{_checked(record)}"
        )

    def stop(self) -> None:
        self._line.stop()


def _checked(record: Record) -> str:
    """What was certified of some of them; nothing where none was."""
    if "checked_certified" not in record:
        return ""
    return (
        f" · auto certifies {record['checked_certified']:.2%} of {record['checked_images']} of "
        f"them, {record['checked_difference']:+.2%} from their estimate"
    )


def _line(figures: Record) -> str:
    if figures["loss"] is None:
        return "as loaded"
    return (
        f"loss {figures['loss']:.4f} · clean {figures['clean']:.2%} · certified (estimate) "
        f"{figures['certified_estimate']:.2%} · eps {figures['eps']:.4g} · "
        f"{figures['images_per_second']:.0f} images/s"
    )


def _short(figures: Record) -> str:
    """The same for a narrow terminal."""
    return (
        f"loss {figures['loss']:.3g} clean {figures['clean']:.1%} estimate "
        f"{figures['certified_estimate']:.1%} eps {figures['eps']:.3g} "
        f"{figures['images_per_second']:.0f} images/s"
    )
