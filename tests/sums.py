"""Machines that add float32 numbers, each in its own order, and the trees of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lipcert.numbers.summation import ADD

Array = np.ndarray
Machine = Callable[[Array], Array]
ONE = np.float32


def run(program: Sequence[int], values: Array) -> np.float32:
    """The sum of values along a tree, each addition rounded to float32."""
    stack: list[np.float32] = []
    for step in program:
        stack.append(ONE(stack.pop() + stack.pop()) if step == ADD else ONE(values[step]))
    return stack[0]


def sequential(n: int) -> tuple[int, ...]:
    return joined([(k,) for k in range(n)])


def blocked(n: int, size: int = 16) -> tuple[int, ...]:
    parts = [range(k, min(k + size, n)) for k in range(0, n, size)]
    return joined([joined([(k,) for k in part]) for part in parts])


def lanes(n: int, width: int = 8) -> tuple[int, ...]:
    """Partial sums of every ``width``-th term, as in a vector register."""
    return joined([joined([(k,) for k in range(lane, n, width)]) for lane in range(min(width, n))])


def pairwise(n: int, first: int = 0) -> tuple[int, ...]:
    if n == 1:
        return (first,)
    return joined([pairwise(n - n // 2, first), pairwise(n // 2, first + n - n // 2)])


def backwards(n: int) -> tuple[int, ...]:
    """From the last term to the first one: as the tree is written down, the first one last."""
    found: tuple[int, ...] = (n - 1,)
    for k in reversed(range(n - 1)):
        found = (k, *found, ADD)
    return found


def joined(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """One part after the other onto the first."""
    found = parts[0]
    for part in parts[1:]:
        found = (*found, *part, ADD)
    return found


TREES = {
    "sequential": sequential, "blocked": blocked, "lanes": lanes, "pairwise": pairwise,
    "backwards": backwards,
}  # fmt: skip
