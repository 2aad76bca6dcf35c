"""Samples in batches that fit the memory, each failure kept to the sample that caused it."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from lipcert.certificate import Sample
from lipcert.errors import InternalError
from lipcert.run.executors import Answer, Ended, Executor, Failure

# Twice as many take as long a sample. The size must depend on no machine: sums in another order end
# in other digits.
START = 20
# On a GPU, where more samples at once take hardly longer: no more than so many, at most so many
# times the last ones, and so much of the memory, for what a rung takes differs between samples.
_MOST, _GROWTH, _FILLED = 512, 4, 0.6

# So often one sample's process is killed before it counts as the sample's own doing. Where people
# or schedulers kill at random, one sample may be hit several times: each more costs a start.
_KILLS = 8

Failed = Callable[[int, str], Sample]


def in_batches(
    executor: Executor, indices: Sequence[int], failed: Failed, *, size: int | None = None
) -> Iterator[list[Sample]]:
    """Have ``indices`` certified; batches are yielded as they come in, every index exactly once.

    They are cut in order, ``size`` at once, 20 where it is None; on a GPU then as many as its
    memory holds, by what the batches before took at their peak. Where memory runs out the size
    halves, for good; one sample for which it was too little beside others is tried again, alone, at
    the end. Any other failure of a batch is traced to its samples, one at a time; a sample that
    fails alone becomes ``failed(index, message)``. A batch whose worker ended is lost, and no other
    one: a worker that was killed counts as out of memory; a sample is tried eight times before it
    fails by that. A ``LipcertError`` concerns the whole run
    and is passed on, as are interrupts.
    """
    most, grows = size or START, size is None
    rest, single, last = deque(indices), deque[int](), deque[int]()
    flying: dict[Future[Answer], list[int]] = {}
    # Those that were not alone in the memory all the time.
    crowded: set[Future[Answer]] = set()
    kills = Counter[int]()

    def cut() -> list[int]:
        if single:
            return [single.popleft()]
        if rest:
            return [rest.popleft() for _ in range(min(most, len(rest)))]
        return [last.popleft()] if last and not flying else []

    while rest or single or last or flying:
        while len(flying) < executor.places and (batch := cut()):
            flying[executor.submit(batch)] = batch
        if len(flying) > 1:
            crowded |= flying.keys()
        done, _ = wait(flying, return_when=FIRST_COMPLETED)
        future = next(future for future in flying if future in done)
        batch, alone = flying.pop(future), future not in crowded
        crowded.discard(future)
        try:
            answer = future.result()
        except Ended as ended:
            if not ended.begun:
                rest.extendleft(reversed(batch))
                continue
            if ended.killed and len(batch) == 1:
                # Perhaps not for want of memory.
                kills[batch[0]] += 1
                if kills[batch[0]] < _KILLS:
                    last.extend(batch)
                    continue
            answer = Answer(Failure(f"its process {ended.how}", ended.killed), 0.0)
        outcome = answer.outcome
        if not isinstance(outcome, Failure):
            if grows and answer.share is not None and len(batch) == most:
                most = max(most, _fitting(len(batch), answer.share))
            yield _checked(outcome, batch)
        elif len(batch) > 1 and outcome.memory:
            most, grows = min(most, len(batch) // 2), False
            rest.extendleft(reversed(batch))
        elif len(batch) > 1:
            # Alone, each of them either succeeds or carries its own message.
            single.extend(batch)
        elif outcome.memory and not alone:
            last.extend(batch)
        else:
            yield [failed(batch[0], f"{outcome.message} (after {answer.seconds:.1f} s)")]


def _fitting(samples: int, share: float) -> int:
    """How many fit where so many took this share at their peak, as if all of it were theirs."""
    return min(_MOST, _GROWTH * samples, int(samples * _FILLED / share))


def number(samples: int, size: int | None) -> int:
    """How many batches so many samples make."""
    return math.ceil(samples / (size or START))


def _checked(samples: list[Sample], batch: Sequence[int]) -> list[Sample]:
    if [sample.index for sample in samples] != list(batch):
        raise InternalError(
            f"a batch of samples {list(batch)[:3]}… came back as "
            f"{[sample.index for sample in samples][:3]}…; please report this"
        )
    return samples
