"""Functions of one number that bounds on activations do not know: squares, roots, powers,
exponentials, logarithms, reciprocals, as they stand in normalisations and gates written out.

By Taylor's theorem the remainder is ``½ f'' Δ²`` somewhere on the way; ``|f''|`` of each of them is
largest at one of its ends, and has one sign where it has that at both.
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
    rounded,
)
from lipcert.network.operators.base import Shape
from lipcert.numbers import Box, around, largest, outward_of, widened
from lipcert.rounding import Arithmetic

# Of exp, log, and powers, relatively.
_UNITS = 8.0


@dataclass(frozen=True, eq=False)
class Slopes(Derivative):
    """``slope ∘ v``."""

    slope: Tensor

    @property
    def terms(self) -> int:
        return 1

    @property
    def transposed_terms(self) -> int:
        return 1

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        return self.slope[:, None] * parts[0]

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        return self.slope[:, None].abs() * parts[0]

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        return (self.slope[:, None] * form,)

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        return (self.slope[:, None].abs() * form,)


@dataclass(frozen=True, eq=False)
class Curve(Joint):
    """``z^power``, or ``exp`` and ``log`` by their names; a power that is no whole number, and a
    logarithm, are known for positive numbers, a negative power for numbers of one sign."""

    shape: Shape
    name: str
    power: float = 1.0

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        return (self.shape,)

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def value(self, *values: Tensor) -> Tensor:
        (z,) = values
        match self.name:
            case "exp":
                return z.exp()
            case "log":
                return z.log()
        return _powered(z, self.power)

    def _jet(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``f'`` and ``f''``."""
        match self.name:
            case "exp":
                return z.exp(), z.exp()
            case "log":
                return 1 / z, -1 / z.square()
        k = self.power
        if k in (0.0, 1.0):
            return torch.full_like(z, k), torch.zeros_like(z)
        return k * _powered(z, k - 1), k * (k - 1) * _powered(z, k - 2)

    def _known(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where the function is defined on the whole box, and smooth."""
        everywhere = lower == lower
        if self.name == "exp" or (self.name == "power" and _whole(self.power) and self.power >= 0):
            return everywhere
        if self.name == "power" and _whole(self.power):
            return (lower > 0) | (upper < 0)
        return lower > 0

    def image(self, boxes: Sequence[Box]) -> Box:
        ((lower, upper),) = boxes
        own = outward_of(lower.dtype)
        places = [lower, upper]
        if self.name == "power" and _whole(self.power) and self.power > 0:
            places.append(torch.minimum(lower.clamp(min=0), upper))
        found = torch.stack([self.value(place) for place in places])
        low, high = widened((found, found), own.error(self._size(found), 4 * _UNITS), own)
        low, high = (torch.where(found.isinf(), found, side) for side in (low, high))
        low, high = finite_or_all(low.amin(0), high.amax(0))
        known = self._known(lower, upper)
        return torch.where(known, low, -torch.inf), torch.where(known, high, torch.inf)

    def _size(self, values: Tensor) -> Tensor:
        """What errors are relative to: of a logarithm near 0 also 1."""
        return values.abs() + 1 if self.name == "log" else values.abs()

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        return Slopes(self._jet(anchors[0])[0])

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        (z,), ((fall, rise),) = anchors, ways
        own = outward_of(z.dtype)
        lower, upper = around(z, fall, own)[0], around(z, rise, own)[1]
        first, second = self._jet(lower)[1], self._jet(upper)[1]
        found = torch.maximum(first.abs(), second.abs()) / 2 * torch.maximum(fall, rise).square()
        # An exponent's own rounding, relatively.
        found = found + own.gamma(4) * z.abs() * found if self.name == "exp" else found
        found = torch.where(self._known(lower, upper), found, torch.inf)
        convex, concave = (first >= 0) & (second >= 0), (first <= 0) & (second <= 0)
        # A NaN has no sign, and an infinity is nothing known.
        known = found < torch.inf
        return (
            torch.where(convex & known, 0.0, found),
            torch.where(concave & known, 0.0, found),
        )

    @property
    def precision(self) -> float:
        return 8 * _UNITS + 16 * abs(self.power)

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        (box,) = boxes
        size = largest(self.image(boxes))
        units = _UNITS if self.name != "power" or not _plain(self.power) else 2.0
        error = rounded(self._size(size), units, arithmetic)
        error = error + 2 * arithmetic.tiny * (1 + largest(box))
        most = torch.maximum(size, largest(box))
        if self.name == "power" and self.power < 0:
            least = torch.minimum(box[0].abs(), box[1].abs())
            most = torch.where(least > 2 * arithmetic.tiny, most, torch.inf)
        return guarded(torch.where(most == 0, 0.0, error), most, arithmetic)


def _whole(power: float) -> bool:
    return power == math.floor(power)


def _plain(power: float) -> bool:
    """Powers that are one operation each."""
    return power in (2.0, 0.5, -1.0)


def _powered(z: Tensor, power: float) -> Tensor:
    if power == 0:
        return torch.ones_like(z)
    if power == 0.5:
        return z.sqrt()
    if power == -0.5:
        return 1 / z.sqrt()
    if power == -1:
        return 1 / z
    if power == 2:
        return z * z
    return z if power == 1 else z.pow(power)
