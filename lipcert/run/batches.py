"""Samples in batches that fit the memory, each failure kept to the sample that caused it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from lipcert.certificate import Sample
from lipcert.errors import InternalError, LipcertError

START = 32

Certify = Callable[[Sequence[int]], list[Sample]]
Failed = Callable[[int, str], Sample]


def in_batches(
    certify: Certify, indices: Sequence[int], failed: Failed, *, size: int | None = None
) -> Iterator[list[Sample]]:
    """Certify ``indices`` in order, batch after batch; every index is yielded exactly once.

    ``size`` is the first batch size, 32 where it is None. Where memory runs out it halves, for
    good. Any other failure of a batch is traced to its samples, one at a time; a sample that fails
    alone becomes ``failed(index, message)``. A ``LipcertError`` concerns the whole run and is
    passed on, as are interrupts.
    """
    size, start = size or START, 0
    while start < len(indices):
        batch = list(indices[start : start + size])
        began = time.perf_counter()
        try:
            samples = _checked(certify(batch), batch)
        except LipcertError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                release_memory()
                if len(batch) > 1:
                    size = len(batch) // 2
                    continue
            elif len(batch) > 1:
                # Alone, each of them either succeeds or carries its own message.
                yield from in_batches(certify, batch, failed, size=1)
                start += len(batch)
                continue
            seconds = time.perf_counter() - began
            samples = [failed(batch[0], f"{_describe(error)} (after {seconds:.1f} s)")]
        start += len(batch)
        yield samples


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


def _describe(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
