"""The progress of every command: one line on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

# Seconds without a line after which a log that nobody sees grow looks like one that has stopped.
EVERY = 30.0


class Silent:
    """A watch that shows nothing; a context, at whose end a line of progress goes."""

    def stage(self, text: str) -> None:
        """What is done now, and may take seconds."""

    def stop(self) -> None:
        """Nothing more will come."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class ProgressLine:
    """What is being done; then what is counted, done of total, time left, and the caller's figures.

    On a terminal it is one line that goes in the end. Elsewhere every stage is a line of its own,
    and after each ``every`` seconds without one another line says how far the stage has come.
    """

    def __init__(
        self, console: Console, counted: str, *, shown: bool = True, every: float = EVERY
    ) -> None:
        self._console, self._counted = console, counted
        self._bar = _bar(console, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task(counted, start=False, total=None, figures="")
        self._lines = shown and not console.is_terminal
        self._every, self._beat = every, _Beat()
        self._stage, self._since = "", time.monotonic()

    def stage(self, text: str) -> None:
        """Say what begins now."""
        self._stage, self._since = text, time.monotonic()
        self._bar.update(self._task, description=text, total=None, completed=0, figures="")
        self._begin()

    def start(self, total: int, done: int = 0, figures: str = "") -> None:
        self._stage, self._since = "", time.monotonic()
        self._bar.update(
            self._task, description=self._counted, total=total, completed=done, figures=figures
        )
        self._bar.start_task(self._task)
        self._begin()

    def advance(self, count: int, figures: str) -> None:
        self._bar.update(self._task, advance=count, figures=figures)

    @property
    def speed(self) -> float | None:
        """A second; None while nothing is known."""
        return self._bar.tasks[0].speed

    def stop(self) -> None:
        self._beat.stop()
        self._bar.stop()

    def _begin(self) -> None:
        if not self._lines:
            self._bar.start()
            return
        if self._stage:
            self._print(self._stage)
        self._beat.start(self._every, lambda: self._print(self._so_far()))

    def _so_far(self) -> str:
        task, spent = self._bar.tasks[0], f"{time.monotonic() - self._since:.0f} s"
        if self._stage:
            return f"{self._stage}: {spent} so far"
        figures = f", {task.fields['figures']}" if task.fields["figures"] else ""
        return f"{task.completed:.0f} of {task.total} {self._counted} after {spent}{figures}"

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Stages(Silent):
    """What is being done, and nothing that is counted."""

    def __init__(self, console: Console, *, shown: bool = True) -> None:
        self._line = ProgressLine(console, "", shown=shown)

    def stage(self, text: str) -> None:
        self._line.stage(text)

    def stop(self) -> None:
        self._line.stop()


class _Beat:
    """Does something every so many seconds, on a thread of its own."""

    def __init__(self) -> None:
        self._ended: Event | None = None

    def start(self, every: float, act: Callable[[], None]) -> None:
        self.stop()
        ended = self._ended = Event()

        def go() -> None:
            while not ended.wait(every):
                act()

        Thread(target=go, daemon=True).start()

    def stop(self) -> None:
        if self._ended is not None:
            self._ended.set()


def _bar(console: Console, *, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(table_column=Column(min_width=9)),
        TimeRemainingColumn(table_column=Column(min_width=7)),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True), markup=False),
        console=console,
        transient=True,
        expand=True,
        disable=disable,
    )
