"""Convolutions and their transposes beside the library's own, on one CPU.

pytest -m benchmark tests/benchmarks/test_benchmark_convolutions.py -s
"""

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from lipcert.network.operators.convolve import convolve, transposed

pytestmark = pytest.mark.benchmark

# inputs, outputs, side, kernel, stride
LAYERS = [(1, 16, 28, 4, 2), (3, 16, 32, 4, 2), (16, 32, 16, 4, 2), (3, 32, 32, 3, 1),
          (16, 16, 32, 3, 1), (32, 32, 16, 3, 1), (64, 64, 8, 3, 1)]  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """The least of several runs."""
    work()
    found = []
    for _ in range(7):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolutions(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"\n{dtype}: times of the library's in ours, convolution and transpose")
    try:
        for batch in (20, 128):
            for inputs, outputs, side, kernel, stride in LAYERS:
                weight = torch.randn(outputs, inputs, kernel, kernel, dtype=dtype)
                x = torch.randn(batch, inputs, side, side, dtype=dtype)
                way = (stride, stride), (1, 1), (1, 1), 1
                y = F.conv2d(x, weight, None, *way)
                unread = (side + 2 - kernel) % stride
                there = seconds(lambda: F.conv2d(x, weight, None, *way))  # noqa: B023
                there /= seconds(lambda: convolve(x, weight, way))  # noqa: B023
                back = seconds(
                    lambda: F.conv_transpose2d(y, weight, None, stride, 1, unread)  # noqa: B023
                )
                back /= seconds(lambda: transposed(y, weight, way, (side, side)))  # noqa: B023
                print(
                    f"  {batch:3} × {inputs:2} → {outputs:2} channels of {side:2}², {kernel}² "
                    f"kernels by {stride}: {there:4.2f}  {back:4.2f}"
                )
    finally:
        torch.set_num_threads(threads)
