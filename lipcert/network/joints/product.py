"""Products and quotients of two values, number by number: gates, squeeze-excite, GLU.

    (a + Δa)(b + Δb) = ab + bΔa + aΔb + ΔaΔb

so the remainder of a product is ``Δa Δb``, least and largest at corners of the box. Of a quotient
it is

    Δb (aΔb/b − Δa) / (b (b + Δb)),

as ``b (b + Δb)`` times either side shows. An axis of one number is broadcast: what one number does
to many stays the change of one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipcert.network.joints.base import (
    Derivative,
    Joint,
    Way,
    finite_or_all,
    guarded,
    rounded,
)
from lipcert.network.operators.base import Shape
from lipcert.numbers import Box, largest, outward_of, widened
from lipcert.rounding import Arithmetic


def reduced(form: Tensor, shape: Shape) -> Tensor:
    """The transpose of broadcasting ``shape``: sums, ``(B, N, *shape)``."""
    wide = tuple(k + 2 for k, n in enumerate(shape) if n == 1 and form.shape[k + 2] != 1)
    return form.sum(wide, keepdim=True) if wide else form


@dataclass(frozen=True, eq=False)
class Scaling(Derivative):
    """``first ∘ v_1 + second ∘ v_2``, broadcast from ``shapes``."""

    first: Tensor
    second: Tensor
    shapes: tuple[Shape, Shape]

    @property
    def terms(self) -> int:
        return 2

    @property
    def transposed_terms(self) -> int:
        out = np.broadcast_shapes(*self.shapes)
        return 1 + max(math.prod(out) // max(1, math.prod(shape)) for shape in self.shapes)

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        one, other = parts
        return self.first[:, None] * one + self.second[:, None] * other

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        one, other = parts
        return self.first[:, None].abs() * one + self.second[:, None].abs() * other

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        parts = self.first[:, None] * form, self.second[:, None] * form
        return tuple(reduced(p, shape) for p, shape in zip(parts, self.shapes, strict=True))

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        parts = self.first[:, None].abs() * form, self.second[:, None].abs() * form
        return tuple(reduced(p, shape) for p, shape in zip(parts, self.shapes, strict=True))


def corners(one: Way, other: Way) -> tuple[Tensor, Tensor]:
    """How far the product of two changes may be below 0, and above."""
    (fall, rise), (down, up) = one, other
    return torch.maximum(fall * up, rise * down), torch.maximum(fall * down, rise * up)


def _around(ends: Tensor) -> Box:
    """The box of values of one rounding each, along the first axis."""
    own = outward_of(ends.dtype)
    lower, upper = widened((ends, ends), own.error(ends.abs(), 1), own)
    return lower.amin(0), upper.amax(0)


@dataclass(frozen=True, eq=False)
class _OfTwo(Joint):
    """Of two values of as many axes, broadcast."""

    left: Shape
    right: Shape

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        return self.left, self.right

    @property
    def out_shape(self) -> Shape:
        return tuple(np.broadcast_shapes(self.left, self.right))


@dataclass(frozen=True, eq=False)
class Product(_OfTwo):
    """``a ∘ b``."""

    def value(self, *values: Tensor) -> Tensor:
        one, other = values
        return one * other

    def image(self, boxes: Sequence[Box]) -> Box:
        (a, b), (c, d) = boxes
        ends = torch.stack([a * c, a * d, b * c, b * d])
        return finite_or_all(*_around(ends))

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        one, other = anchors
        return Scaling(other, one, (self.left, self.right))

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        return corners(*ways)

    @property
    def precision(self) -> float:
        return 16.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        one, other = (largest(box) for box in boxes)
        size = outward_of(one.dtype).times(one, other)
        error = rounded(size, 1, arithmetic)
        # What is exactly 0 is computed as such.
        exact = (one == 0) | (other == 0)
        return guarded(torch.where(exact, 0.0, error), size, arithmetic)


@dataclass(frozen=True, eq=False)
class Quotient(_OfTwo):
    """``a / b``; known where ``b`` keeps its sign."""

    def value(self, *values: Tensor) -> Tensor:
        one, other = values
        return one / other

    def image(self, boxes: Sequence[Box]) -> Box:
        (a, b), (c, d) = boxes
        ends = torch.stack([a / c, a / d, b / c, b / d])
        lower, upper = finite_or_all(*_around(ends))
        known = (c > 0) | (d < 0)
        return torch.where(known, lower, -torch.inf), torch.where(known, upper, torch.inf)

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        one, other = anchors
        return Scaling(1 / other, -one / other / other, (self.left, self.right))

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        (one, other), (way, down) = anchors, map(largest, ways)
        size = other.abs()
        least = outward_of(one.dtype).below(size, down)
        found = down * ((one / other).abs() * down + way) / (size * least)
        found = torch.where(least > 0, found, torch.inf)
        return found, found

    @property
    def precision(self) -> float:
        return 64.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """Of a division, or of a product with the reciprocal, which must not underflow."""
        above, below = boxes
        size, numerator = largest(self.image(boxes)), largest(above)
        error = rounded(size, 3, arithmetic) + arithmetic.tiny * (1 + numerator)
        most = torch.maximum(torch.maximum(size, largest(below)), numerator)
        least = torch.minimum(below[0].abs(), below[1].abs())
        most = torch.where(least * arithmetic.largest > 2, most, torch.inf)
        exact = (numerator == 0) & ((below[0] > 0) | (below[1] < 0))
        return guarded(torch.where(exact, 0.0, error), most, arithmetic)
