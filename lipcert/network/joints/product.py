"""Products and quotients of two values, element by element: gates, squeeze-excite, GLU.

    (a + Δa)(b + Δb) = ab + bΔa + aΔb + ΔaΔb

so the remainder of a product is at most ``|Δa| |Δb|``. Of a quotient it is

    Δb (aΔb/b − Δa) / (b (b + Δb)),

as ``b (b + Δb)`` times either side shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.joints.base import (
    Box,
    Derivative,
    Joint,
    finite_or_all,
    guarded,
    own_unit,
    size_of,
)
from lipcert.network.operators.base import Shape
from lipcert.rounding import Arithmetic, arithmetic_of


@dataclass(frozen=True, eq=False)
class Scaling(Derivative):
    """``first ∘ v_1 + second ∘ v_2``."""

    first: Tensor
    second: Tensor

    @property
    def terms(self) -> int:
        return 2

    @property
    def transposed_terms(self) -> int:
        return 1

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        one, other = parts
        return torch.addcmul(self.first[:, None] * one, self.second[:, None], other)

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        one, other = parts
        return self.first[:, None].abs() * one + self.second[:, None].abs() * other

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        return self.first[:, None] * form, self.second[:, None] * form

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        return self.first[:, None].abs() * form, self.second[:, None].abs() * form


@dataclass(frozen=True, eq=False)
class Product(Joint):
    """``a ∘ b`` of two values of one shape."""

    shape: Shape

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        return self.shape, self.shape

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def value(self, *values: Tensor) -> Tensor:
        one, other = values
        return one * other

    def image(self, boxes: Sequence[Box]) -> Box:
        (a, b), (c, d) = boxes
        ends = torch.stack([a * c, a * d, b * c, b * d])
        own = arithmetic_of(a.dtype)
        slack = 2 * own.unit * ends.abs() + own.tiny
        return finite_or_all((ends - slack).amin(0), (ends + slack).amax(0))

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        one, other = anchors
        return Scaling(other, one)

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Tensor]) -> Tensor:
        one, other = ways
        return one * other

    @property
    def precision(self) -> float:
        return 16.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        one, other = (size_of(box) for box in boxes)
        size = one * other * (1 + 4 * own_unit(one))
        error = arithmetic.unit * (1 + 4 * own_unit(one)) * size + arithmetic.tiny
        # What is exactly 0 is computed as such.
        exact = (one == 0) | (other == 0)
        return guarded(torch.where(exact, 0.0, error), size, arithmetic)


@dataclass(frozen=True, eq=False)
class Quotient(Joint):
    """``a / b`` of two values of one shape; known where ``b`` keeps its sign."""

    shape: Shape

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        return self.shape, self.shape

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def value(self, *values: Tensor) -> Tensor:
        one, other = values
        return one / other

    def image(self, boxes: Sequence[Box]) -> Box:
        (a, b), (c, d) = boxes
        ends = torch.stack([a / c, a / d, b / c, b / d])
        own = arithmetic_of(a.dtype)
        slack = 2 * own.unit * ends.abs() + own.tiny
        lower, upper = finite_or_all((ends - slack).amin(0), (ends + slack).amax(0))
        known = (c > 0) | (d < 0)
        return torch.where(known, lower, -torch.inf), torch.where(known, upper, torch.inf)

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        one, other = anchors
        return Scaling(1 / other, -one / other / other)

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Tensor]) -> Tensor:
        (one, other), (way, down) = anchors, ways
        size = other.abs()
        least = (size - down) * (1 - 2 * own_unit(one)) - 2 * own_unit(one) * size
        found = down * ((one / other).abs() * down + way) / (size * least)
        return torch.where(least > 0, found, torch.inf)

    @property
    def precision(self) -> float:
        return 64.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        own = own_unit(boxes[0][0])
        size = size_of(self.image(boxes))
        # Also where it is a product with a reciprocal, which must not underflow.
        error = 3 * arithmetic.unit * (1 + 8 * own) * size
        error = error + arithmetic.tiny * (1 + size_of(boxes[0]))
        most = torch.maximum(torch.maximum(size, size_of(boxes[1])), size_of(boxes[0]))
        least = torch.minimum(boxes[1][0].abs(), boxes[1][1].abs())
        most = torch.where(least * arithmetic.largest > 2, most, torch.inf)
        exact = size_of(boxes[0]) == 0
        return guarded(torch.where(exact & (least > 0), 0.0, error), most, arithmetic)
