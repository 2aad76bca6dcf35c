"""The progress of a run whose stations go to the log."""

from __future__ import annotations

import logging

from lipcert.run.progress import ConsoleWatch
from lipcert.train.watch import ConsoleTrainingWatch


class LoggingWatch(ConsoleWatch):
    """A progress bar; what it is told is a log message, which ``start_log`` sends on."""

    def stage(self, text: str) -> None:
        super().stage(text)
        logging.getLogger("lipcert").debug(text)

    def say(self, text: str) -> None:
        logging.getLogger("lipcert").info(text)


class LoggingTrainingWatch(ConsoleTrainingWatch):
    """The line of each epoch goes to the console, and with all else to the log file."""

    def say(self, text: str) -> None:
        super().say(text)
        logging.getLogger("lipcert").debug(text)
