"""How an audit is watched: a line of progress on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from rich.console import Console

from lipcert.audit.report import Audited, Outcome
from lipcert.progress import ProgressLine, Silent


class AuditWatch(Silent):
    """The silent one: every method may be called and does nothing."""

    def start(self, total: int) -> None:
        """So many samples are to be audited."""

    def advance(self, audited: Audited) -> None:
        """This one is done."""


class ConsoleAuditWatch(AuditWatch):
    """Done of total, time left, and how many were confirmed and contradicted so far."""

    def __init__(self, console: Console, *, bar: bool = True) -> None:
        self._line = ProgressLine(console, "samples", shown=bar)
        self._outcomes: list[Outcome] = []

    def stage(self, text: str) -> None:
        self._line.stage(text)

    def start(self, total: int) -> None:
        self._line.start(total)

    def advance(self, audited: Audited) -> None:
        self._outcomes.append(audited.outcome)
        confirmed = self._outcomes.count("confirmed")
        contradicted = self._outcomes.count("contradicted")
        self._line.advance(1, f"{confirmed} confirmed, {contradicted} contradicted")

    def stop(self) -> None:
        self._line.stop()
