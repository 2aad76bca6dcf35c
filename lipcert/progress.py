"""The line of progress of every command: on a terminal while it lasts, elsewhere nothing."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


class Silent:
    """A watch that shows nothing; a context, at whose end a line of progress goes."""

    def stop(self) -> None:
        """Nothing more will come."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class ProgressLine:
    """What is counted, done of total, time left, and figures of the caller's."""

    def __init__(self, console: Console, counted: str, *, shown: bool = True) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=Column(min_width=9)),
            TimeRemainingColumn(table_column=Column(min_width=7)),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task(counted, start=False, total=None, figures="")

    def start(self, total: int, done: int = 0, figures: str = "") -> None:
        self._progress.update(self._task, total=total, completed=done, figures=figures)
        self._progress.start_task(self._task)
        self._progress.start()

    def advance(self, count: int, figures: str) -> None:
        self._progress.update(self._task, advance=count, figures=figures)

    @property
    def speed(self) -> float | None:
        """A second; None while nothing is known."""
        return self._progress.tasks[0].speed

    def stop(self) -> None:
        self._progress.stop()
