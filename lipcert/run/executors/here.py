"""Batches certified by this process, one after the other."""

from __future__ import annotations

from concurrent.futures import Future

from lipcert.errors import LipcertError
from lipcert.run.executors.face import Answer, Certifying, Executor, Load, answer, settle
from lipcert.run.executors.outcome import Failure


class Here(Executor):
    """``submit`` returns when the batch is done; interrupts come through it."""

    def __init__(self, certifier: Certifying, load: Load) -> None:
        self._certifier, self._load = certifier, load

    @property
    def places(self) -> int:
        return 1

    def submit(self, batch: list[int]) -> Future[Answer]:
        future: Future[Answer] = Future()
        try:
            images = self._load(batch)
        except LipcertError as error:
            future.set_exception(error)
        except Exception as error:  # told with the sample it belongs to
            future.set_result(Answer(Failure.of(error), 0.0))
        else:
            found = answer(self._certifier, images, batch)
            settle(future, found, self._certifier.counterexamples)
        return future

    def __exit__(self, *exception: object) -> None:
        """Nothing is left of it."""
