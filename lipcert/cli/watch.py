"""The progress of a run whose stations go to the log."""

from __future__ import annotations

import logging

from lipcert.run.progress import ConsoleWatch


class LoggingWatch(ConsoleWatch):
    """A progress bar; what it is told is a log message, which ``start_log`` sends on."""

    def say(self, text: str) -> None:
        logging.getLogger("lipcert").info(text)
