"""What every executor is, and what a batch comes back with."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.certificate import Sample
from lipcert.errors import LipcertError
from lipcert.run.executors.outcome import Outcome, attempt

Images = tuple[NDArray[Any], NDArray[Any]]
Load = Callable[[list[int]], Images]
Points = dict[int, NDArray[Any]]


class Certifying(Protocol):
    """What is asked of a certifier here; it can be pickled."""

    counterexamples: Points | None

    def __call__(self, pixels: Tensor, labels: Tensor, indices: Sequence[int]) -> list[Sample]: ...


@dataclass(frozen=True)
class Answer:
    """The outcome of a batch and its seconds; ``points``: the counterexamples that were found;
    ``share``: of a GPU's memory, what the batch had at its peak, the network included."""

    outcome: Outcome
    seconds: float
    points: Points = field(default_factory=dict)
    share: float | None = None


class Ended(Exception):
    """The event that the worker of a batch has ended, and the batch with it.

    ``killed``: from without, as systems do that run out of memory. ``begun``: it had the certifier;
    else the batch was not even looked at, and is to be given again.
    """

    def __init__(self, how: str, *, killed: bool = False, begun: bool = True) -> None:
        super().__init__(how)
        self.how, self.killed, self.begun = how, killed, begun


class Executor(AbstractContextManager["Executor"], Protocol):
    """Who certifies batches. As a context; at its end nothing of it is left, whatever it does."""

    @property
    def places(self) -> int:
        """How many batches it takes at once; at least one. It may change as workers come and go."""

    def submit(self, batch: list[int]) -> Future[Answer]:
        """Have a batch certified.

        The future raises a ``LipcertError``, which ends the run, or ``Ended``, after which the
        executor goes on: with another worker, with those that are left, or in this process.
        """


def answer(certifier: Certifying, images: Images, batch: list[int]) -> Answer | LipcertError:
    """A batch certified here, with no word of other batches; an error of the whole run is returned,
    with its traceback as a note, so that it can go to another process."""
    kept, certifier.counterexamples = (
        certifier.counterexamples,
        None if certifier.counterexamples is None else {},
    )
    pixels, labels = images
    gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        outcome = attempt(
            lambda some: certifier(torch.from_numpy(pixels), torch.from_numpy(labels), some), batch
        )
    except LipcertError as error:
        error.add_note(traceback.format_exc())
        return error
    finally:
        found, certifier.counterexamples = certifier.counterexamples or {}, kept
    return Answer(outcome, time.perf_counter() - began, found, _peak() if gpu else None)


def _peak() -> float | None:
    """The share of the GPU's memory that was taken at the peak; None where nothing was."""
    _, whole = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_allocated() / whole or None


def settle(future: Future[Answer], found: Answer | LipcertError, points: Points | None) -> None:
    """Let ``future`` have an answer; the counterexamples go where they are kept."""
    if isinstance(found, LipcertError):
        future.set_exception(found)
        return
    if points is not None:
        points.update(found.points)
    future.set_result(found)
