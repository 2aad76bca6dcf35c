"""Normalisation of a value by its own length: Layer-, RMS-, Group-, InstanceNorm, L2 heads.

With ``x̃ = x − mean(x)`` where it is centred, else ``x``, along the last axis of ``n`` values,

    f(x) = c x̃ / s,     s = (‖x̃‖² + e)^½,

``c = √n`` and ``e = n ε`` where the mean square is normalised, else ``c = 1`` and ``e = ε``. With
``u = x̃/s`` the derivative is ``(c/s)(P − u uᵀ)``, ``P`` the centring. As ``s`` is the length of the
lifted vector ``(x̃, √e)``, with ``t = u·Δ``, ``D = ‖Δ̃‖``, ``T ≥ |t|`` and ``s_lo = s0 − T``,

    s ≥ s0 + t ≥ s_lo,    |s − s0| ≤ E = T + D²/(2 s_lo),
    1/s = 1/s0 − t/s0² + q,    |q| ≤ D²/s_lo³,

because the second derivative of ``1/‖·‖`` along a line lies between ``−D²/s³`` and ``2D²/s³``. So

    (f(x) − f(x0) − f'(x0) Δ)_k / c = x̃0_k q + Δ̃_k (1/s − 1/s0),

at most ``|x̃0_k| D²/s_lo³ + |Δ̃_k| E/(s_lo s0)``.
"""

from __future__ import annotations

import math
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
    halves_of,
    own_unit,
    size_of,
)
from lipcert.network.operators.base import Shape
from lipcert.rounding import Arithmetic, arithmetic_of, gamma


@dataclass(frozen=True, eq=False)
class Projection(Derivative):
    """``g (P v − u (u·v))``, ``P`` the centring where ``centred``, else nothing: symmetric where
    ``u`` is centred, and taken as ``P − u uᵀ`` whatever it is."""

    scale: Tensor
    u: Tensor
    centred: bool

    @property
    def terms(self) -> int:
        return 2 * int(self.u.shape[-1]) + 8

    @property
    def transposed_terms(self) -> int:
        return self.terms

    def apply(self, parts: Sequence[Tensor]) -> Tensor:
        (v,) = parts
        u = self.u[:, None]
        rest = v - v.mean(-1, keepdim=True) if self.centred else v
        return self.scale[:, None] * (rest - u * (u * v).sum(-1, keepdim=True))

    def magnitude(self, parts: Sequence[Tensor]) -> Tensor:
        (v,) = parts
        u = self.u[:, None].abs()
        rest = v + v.mean(-1, keepdim=True) if self.centred else v
        return self.scale[:, None].abs() * (rest + u * (u * v).sum(-1, keepdim=True))

    def transpose(self, form: Tensor) -> tuple[Tensor, ...]:
        return (self.apply([form]),)

    def transpose_magnitude(self, form: Tensor) -> tuple[Tensor, ...]:
        return (self.magnitude([form]),)


