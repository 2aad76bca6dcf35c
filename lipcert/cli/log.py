"""What a run says while it runs: to the terminal as asked, and to a file with times."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lipcert.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

_LOG = logging.getLogger("lipcert")


class _OnConsole(logging.Handler):
    """Lines above the progress bar, which a plain stream would tear."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def start_log(console: Console, *, quiet: bool, verbose: bool, file: Path | None) -> None:
    """Send messages to the console, from warnings on, from notes on if ``verbose``, none if
    ``quiet``; and all of them to ``file``. Raises ``UsageError`` where it cannot be written.
    """
    stop_log()
    _LOG.setLevel(logging.DEBUG)
    _LOG.propagate = False
    level = logging.INFO if verbose else logging.WARNING
    _LOG.addHandler(_OnConsole(console, logging.CRITICAL if quiet else level))
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--log-file {file}: cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _LOG.addHandler(handler)


def stop_log() -> None:
    """Close what ``start_log`` opened."""
    _LOG.propagate = True
    for handler in list(_LOG.handlers):
        _LOG.removeHandler(handler)
        handler.close()


def log_failure(text: str) -> None:
    """Put the line that a command ends with into the log file as well, where there is one."""
    record = _LOG.makeRecord(_LOG.name, logging.ERROR, "", 0, text, (), None)
    for handler in _LOG.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
