"""Matrix products of two values, such as ``QKᵀ`` and ``PV`` of an attention, for every head.

    (A + ΔA)(B + ΔB) = AB + ΔA B + A ΔB + ΔA ΔB,

so the remainder is at most ``|ΔA| |ΔB|``, entry by entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.joints.base import (
    Derivative,
    Joint,
    Way,
    finite_or_all,
    guarded,
)
from lipcert.network.operators.base import Shape
from lipcert.numbers import Box, Outward, halves, largest, outward_of
from lipcert.rounding import Arithmetic


@dataclass(frozen=True, eq=False)
class Sandwich(Derivative):
    """``V_1 B + A V_2`` of matrices."""

    left: Tensor
    right: Tensor

    @property
    def terms(self) -> int:
        return 2 * int(self.left.shape[-1]) + 2

    @property
    def transposed_terms(self) -> int:
        return int(max(self.left.shape[-2], self.right.shape[-1])) + 1

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        one, other = parts
        return one @ self.right[:, None] + self.left[:, None] @ other

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        one, other = parts
        return one @ self.right[:, None].abs() + self.left[:, None].abs() @ other

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        return form @ self.right[:, None].mT, self.left[:, None].mT @ form

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        return form @ self.right[:, None].mT.abs(), self.left[:, None].mT.abs() @ form


@dataclass(frozen=True, eq=False)
class MatrixProduct(Joint):
    """``A B`` of the matrices in the last two axes, for every place of the axes before them:
    ``(…, m, k) × (…, k, n)``."""

    lead: Shape
    rows: int
    inner: int
    columns: int

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        return (*self.lead, self.rows, self.inner), (*self.lead, self.inner, self.columns)

    @property
    def out_shape(self) -> Shape:
        return (*self.lead, self.rows, self.columns)

    def value(self, *values: Tensor) -> Tensor:
        one, other = values
        return one @ other

    def image(self, boxes: Sequence[Box]) -> Box:
        (one, wide), (other, high) = (halves(box, outward_of(box[0].dtype)) for box in boxes)
        own = outward_of(one.dtype)
        middle = one @ other
        sizes = (one.abs() + wide) @ (other.abs() + high)
        width = one.abs() @ high + wide @ (other.abs() + high)
        width = own.up(width, self.inner + 5) + own.up(own.error(sizes, self.inner + 5), 5)
        width = width + 2 * self.inner * own.tiny
        return finite_or_all(middle - width, middle + width)

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        return Sandwich(*anchors)

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        one, other = map(largest, ways)
        found = one @ other
        return found, found

    @property
    def precision(self) -> float:
        return 4.0 * self.inner + 32.0

    @property
    def products(self) -> int:
        return math.prod(self.out_shape) * self.inner

    @property
    def additions(self) -> int:
        # A bias behind it may be where its own sums start.
        return self.inner

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        one, other = (largest(box) for box in boxes)
        own, run = outward_of(one.dtype), Outward.of(arithmetic)
        size = own.up(one @ other, self.inner + 5) + 2 * self.inner * own.tiny
        # The sums in their own format, then the result's: each rounds what the other has made.
        sums = Outward.of(arithmetic.accumulator).gamma(self.inner + 3) + run.gamma(2)
        error = own.times(size, sums, run.grown(1)) + 2 * (self.inner + 2) * arithmetic.tiny
        # What is exactly 0 is computed as such.
        exact = (one > 0).to(size) @ (other > 0).to(size) == 0
        return guarded(torch.where(exact, 0.0, error), size, arithmetic)
