"""Samples in batches that fit the memory, each failure kept to the sample that caused it."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from lipcert.certificate import Sample
from lipcert.errors import InternalError
from lipcert.network import Network
from lipcert.options import Options
from lipcert.run.executors import Answer, Ended, Executor, Failure

# Twice as many take as long a sample. The size must depend on no machine: sums in another order end
# in other digits.
START = 20
# For verdicts alone, which take so few operations that starting them is most of the time: of small
# networks more at once, so many numbers of all their nodes together.
_VERDICTS, _NUMBERS = 100, 2**22
# On a GPU, where more samples at once take hardly longer: no more than so many, at most so many
# times the last ones, and so much of the memory, for what a rung takes differs between samples.
_MOST, _GROWTH, _FILLED = 512, 4, 0.6

# So often one sample's process is killed before it counts as the sample's own doing. Where people
# or schedulers kill at random, one sample may be hit several times: each more costs a start.
_KILLS = 8

Failed = Callable[[int, str], Sample]


def usual(options: Options, network: Network) -> int:
    """How many samples a batch begins with where nobody says it."""
    if options.radii:
        return START
    each = sum(math.prod(node.shape) for node in network.nodes)
    return min(_VERDICTS, max(START, _NUMBERS // each))


def in_batches(
    executor: Executor, indices: Sequence[int], failed: Failed, *, size: int | None = None,
    start: int = START,
) -> Iterator[list[Sample]]:  # fmt: skip
    """Have ``indices`` certified; batches are yielded as they come in, every index exactly once.

    They are cut in order, ``size`` at once, ``start`` where it is None; on a GPU then as many as
    its memory holds, by what the batches before took at their peak. Where memory runs out the size
    halves, for good; one sample for which it was too little beside others is tried again, alone, at
    the end. Any other failure of a batch is traced to its samples, one at a time; a sample that
    fails alone becomes ``failed(index, message)``. A batch whose worker ended is lost, and no other
    one: a worker that was killed counts as out of memory; a sample is tried eight times before it
    fails by that. A ``LipcertError`` concerns the whole run
    and is passed on, as are interrupts.
    """
    queue = _Queue(indices, size, start)
    while queue.left:
        while len(queue.flying) < executor.places and (batch := queue.cut()):
            queue.flying[executor.submit(batch)] = batch
        future, batch, alone = queue.landed()
        try:
            answer = future.result()
        except Ended as ended:
            if queue.tries_again(batch, ended):
                continue
            answer = Answer(Failure(f"its process {ended.how}", ended.killed), 0.0)
        outcome = answer.outcome
        if not isinstance(outcome, Failure):
            queue.took(batch, answer.share)
            yield _checked(outcome, batch)
        elif not queue.takes_back(batch, memory=outcome.memory, alone=alone):
            yield [failed(batch[0], f"{outcome.message} (after {answer.seconds:.1f} s)")]


class _Queue:
    """Samples that are not certified yet.

    ``rest``: those that are cut into batches; ``single``: those of batches that failed, tried one
    at a time; ``last``: those that may have failed for want of memory beside others, tried when
    nothing else runs; ``flying``: the batches that are being certified.
    """

    def __init__(self, indices: Sequence[int], size: int | None, start: int) -> None:
        self._most, self._grows = size or start, size is None
        self._rest, self._single, self._last = deque(indices), deque[int](), deque[int]()
        self.flying: dict[Future[Answer], list[int]] = {}
        # Those that were not alone in the memory all the time.
        self._crowded: set[Future[Answer]] = set()
        self._kills = Counter[int]()

    @property
    def left(self) -> bool:
        return bool(self._rest or self._single or self._last or self.flying)

    def cut(self) -> list[int]:
        """The next batch; empty where there is none, or none yet."""
        if self._single:
            return [self._single.popleft()]
        if self._rest:
            return [self._rest.popleft() for _ in range(min(self._most, len(self._rest)))]
        return [self._last.popleft()] if self._last and not self.flying else []

    def landed(self) -> tuple[Future[Answer], list[int], bool]:
        """Waits for a batch that is done, and tells whether it was alone all the time."""
        if len(self.flying) > 1:
            self._crowded |= self.flying.keys()
        done, _ = wait(self.flying, return_when=FIRST_COMPLETED)
        future = next(future for future in self.flying if future in done)
        batch, alone = self.flying.pop(future), future not in self._crowded
        self._crowded.discard(future)
        return future, batch, alone

    def tries_again(self, batch: list[int], ended: Ended) -> bool:
        """Whether a batch whose worker ended is tried as it was, and not counted as failed."""
        if not ended.begun:
            self._rest.extendleft(reversed(batch))
            return True
        if not ended.killed or len(batch) > 1:
            return False
        # Perhaps not for want of memory.
        self._kills[batch[0]] += 1
        if self._kills[batch[0]] < _KILLS:
            self._last.extend(batch)
            return True
        return False

    def took(self, batch: list[int], share: float | None) -> None:
        """Makes the next batches larger where one left memory free."""
        if self._grows and share is not None and len(batch) == self._most:
            self._most = max(self._most, _fitting(len(batch), share))

    def takes_back(self, batch: list[int], *, memory: bool, alone: bool) -> bool:
        """Whether what failed is tried in another way; not a sample that failed by itself."""
        if len(batch) > 1 and memory:
            self._most, self._grows = min(self._most, len(batch) // 2), False
            self._rest.extendleft(reversed(batch))
        elif len(batch) > 1:
            # Alone, each of them either succeeds or carries its own message.
            self._single.extend(batch)
        elif memory and not alone:
            self._last.extend(batch)
        else:
            return False
        return True


def _fitting(samples: int, share: float) -> int:
    """How many fit where so many took this share at their peak, as if all of it were theirs."""
    return min(_MOST, _GROWTH * samples, int(samples * _FILLED / share))


def number(samples: int, size: int) -> int:
    """How many batches so many samples make."""
    return math.ceil(samples / size)


def _checked(samples: list[Sample], batch: Sequence[int]) -> list[Sample]:
    if [sample.index for sample in samples] != list(batch):
        raise InternalError(
            f"a batch of samples {list(batch)[:3]}… came back as "
            f"{[sample.index for sample in samples][:3]}…; please report this"
        )
    return samples
