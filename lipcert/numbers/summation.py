"""The order in which a machine adds the terms of a sum, and what it rounds in that order.

One rounded addition ``fl(a + b) = (a + b)(1 + δ)`` errs by at most ``u |a + b|``. Additions of two
numbers each make a binary tree over the terms; every inner node ``v`` adds up a part ``S_v`` of
them, whose exact sum is ``s_v``. With ``E`` what all additions err by together, ``P`` what the
terms themselves are off, and ``d`` the depth of the tree, a computed partial sum is within the
errors below it of ``s_v``, and each error is below at most ``d`` nodes:

    E ≤ Σ_v u (|s_v| + errors below v) ≤ u Σ_v |s_v| + u d (E + P),
    E + P ≤ (u Σ_v |s_v| + P) / (1 − u d).

For ``n`` terms of random signs and one accumulator ``Σ_v |s_v|`` is about ``n √n`` times their
size, where any order can take ``n²``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# A value with where it is not 0 for sure; None for 0.
_Part = tuple[Tensor, Tensor] | None
# Beside the numbers of terms in a ``SumTree``.
ADD = -1


@dataclass(frozen=True)
class SumTree:
    """A binary tree over the terms 0 … n − 1 of a sum, each of them once: ``program`` names terms
    and, by −1, the addition of the last two values that are there.

    Of two values that are added the one with the smaller first term comes first, so that one tree
    has one program.
    """

    program: tuple[int, ...]

    @property
    def terms(self) -> int:
        return (len(self.program) + 1) // 2

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each term the additions that it passes through."""
        found, above = [0] * self.terms, [0]
        for step in reversed(self.program):
            depth = above.pop()
            if step == ADD:
                above += [depth + 1, depth + 1]
            else:
                found[step] = depth
        return tuple(found)

    def fold(self, term: Callable[[int], T], added: Callable[[T, T], T]) -> T:
        """Goes through the tree: ``term`` makes a value of each term, ``added`` one of two."""
        values: list[T] = []
        for step in self.program:
            if step == ADD:
                second = values.pop()
                values[-1] = added(values[-1], second)
            else:
                values.append(term(step))
        [found] = values
        return found

    def within(self, kept: Sequence[bool]) -> tuple[int, ...]:
        """The program of the tree that is left where only some terms are ``kept``."""

        def joined(one: list[int], other: list[int]) -> list[int]:
            if not (one and other):
                return one or other
            first, second = sorted((one, other), key=lambda part: part[0])
            return [*first, *second, ADD]

        def own(k: int) -> list[int]:
            return [k] if kept[k] else []

        found: list[int] = self.fold(own, joined)
        return tuple(found)


@dataclass(frozen=True)
class SumOrder:
    """The order of the sums of one operation: each of its outputs is summed along one of these
    trees; terms that are 0 everywhere at an output, as padding is, are in them too.

    ``bias``: the last term is one, which no product makes.
    """

    trees: tuple[SumTree, ...]
    bias: bool = False

    @property
    def terms(self) -> int:
        """The products, without a bias."""
        return self.trees[0].terms - self.bias

    @property
    def depth(self) -> int:
        """The most additions that a term passes through."""
        return max(max(tree.depths) for tree in self.trees)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each term, the bias last, the most additions that it passes through in any tree."""
        return tuple(map(max, zip(*(tree.depths for tree in self.trees), strict=True)))

    def partial_sums(
        self, term: Callable[[int], _Part], size: Callable[[Tensor], Tensor] = torch.abs
    ) -> Tensor:
        """``Σ_v |s_v|`` over all additions that round, the largest of all trees, as computed;
        ``size``: what is taken of each sum in the place of its magnitude.

        ``term`` gives each term with where it is ``live``, not 0 for sure (None: nowhere): an
        addition of what is surely 0 rounds nothing. Rounded: ``n`` times in the tree, and once
        each in the sum of its magnitudes.
        """
        found = [_partial_sums(tree, term, size) for tree in self.trees]
        return torch.stack(found).amax(0) if len(found) > 1 else found[0]


def _partial_sums(
    tree: SumTree, term: Callable[[int], _Part], size: Callable[[Tensor], Tensor]
) -> Tensor:
    total: list[Tensor] = []

    def added(one: _Part, other: _Part) -> _Part:
        if one is None or other is None:
            return other if one is None else one
        (first, live), (second, also) = one, other
        whole = first + second
        made = size(whole) * (live & also)
        if total:
            total[0] = total[0] + made
        else:
            total.append(made)
        return whole, live | also

    last = tree.fold(term, added)
    if total:
        return total[0]
    assert last is not None, "a sum has a term"
    return torch.zeros_like(last[0])
