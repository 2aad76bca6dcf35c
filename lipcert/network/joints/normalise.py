"""Normalisation by a value's own length: Layer-, RMS-, Group-, InstanceNorm, L2 heads.

``x̃ s`` with ``s`` one number for each group, so that a layer norm is two joints: the reciprocal of
the length, and the value times it. What the length changes by, what its remainder is and what a run
rounds there is then the change, the remainder and the rounding of one number, the same for all that
are divided by it.

With ``x̃ = x − mean(x)`` where it is centred, else ``x``, over the ``n`` values of the last axis,

    f(x) = c / ℓ(x),     ℓ = (‖x̃‖² + e)^½,

``c = √n`` and ``e = n ε`` where the mean square is normalised, else ``c = 1`` and ``e = ε``. As
``ℓ`` is the length of the lifted vector ``(x̃, √e)``, with ``u = x̃/ℓ``, ``t = u·Δ``, ``|t| ≤ T`` and
``D = ‖Δ̃‖``

    ℓ ≥ ℓ0 + t ≥ ℓ0 − T,     1/ℓ − 1/ℓ0 + t/ℓ0² ∈ [−D²/(2 (ℓ0 − T)³), D²/(ℓ0 − T)³],

because the second derivative of ``1/‖·‖`` along a line lies between ``−D²/ℓ³`` and ``2D²/ℓ³``.
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
    finite_or_all,
    guarded,
    own_unit,
    summed,
)
from lipcert.network.joints.product import reduced
from lipcert.network.operators.base import Shape
from lipcert.numbers import Box, halves, largest, outward_of
from lipcert.rounding import Arithmetic, arithmetic_of, gamma


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Along the last axis, which stays as one."""
    product: Tensor = torch.linalg.vecdot(one, other)
    return product[..., None]


@dataclass(frozen=True, eq=False)
class Weighing(Derivative):
    """``w · v`` along the last axis, which stays as one."""

    weight: Tensor

    @property
    def terms(self) -> int:
        return int(self.weight.shape[-1])

    @property
    def transposed_terms(self) -> int:
        return 1

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        return _dot(self.weight[:, None], parts[0])

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        return _dot(self.weight[:, None].abs(), parts[0])

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        return (self.weight[:, None] * form,)

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        return (self.weight[:, None].abs() * form,)


@dataclass(frozen=True, eq=False)
class InverseLength(Joint):
    """``c / (‖x̃‖² + e)^½`` along the last axis, which stays as one.

    ``epsilon``: the ε of the formula; ``centred``: the mean is subtracted first; ``mean``: the mean
    square counts, not the sum. ``floor``: the length is at least this, as of a clamped L2 norm:
    nothing is known where it could be less.
    """

    shape: Shape
    epsilon: float
    centred: bool
    mean: bool
    floor: float = 0.0

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        return (self.shape,)

    @property
    def out_shape(self) -> Shape:
        return (*self.shape[:-1], 1)

    @property
    def size(self) -> int:
        return self.shape[-1]

    @property
    def factor(self) -> float:
        return math.sqrt(self.size) if self.mean else 1.0

    def value(self, *values: Tensor) -> Tensor:
        square = self._centre(values[0]).square()
        total = square.mean(-1, keepdim=True) if self.mean else square.sum(-1, keepdim=True)
        root = (total + self.epsilon).sqrt()
        return 1 / (root.clamp(min=self.floor) if self.floor else root)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _length(self, x: Tensor) -> Tensor:
        """``ℓ`` of a centred value."""
        more = self.epsilon * (self.size if self.mean else 1)
        return (x.square().sum(-1, keepdim=True) + more).sqrt()

    def _lengths(self, box: Box) -> tuple[Tensor, Tensor]:
        """The least and the largest ``ℓ`` over a box."""
        own = arithmetic_of(box[0].dtype)
        middle, half = halves(box, outward_of(box[0].dtype))
        slack = summed(2 * self.size + 16, own)
        if self.centred:
            off = slack * (middle.abs().mean(-1, keepdim=True) + middle.abs())
            middle = self._centre(middle)
            half = (half * (1 - 2 / self.size)).clamp(min=0) + half.mean(-1, keepdim=True)
            half = (half + off) * (1 + slack)
        low, high = middle - half, middle + half
        nearest = torch.where((low > 0) | (high < 0), torch.minimum(low.abs(), high.abs()), 0.0)
        largest = torch.maximum(low.abs(), high.abs())
        # A NaN may not hide as a 0.
        nearest = torch.where(low == low, nearest, torch.nan)
        return self._length(nearest) * (1 - slack), self._length(largest) * (1 + slack)

    def _unknown(self, least: Tensor) -> Tensor:
        """Where a length of at least this may be 0 or below the floor."""
        return ~(least > self.floor * self.factor * (1 + 1e-6))

    def image(self, boxes: Sequence[Box]) -> Box:
        least, most = self._lengths(boxes[0])
        own = arithmetic_of(least.dtype)
        low, high = self.factor / most, self.factor / least
        low, high = finite_or_all(low * (1 - 4 * own.unit), high * (1 + 4 * own.unit))
        unknown = self._unknown(least)
        return torch.where(unknown, -torch.inf, low), torch.where(unknown, torch.inf, high)

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        x = self._centre(anchors[0])
        return Weighing(-self.factor * x / self._length(x).pow(3))

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Tensor]) -> Tensor:
        (way,), x = ways, self._centre(anchors[0])
        own = own_unit(way)
        length = self._length(x)
        slack = gamma(2 * self.size + 16, own)
        distance = way.square().sum(-1, keepdim=True).sqrt() * (1 + slack)
        turned = ((x.abs() / length) * way).sum(-1, keepdim=True)
        turned = torch.minimum(turned, distance) * (1 + 2 * slack)
        # The computed x̃ is not quite the real one.
        share = self._share(anchors[0])
        turned = turned + share * distance
        least = length * (1 - slack) - turned
        found = distance.square() / least.pow(3) + 8 * share * distance / length.square()
        return torch.where(self._unknown(least), torch.inf, self.factor * found)

    def _share(self, x: Tensor) -> Tensor:
        """How far the computed ``x̃`` may be from the real one, relatively to its length: what the
        mean's rounding makes of large values of little variation."""
        if not self.centred:
            return torch.zeros_like(x[..., :1])
        lost = 4 * gamma(self.size + 4, own_unit(x)) * x.abs().amax(-1, keepdim=True)
        return lost * math.sqrt(self.size) / self._length(self._centre(x))

    @property
    def precision(self) -> float:
        return 8.0 * self.size + 64.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """By either formula of the variance, ``mean((x − μ)²)`` or ``mean(x²) − μ²``."""
        (box,) = boxes
        own = arithmetic_of(box[0].dtype)
        u, n = arithmetic.unit, self.size
        slack = 1 + summed(4 * n + 64, own)
        share = summed(n + 4, arithmetic)
        size = largest(box)
        least, most = self._lengths(box)
        total = most.square() * slack
        # Without the mean each value is taken as it is.
        error = share * total
        if self.centred:
            off = share * size.mean(-1, keepdim=True) * slack
            squares, average = size.square().sum(-1, keepdim=True), size.mean(-1, keepdim=True)
            # The mean's error moves all differences alike, and these add up to 0: it counts with
            # its square. Each difference is rounded once more.
            two_pass = n * off.square() + 4 * u * (total + n * off.square())
            two_pass = (two_pass + share * (total + 2 * n * off.square())) * (1 + 8 * u)
            one_pass = share * squares + n * (2 * average * off + off.square())
            one_pass = one_pass + 4 * u * (squares + n * average.square())
            error = torch.maximum(two_pass, one_pass)
        error = (error + 4 * u * total + 4 * (n + 1) * arithmetic.tiny) * slack
        relative = error / least.square() * slack
        # ``1/√(1 − η) − 1``, of a share ``η ≤ 1/2`` of ℓ².
        inverse = relative / 2 * (1 + 2 * relative)
        result = largest(self.image(boxes))
        fresh = result * (inverse + 8 * u) * slack + 4 * arithmetic.tiny * (1 + result)
        known = (relative <= 0.5) & ~self._unknown(least)
        large = torch.maximum(4 * size.square().sum(-1, keepdim=True), 4 * result)
        return guarded(torch.where(known, fresh, torch.inf), large, arithmetic)


