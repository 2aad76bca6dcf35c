"""How many numbers are worked on at once: on a CPU as many as caches hold, where more take longer
each; on a GPU as many as its memory holds, where every chunk costs the same kernels again.
"""

from __future__ import annotations

from functools import lru_cache

import torch

# One chunk may fill this part of a device's memory. What is kept for each number at the peak of an
# optimisation or of a proof takes no more bytes (tests/benchmarks/test_benchmark_memory.py).
_PART, BYTES = 1 / 4, 256
# Of a device that does not tell its memory, a small one's.
_SMALL = 2**34


def at_once(cached: int, device: torch.device, *, each: int = 1) -> int:
    """How many things of ``each`` numbers: ``cached`` numbers of them on a CPU, at least one."""
    numbers = cached
    if device.type != "cpu":
        numbers = max(cached, int(memory_of(device) * _PART / BYTES))
    return max(1, numbers // max(1, each))


def fitting(each: float, device: torch.device) -> int:
    """How many things of ``each`` bytes are followed at once: one on a CPU, else as many as a
    chunk's part of the memory holds, at least one."""
    if device.type == "cpu":
        return 1
    return max(1, int(memory_of(device) * _PART / each))


def slices(count: int, most: int) -> list[slice]:
    """The places from 0 to ``count``, so many at once."""
    return [slice(first, first + most) for first in range(0, count, most)]


@lru_cache
def memory_of(device: torch.device) -> int:
    """The bytes of a device with memory of its own, of which others may have some: not what is
    free now, so that chunks, and with them the last digits of sums, are the same all through a run.
    """
    if device.type != "cuda":
        return _SMALL
    return int(torch.cuda.get_device_properties(device).total_memory)
