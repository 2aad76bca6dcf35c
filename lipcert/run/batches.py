"""Samples in batches that fit the memory, each failure kept to the sample that caused it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lipcert.certificate import Sample
from lipcert.errors import InternalError, LipcertError

# Twice as many take as long a sample. The size must depend on no machine: sums in another order end
# in other digits.
START = 20

Certify = Callable[[list[int]], list[Sample]]
Failed = Callable[[int, str], Sample]


@dataclass(frozen=True)
class Failure:
    """Why a batch has no samples, without the frames of the exception, which hold its tensors;
    ``memory``: there was too little of it."""

    message: str
    memory: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        first = (str(error).splitlines() or [""])[0][:200]
        kind = type(error).__name__
        return cls(f"{kind}: {first}" if first else kind, is_out_of_memory(error))


Outcome = list[Sample] | Failure


@dataclass(frozen=True)
class Done:
    """A batch that came back, with its samples in its order or why there are none.

    ``crowded``: others were at work beside it, in the same memory.
    """

    batch: list[int]
    outcome: Outcome
    seconds: float
    crowded: bool = False


class Crew(Protocol):
    """Who certifies batches: this process (``Alone``) or several (``Workers``)."""

    @property
    def free(self) -> bool:
        """Whether another batch may be given."""

    @property
    def busy(self) -> bool:
        """Whether a batch was given and has not come back."""

    def give(self, batch: list[int]) -> None: ...

    def take(self) -> Done:
        """The next batch that comes back; waits for it. Raises a ``LipcertError`` it ended with."""


class Alone:
    """This process, one batch after the other."""

    def __init__(self, certify: Certify) -> None:
        self._certify = certify
        self._batch: list[int] | None = None

    @property
    def free(self) -> bool:
        return self._batch is None

    @property
    def busy(self) -> bool:
        return self._batch is not None

    def give(self, batch: list[int]) -> None:
        self._batch = batch

    def take(self) -> Done:
        assert self._batch is not None
        batch, self._batch = self._batch, None
        began = time.perf_counter()
        return Done(batch, attempt(self._certify, batch), time.perf_counter() - began)


def attempt(certify: Certify, batch: list[int]) -> Outcome:
    """One batch, here and now. A ``LipcertError`` concerns the whole run and is passed on."""
    try:
        return certify(batch)
    except LipcertError:
        raise
    except Exception as error:
        failure = Failure.of(error)
    release_memory()
    return failure


def in_batches(
    crew: Crew, indices: Sequence[int], failed: Failed, *, size: int | None = None
) -> Iterator[list[Sample]]:
    """Have ``indices`` certified; batches are yielded as they come in, every index exactly once.

    They are cut in order, ``size`` at once, 20 where it is None. Where memory runs out the size
    halves, for good; one sample for which it was too little beside others is tried again, alone, at
    the end. Any other failure of a batch is traced to its samples, one at a time; a sample that
    fails alone becomes ``failed(index, message)``. A ``LipcertError`` concerns the whole run and is
    passed on, as are interrupts.
    """
    most = size or START
    rest, single, last = deque(indices), deque[int](), deque[int]()

    def cut() -> list[int]:
        if single:
            return [single.popleft()]
        if rest:
            return [rest.popleft() for _ in range(min(most, len(rest)))]
        return [last.popleft()] if last and not crew.busy else []

    while rest or single or last or crew.busy:
        while crew.free and (batch := cut()):
            crew.give(batch)
        done = crew.take()
        batch, outcome = done.batch, done.outcome
        if not isinstance(outcome, Failure):
            yield _checked(outcome, batch)
        elif len(batch) > 1 and outcome.memory:
            most = min(most, len(batch) // 2)
            rest.extendleft(reversed(batch))
        elif len(batch) > 1:
            # Alone, each of them either succeeds or carries its own message.
            single.extend(batch)
        elif outcome.memory and done.crowded:
            last.extend(batch)
        else:
            yield [failed(batch[0], f"{outcome.message} (after {done.seconds:.1f} s)")]


def number(samples: int, size: int | None) -> int:
    """How many batches so many samples make."""
    return math.ceil(samples / (size or START))


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's own error, torch's for a GPU, or its CPU allocator's."""
    text = str(error).lower()
    signs = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "cannot allocate memory",
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )


def release_memory() -> None:
    """Give a GPU's cached blocks back, so that a smaller batch does not find them fragmented."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _checked(samples: list[Sample], batch: Sequence[int]) -> list[Sample]:
    if [sample.index for sample in samples] != list(batch):
        raise InternalError(
            f"a batch of samples {list(batch)[:3]}… came back as "
            f"{[sample.index for sample in samples][:3]}…; please report this"
        )
    return samples