@dataclass(frozen=True, eq=False)
class Centring(Derivative):
    """``scale ∘ (v_1 − v_2) + deviation ∘ v_3``, the second and third of one number a group."""

    scale: Tensor
    deviation: Tensor

    @property
    def terms(self) -> int:
        return 3

    @property
    def transposed_terms(self) -> int:
        return int(self.deviation.shape[-1]) + 1

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        x, mean, inverse = parts
        return self.scale[:, None] * (x - mean) + self.deviation[:, None] * inverse

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        x, mean, inverse = parts
        return self.scale[:, None].abs() * (x + mean) + self.deviation[:, None].abs() * inverse

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        one = (*self.deviation.shape[1:-1], 1)
        x = self.scale[:, None] * form
        return x, -reduced(x, one), reduced(self.deviation[:, None] * form, one)

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        one = (*self.deviation.shape[1:-1], 1)
        x = self.scale[:, None].abs() * form
        return x, reduced(x, one), reduced(self.deviation[:, None].abs() * form, one)


@dataclass(frozen=True, eq=False)
class Standardise(Joint):
    """``(x − m) s``, with one ``m`` and one ``s`` for the last axis."""

    shape: Shape

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        one = (*self.shape[:-1], 1)
        return self.shape, one, one

    @property
    def out_shape(self) -> Shape:
        return self.shape

    def value(self, *values: Tensor) -> Tensor:
        x, mean, inverse = values
        return (x - mean) * inverse

    def image(self, boxes: Sequence[Box]) -> Box:
        (a, b), (c, d), (low, high) = boxes
        own = arithmetic_of(a.dtype)
        sizes = largest((a, b)) + largest((c, d))
        left, right = a - d, b - c
        ends = torch.stack([left * low, left * high, right * low, right * high])
        slack = 4 * own.unit * sizes * largest((low, high)) + own.tiny
        return finite_or_all(ends.amin(0) - slack, ends.amax(0) + slack)

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        x, mean, inverse = anchors
        return Centring(inverse, x - mean)

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Tensor]) -> Tensor:
        x, mean, inverse = ways
        # The difference is rounded in the map itself.
        lost = 4 * own_unit(x) * (anchors[0].abs() + anchors[1].abs())
        return (x + mean + lost) * inverse

    @property
    def precision(self) -> float:
        return 16.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """As it is written, or as ``x s − m s``."""
        x, mean, inverse = (largest(box) for box in boxes)
        size = (x + mean) * inverse * (1 + 8 * own_unit(x))
        error = 4 * arithmetic.unit * size + 4 * arithmetic.tiny * (1 + inverse)
        return guarded(error, torch.maximum(size, x + mean), arithmetic)
