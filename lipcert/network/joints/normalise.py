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
    Way,
    finite_or_all,
    guarded,
    rounded,
)
from lipcert.network.joints.product import corners, reduced
from lipcert.network.operators.base import Shape
from lipcert.numbers import Box, Outward, around, halves, largest, outward_of, widened
from lipcert.rounding import Arithmetic


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
        """``ℓ`` of a centred value, to ``_roundings``."""
        more = self.epsilon * (self.size if self.mean else 1)
        return (x.square().sum(-1, keepdim=True) + more).sqrt()

    @property
    def _roundings(self) -> int:
        """At most, on the way of each value to a length, and to what is made of it here."""
        return 2 * self.size + 16

    def _lengths(self, box: Box) -> tuple[Tensor, Tensor]:
        """The least and the largest ``ℓ`` over a box."""
        own = outward_of(box[0].dtype)
        middle, half = halves(box, own)
        if self.centred:
            off = own.error(middle.abs().mean(-1, keepdim=True) + middle.abs(), self._roundings)
            middle = self._centre(middle)
            half = (half * (1 - 2 / self.size)).clamp(min=0) + half.mean(-1, keepdim=True)
            half = own.up(half + off, self._roundings)
        low, high = around(middle, half, own)
        nearest = torch.where((low > 0) | (high < 0), torch.minimum(low.abs(), high.abs()), 0.0)
        largest = torch.maximum(low.abs(), high.abs())
        # A NaN may not hide as a 0.
        nearest = torch.where(low == low, nearest, torch.nan)
        least, most = self._length(nearest), self._length(largest)
        # Squares may lose up to ``tiny``, or gain that, each.
        lost = math.sqrt(2 * self.size * own.tiny)
        return (
            own.down((least - lost).clamp(min=0), self._roundings),
            own.up(most, self._roundings) + lost,
        )

    def _unknown(self, least: Tensor) -> Tensor:
        """Where a length of at least this may be 0 or below the floor. Elsewhere the floor changes
        no value, and a run's own length, rounded below it, is only brought nearer by it."""
        return ~(least > outward_of(least.dtype).up(self.floor * self.factor, 2))

    def image(self, boxes: Sequence[Box]) -> Box:
        least, most = self._lengths(boxes[0])
        own = outward_of(least.dtype)
        low, high = own.down(self.factor / most, 2), own.up(self.factor / least, 2)
        low, high = finite_or_all(low, high)
        unknown = self._unknown(least)
        return torch.where(unknown, -torch.inf, low), torch.where(unknown, torch.inf, high)

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        x = self._centre(anchors[0])
        return Weighing(-self.factor * x / self._length(x).pow(3))

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        (way,), x = map(largest, ways), self._centre(anchors[0])
        own = outward_of(way.dtype)
        length = self._length(x)
        distance = own.up(way.square().sum(-1, keepdim=True).sqrt(), self._roundings)
        turned = ((x.abs() / length) * way).sum(-1, keepdim=True)
        turned = own.up(torch.minimum(turned, distance), 2 * self._roundings)
        # The computed x̃ is not quite the real one.
        share = self._share(anchors[0])
        least = own.below(own.down(length, self._roundings), turned, share * distance)
        turn, lost = distance.square() / least.pow(3), 8 * share * distance / length.square()
        below, above = (
            torch.where(self._unknown(least), torch.inf, self.factor * (part + lost))
            for part in (turn / 2, turn)
        )
        return below, above

    def _share(self, x: Tensor) -> Tensor:
        """How far the computed ``x̃`` may be from the real one, relatively to its length: what the
        mean's rounding makes of large values of little variation."""
        if not self.centred:
            return torch.zeros_like(x[..., :1])
        own = outward_of(x.dtype)
        lost = 4 * own.error(x.abs().amax(-1, keepdim=True), self.size + 4)
        return lost * math.sqrt(self.size) / self._length(self._centre(x))

    @property
    def precision(self) -> float:
        return 8.0 * self.size + 64.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """By either formula of the variance, ``mean((x − μ)²)`` or ``mean(x²) − μ²``."""
        (box,) = boxes
        own, run, n = outward_of(box[0].dtype), Outward.of(arithmetic), self.size
        share, few = run.gamma(n + 4), run.gamma(4)
        size = largest(box)
        least, most = self._lengths(box)
        total = most.square()
        # Without the mean each value is taken as it is.
        error = share * total
        if self.centred:
            off = share * size.mean(-1, keepdim=True)
            squares, average = size.square().sum(-1, keepdim=True), size.mean(-1, keepdim=True)
            # The mean's error moves all differences alike, and these add up to 0: it counts with
            # its square. Each difference is rounded once more.
            two_pass = n * off.square() + few * (total + n * off.square())
            two_pass = run.up(two_pass + share * (total + 2 * n * off.square()), 5)
            one_pass = share * squares + n * (2 * average * off + off.square())
            one_pass = one_pass + few * (squares + n * average.square())
            error = torch.maximum(two_pass, one_pass)
        # All of these are numbers that are 0 or more, of at most ``4 n + 64`` roundings each.
        relative = (error + few * total + 4 * (n + 1) * run.tiny) / least.square()
        relative = own.up(relative, 4 * n + 64)
        # ``1/√(1 − η) − 1``, of a share ``η ≤ 1/2`` of ℓ².
        inverse = relative / 2 * (1 + 2 * relative)
        result = largest(self.image(boxes))
        fresh = own.up(result * (inverse + run.gamma(8)), 8) + 4 * run.tiny * (1 + result)
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
        own = outward_of(a.dtype)
        sizes = largest((a, b)) + largest((c, d))
        left, right = a - d, b - c
        ends = torch.stack([left * low, left * high, right * low, right * high])
        error = own.error(sizes * largest((low, high)), 4)
        return finite_or_all(*widened((ends.amin(0), ends.amax(0)), error, own))

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        x, mean, inverse = anchors
        return Centring(inverse, x - mean)

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Way]) -> tuple[Tensor, Tensor]:
        (fall, rise), (down, up), inverse = ways
        # The difference is rounded in the map itself.
        lost = outward_of(fall.dtype).error(anchors[0].abs() + anchors[1].abs(), 3)
        return corners((fall + up + lost, rise + down + lost), inverse)

    @property
    def precision(self) -> float:
        return 16.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """As it is written, or as ``x s − m s``."""
        x, mean, inverse = (largest(box) for box in boxes)
        size = outward_of(x.dtype).times(x + mean, inverse)
        error = rounded(size, 4, arithmetic) + 4 * arithmetic.tiny * (1 + inverse)
        return guarded(error, torch.maximum(size, x + mean), arithmetic)
