"""How an audit is watched: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lipcert.audit.report import Audited, Outcome


class Watch:
    """The silent one: every method may be called and does nothing."""

    def start(self, total: int) -> None:
        """So many samples are to be audited."""

    def advance(self, audited: Audited) -> None:
        """This one is done."""


class ConsoleWatch(Watch):
    """Done of total, time left, and how many were confirmed and contradicted so far."""

    def __init__(self, console: Console, *, bar: bool = True) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[confirmed]} confirmed, {task.fields[contradicted]} not so"),
            console=console,
            transient=True,
            disable=not (bar and console.is_terminal),
        )
        self._outcomes: list[Outcome] = []

    def start(self, total: int) -> None:
        self._task = self._progress.add_task("samples", total=total, confirmed=0, contradicted=0)
        self._progress.start()

    def advance(self, audited: Audited) -> None:
        self._outcomes.append(audited.outcome)
        self._progress.update(
            self._task,
            advance=1,
            confirmed=self._outcomes.count("confirmed"),
            contradicted=self._outcomes.count("contradicted"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
