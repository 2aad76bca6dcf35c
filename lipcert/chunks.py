"""How many numbers are worked on at once: on a CPU as many as caches hold, where more take longer
each; on a GPU as many as its memory holds, where every chunk costs the same kernels again.
"""

from __future__ import annotations

from functools import lru_cache

import torch

# One chunk may fill this part of a device's memory. What is kept of a number at the peak of an
# optimisation in float32, the graph of its gradient included, and of a proof in float64, took up
# to so many bytes (tests/benchmarks/test_benchmark_memory.py).
_PART, BYTES = 1 / 8, 128
# Of a device that does not tell its memory, a small one's.
_SMALL = 2**34


def at_once(cached: int, device: torch.device, *, each: int = 1) -> int:
    """How many things of ``each`` numbers: ``cached`` numbers of them on a CPU, at least one."""
    numbers = cached
    if device.type != "cpu":
        numbers = max(cached, int(_memory(device) * _PART / BYTES))
    return max(1, numbers // max(1, each))


def slices(count: int, most: int) -> list[slice]:
    """The places from 0 to ``count``, so many at once."""
    return [slice(first, first + most) for first in range(0, count, most)]


@lru_cache
def _memory(device: torch.device) -> int:
    """Its bytes, of which others may have some: not what is free now, so that chunks, and with
    them the last digits of sums, are the same all through a run."""
    if device.type != "cuda":
        return _SMALL
    return int(torch.cuda.get_device_properties(device).total_memory)