@dataclass(frozen=True, eq=False)
class Normalise(Joint):
    """``c x̃ / (‖x̃‖² + e)^½`` along the last axis.

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
        return self.shape

    @property
    def size(self) -> int:
        return self.shape[-1]

    @property
    def factor(self) -> float:
        return math.sqrt(self.size) if self.mean else 1.0

    def value(self, *values: Tensor) -> Tensor:
        (x,) = values
        x = self._centre(x)
        square = x.square()
        total = square.mean(-1, keepdim=True) if self.mean else square.sum(-1, keepdim=True)
        root = (total + self.epsilon).sqrt()
        return x / (root.clamp(min=self.floor) if self.floor else root)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _lifted(self, x: Tensor) -> Tensor:
        """``(‖x̃‖² + e)^½`` of a centred value."""
        more = self.epsilon * (self.size if self.mean else 1)
        return (x.square().sum(-1, keepdim=True) + more).sqrt()

    def image(self, boxes: Sequence[Box]) -> Box:
        """From the smallest and largest length of the box, and never further than ``c``."""
        ((lower, upper),) = boxes
        own = arithmetic_of(lower.dtype)
        middle, half = halves_of((lower, upper))
        slack = own.gamma(2 * self.size + 16)
        if self.centred:
            off = slack * (middle.abs().mean(-1, keepdim=True) + middle.abs())
            middle = self._centre(middle)
            half = (half * (1 - 2 / self.size)).clamp(min=0) + half.mean(-1, keepdim=True)
            half = (half + off) * (1 + slack)
        low, high = middle - half, middle + half
        nearest = torch.where((low > 0) | (high < 0), torch.minimum(low.abs(), high.abs()), 0.0)
        least = self._lifted(nearest) * (1 - slack)
        most = self._lifted(torch.maximum(low.abs(), high.abs())) * (1 + slack)
        # Each value lies below the length that it is a part of.
        ends = torch.stack([low / least, low / most, high / least, high / most]) * self.factor
        wide = slack * ends.abs() + own.tiny
        low, high = finite_or_all((ends - wide).amin(0), (ends + wide).amax(0))
        bound = self.factor * (1 + 4 * own.unit)
        unknown = self._unknown(least)
        low = torch.where(unknown, -torch.inf, low.clamp(min=-bound))
        return low, torch.where(unknown, torch.inf, high.clamp(max=bound))

    def _unknown(self, least: Tensor) -> Tensor:
        """Where a length of at least this may be 0 or below the floor."""
        floor = self.floor * (self.factor if self.mean else 1.0)
        return ~(least > floor * (1 + 1e-6))

    def derivative(self, anchors: Sequence[Tensor]) -> Derivative:
        x = self._centre(anchors[0])
        length = self._lifted(x)
        return Projection(self.factor / length, x / length, self.centred)

    def bend(self, anchors: Sequence[Tensor], ways: Sequence[Tensor]) -> Tensor:
        (way,), x = ways, self._centre(anchors[0])
        own = own_unit(way)
        length = self._lifted(x)
        slack = gamma(2 * self.size + 16, own)
        distance = way.square().sum(-1, keepdim=True).sqrt() * (1 + slack)
        u = x.abs() / length
        # The computed u is not quite the real one.
        share = self._share(anchors[0])
        turned = torch.minimum((u * way).sum(-1, keepdim=True), distance) * (1 + 2 * slack)
        turned = turned + share * distance
        least = length * (1 - slack) - turned
        moved = way
        if self.centred:
            moved = (way * (1 - 2 / self.size)).clamp(min=0) + way.mean(-1, keepdim=True)
        longer = turned + distance.square() / (2 * least)
        large = x.abs() + share * length
        found = large * distance.square() / least.pow(3) + moved * longer / (least * length)
        # The numbers of the map itself: of u, relatively to its own length.
        found = self.factor * (found + 4 * share * distance * (1 + u) / length)
        return torch.where(self._unknown(least), torch.inf, found)

    def _share(self, x: Tensor) -> Tensor:
        """How far the computed ``u`` may be from the real one: what the mean's rounding makes of
        large values of little variation, relatively to their length."""
        if not self.centred:
            return torch.zeros_like(x[..., :1])
        lost = 4 * gamma(self.size + 4, own_unit(x)) * x.abs().amax(-1, keepdim=True)
        return lost * math.sqrt(self.size) / self._lifted(self._centre(x))

    @property
    def precision(self) -> float:
        return 8.0 * self.size + 64.0

    def rounding(self, boxes: Sequence[Box], arithmetic: Arithmetic) -> Tensor:
        """By either formula of the variance, ``mean((x − μ)²)`` or ``mean(x²) − μ²``, and with
        ``(x − μ)/s`` or ``x/s − μ/s``."""
        (box,) = boxes
        own = arithmetic_of(box[0].dtype)
        u, n = arithmetic.unit, self.size
        slack = 1 + own.gamma(4 * n + 64)
        share = arithmetic.gamma(n + 4)
        size = size_of(box)
        middle, half = halves_of(box)
        off = torch.zeros_like(size[..., :1])
        width = size
        if self.centred:
            # Of the mean, and the largest distance from it.
            off = share * size.mean(-1, keepdim=True) * slack
            width = self._centre(middle).abs() + half + half.mean(-1, keepdim=True)
            width = width + own.gamma(n + 8) * 2 * size.amax(-1, keepdim=True)
        moved = off + u * (width + off)
        total = width.square().sum(-1, keepdim=True) * slack
        two_pass = (2 * width * moved + moved.square()).sum(-1, keepdim=True)
        two_pass = two_pass + share * (width + moved).square().sum(-1, keepdim=True)
        error = two_pass
        if self.centred:
            squares = size.square().sum(-1, keepdim=True)
            average = size.mean(-1, keepdim=True)
            one_pass = share * squares + n * (2 * average * off + off.square())
            one_pass = one_pass + 4 * u * (squares + n * average.square())
            error = torch.maximum(two_pass, one_pass)
        constant = self.epsilon * (n if self.mean else 1)
        error = (error + 4 * u * (total + constant) + 4 * (n + 1) * arithmetic.tiny) * slack
        low, high = middle - half, middle + half
        if self.centred:
            centre = self._centre(middle)
            wide = half + half.mean(-1, keepdim=True) + own.gamma(n + 8) * 2 * size
            low, high = centre - wide, centre + wide
        nearest = torch.where((low > 0) | (high < 0), torch.minimum(low.abs(), high.abs()), 0.0)
        least = self._lifted(nearest) / slack
        # Of s² a share of at most 1/2: of 1/s no more than that.
        relative = error / least.square() * slack
        value = self.image(boxes)
        result = size_of(value)
        fresh = result * (relative + 8 * u)
        fresh = fresh + self.factor * (moved + 8 * u * (size + size.mean(-1, keepdim=True))) / least
        fresh = fresh * (1 + relative) * slack + 4 * arithmetic.tiny * (1 + result)
        known = (relative <= 0.5) & ~self._unknown(least)
        most = torch.maximum(4 * size.square().sum(-1, keepdim=True), 4 * result)
        most = torch.maximum(most, 4 * self.factor / least)
        return guarded(torch.where(known, fresh, torch.inf), most, arithmetic)
