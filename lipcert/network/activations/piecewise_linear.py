"""Element-wise piecewise linear activations.

``Clip`` is ReLU, ReLU-θ, ReLU6, hard tanh, and Min or Max with a constant; ``PReLU`` is leaky ReLU
and the absolute value.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipcert.network.activations.base import Elementwise, Relaxation

Number = Tensor | float
Line = tuple[Number, Number, Number, Number]


@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Elementwise):
    """Straight pieces between kinks: on each the relaxed term is a parabola, whose vertex, clamped
    to the piece, is its minimum."""

    @abstractmethod
    def pieces(self) -> list[Line]:
        """``(from, to, slope, intercept)``, left to right: ``σ(z) = slope z + intercept`` there."""

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the pieces that the box meets; NaN meets all of them."""
        flat, steep = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
        for start, end, slope, _ in self.pieces():
            here = ~(upper <= start) & ~(lower >= end)
            flat = torch.where(here, torch.minimum(flat, torch.as_tensor(slope)), flat)
            steep = torch.where(here, torch.maximum(steep, torch.as_tensor(slope)), steep)
        # A box of one point, at a kink, has no slope.
        met = flat <= steep
        return torch.where(met, flat, 0), torch.where(met, steep, 0)

    def relaxed_minimum(
        self,
        coefficient: Tensor,
        slope: Tensor,
        multiplier: Tensor,
        anchor: Tensor,
        lower: Tensor,
        upper: Tensor,
    ) -> Tensor:
        parts = self._parts(anchor, lower, upper)
        rise, change = _lowest(parts, coefficient, coefficient * slope, multiplier)
        return coefficient * (rise - slope * change) + multiplier * change.square()

    def relaxation(
        self, anchor: Tensor, lower: Tensor, upper: Tensor, varying: Tensor
    ) -> Relaxation:
        parts = [part.masked(varying) for part in self._parts(anchor, lower, upper)]

        def relax(coefficient: Tensor, slope: Tensor, multiplier: Tensor) -> tuple[Tensor, Tensor]:
            if not parts[0].follows:
                found: tuple[Tensor, Tensor] = _Relaxed.apply(  # type: ignore[no-untyped-call]
                    coefficient, slope, multiplier, parts
                )
                return found
            passed = coefficient * slope
            rise, change = _lowest(parts, coefficient, passed, multiplier)
            terms = coefficient * rise + change * (multiplier * change - passed)
            return passed, terms.flatten(1).sum(1)

        return relax

    def _parts(self, anchor: Tensor, lower: Tensor, upper: Tensor) -> list[Part]:
        """What of the box lies on each piece, as seen from the anchor."""
        at_anchor, parts = self.value(anchor), []
        for start, end, steepness, intercept in self.pieces():
            left = torch.maximum(lower, torch.as_tensor(start, dtype=lower.dtype))
            right = torch.minimum(upper, torch.as_tensor(end, dtype=upper.dtype))
            offset = steepness * anchor + intercept - at_anchor
            low, high, offset = (
                torch.where(left <= right, t, 0) for t in (left - anchor, right - anchor, offset)
            )
            penalty = torch.zeros_like(offset).masked_fill(~(left <= right), torch.inf)
            parts.append(Part(low, high, steepness, offset, penalty))
        # A box of no numbers meets no piece: nothing is known of it.
        nothing = torch.stack([part.penalty for part in parts]).amin(0) > 0
        parts[0].offset.masked_fill_(nothing, torch.nan)
        return parts


@dataclass(frozen=True, eq=False)
class Part:
    """``Δσ = steepness Δz + offset`` for ``low ≤ Δz ≤ high``; ``penalty`` is infinite where the box
    does not meet the piece, else 0."""

    low: Tensor
    high: Tensor
    steepness: Number
    offset: Tensor
    penalty: Tensor

    @property
    def follows(self) -> bool:
        """Whether autograd follows the box."""
        return self.low.requires_grad

    def masked(self, varying: Tensor) -> Part:
        """``Δz = Δσ = 0`` where nothing varies."""
        low, high, offset, penalty = (
            torch.where(varying != 0, t, 0)
            for t in (self.low, self.high, self.offset, self.penalty)
        )
        return Part(low, high, self.steepness, offset, penalty)


def _lowest(
    parts: list[Part], coefficient: Tensor, passed: Tensor, multiplier: Tensor
) -> tuple[Tensor, Tensor]:
    """``Δσ`` and ``Δz`` where ``A Δσ − A c Δz + λ Δz²`` is least; ``passed`` is ``A c``.

    No gradient goes through the place but where the box has one: at a minimum the derivative by the
    place is 0, or the place is the end of a part.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and parts[0].follows):
        places, values = _places(parts, coefficient, passed, multiplier)
        return _taken(parts, places, values)


class _Relaxed(torch.autograd.Function):
    """``A c``, and ``Σ_k A Δσ − A c Δz + λ Δz²`` where each term is least.

    The place is held, as in ``_lowest``, so that the gradient of the sum is ``Δσ − c Δz`` by ``A``,
    ``−A Δz`` by ``c`` and ``Σ_k Δz²`` by ``λ``: places are only chosen where it is asked for.
    """

    @staticmethod
    def forward(
        ctx: Any, coefficient: Tensor, slope: Tensor, multiplier: Tensor, parts: list[Part]
    ) -> tuple[Tensor, Tensor]:
        passed = coefficient * slope
        places, values = _places(parts, coefficient, passed, multiplier)
        ctx.parts, ctx.shape = parts, multiplier.shape
        ctx.save_for_backward(coefficient, slope, *places, *values)
        # A value that is no number is less than any.
        least = values[0]
        for value in values[1:]:
            least = torch.minimum(least, value)
        return passed, least.flatten(1).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, passed: Tensor, least: Tensor) -> tuple[Tensor | None, ...]:
        coefficient, slope, *others = ctx.saved_tensors
        places, values = others[: len(ctx.parts)], others[len(ctx.parts) :]
        rise, change = _taken(ctx.parts, places, values)
        by_coefficient, by_slope, by_multiplier, _ = ctx.needs_input_grad
        wide = least.reshape(-1, *(1,) * (change.dim() - 1))
        along = torch.addcmul(passed, wide, change, value=-1)
        spent = change.square().flatten(1).sum(1) if by_multiplier else least
        return (
            torch.addcmul(along * slope, wide, rise) if by_coefficient else None,
            (along * coefficient).sum_to_size(slope.shape) if by_slope else None,
            (least * spent).reshape(ctx.shape) if by_multiplier else None,
            None,
        )


def _places(
    parts: list[Part], coefficient: Tensor, passed: Tensor, multiplier: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """``Δz`` on every part where ``A Δσ − A c Δz + λ Δz²`` is least there, and what it is there:
    ``A offset + Δz (λ Δz + A (steepness − c))``, infinite where the box does not meet the part."""
    back, half = -passed, -0.5 / multiplier
    places, values = [], []
    for part in parts:
        tilt = _plus(back, coefficient, part.steepness)
        vertex = tilt * half
        clamp = vertex.clamp if part.follows else vertex.clamp_
        place = clamp(min=part.low, max=part.high)
        with torch.no_grad():
            start = torch.addcmul(part.penalty, coefficient, part.offset)
            values.append(torch.addcmul(start, place, torch.addcmul(tilt, place, multiplier)))
        places.append(place)
    return places, values


def _taken(parts: list[Part], places: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``Δσ`` and ``Δz`` on the part of the least value. Interpolation chooses: at either end it is
    exact, and a place that is no number stays none, whichever part it is on."""
    rises = [
        _plus(part.offset, place, part.steepness) for part, place in zip(parts, places, strict=True)
    ]
    rise, change, best = rises[0], places[0], values[0]
    for there, place, value in zip(rises[1:], places[1:], values[1:], strict=True):
        better = (value < best).to(value)
        best = torch.minimum(best, value)
        rise, change = torch.lerp(rise, there, better), torch.lerp(change, place, better)
    return rise, change


def _plus(one: Tensor, other: Tensor, factor: Number) -> Tensor:
    """``one + factor · other``."""
    if isinstance(factor, float):
        return torch.add(one, other, alpha=factor) if factor else one
    return torch.addcmul(one, other, factor)


def _ratio(above: Tensor, below: Tensor, instead: Tensor) -> Tensor:
    """``above / below``, and ``instead`` where both ends are one point."""
    apart = below != 0
    return torch.where(apart, above / torch.where(apart, below, 1), instead)


@dataclass(frozen=True, eq=False)
class Clip(PiecewiseLinear):
    """``min(max(z, lower), upper)``; each limit a tensor that broadcasts, or None for no limit.

    Constant over a box with ``u ≤ lower`` or ``l ≥ upper``, else its gain is 1: the indicators
    of the paper for ReLU (lower 0) and ReLU-θ (lower 0, upper θ).
    """

    lower: Tensor | None
    upper: Tensor | None

    def value(self, z: Tensor) -> Tensor:
        if self.lower is not None:
            z = torch.maximum(z, self.lower)
        if self.upper is not None:
            z = torch.minimum(z, self.upper)
        return z

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(lower), self.value(upper)

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        constant = torch.zeros_like(lower, dtype=torch.bool)
        if self.lower is not None:
            constant = constant | (upper <= self.lower)
        if self.upper is not None:
            constant = constant | (lower >= self.upper)
        return (~constant).to(lower.dtype)

    @property
    def lipschitz(self) -> float:
        return 1.0

    def derivative(self, z: Tensor) -> Tensor:
        return self.gain(z, z)

    def pieces(self) -> list[Line]:
        low = -torch.inf if self.lower is None else self.lower
        high = torch.inf if self.upper is None else self.upper
        if self.lower is not None and self.upper is not None:
            # Of limits that cross, the upper one is the value everywhere.
            low = torch.minimum(self.lower, self.upper)
        middle: list[Line] = [(low, high, 1.0, 0.0)]
        before: list[Line] = [] if self.lower is None else [(-torch.inf, low, 0.0, low)]
        after: list[Line] = [] if self.upper is None else [(high, torch.inf, 0.0, high)]
        return before + middle + after

    def secant(self, lower: Tensor, upper: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """A clip is first flat, then 1, then flat. From a point with slope 1 the secant is flattest
        towards the ends of the box, from a flat one steepest towards its far kink, or the end that
        comes first; the other extreme is the slope at the point itself."""
        at_anchor, own = self.value(anchor), self.derivative(anchor)

        def towards(point: Tensor) -> Tensor:
            return _ratio(self.value(point) - at_anchor, point - anchor, own)

        if self.upper is None or self.lower is None:
            far, near = (lower, upper) if self.upper is None else (upper, lower)
            slopes = [towards(torch.where(own > 0, far, near))]
        else:
            low, high = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
            kink = torch.where(anchor <= low, high, low)
            kink = torch.minimum(torch.maximum(kink, lower), upper)
            slopes = [towards(torch.where(own > 0, end, kink)) for end in (lower, upper)]
        flat = steep = own
        for slope in slopes:
            flat, steep = torch.minimum(flat, slope), torch.maximum(steep, slope)
        slack = 8 * torch.finfo(lower.dtype).eps
        return flat - slack, (steep + slack).clamp(max=1)


@dataclass(frozen=True, eq=False)
class PReLU(PiecewiseLinear):
    """``z`` where ``z ≥ 0``, else ``slope · z``; the slope broadcasts. Slope −1 is ``|z|``."""

    slope: Tensor

    def value(self, z: Tensor) -> Tensor:
        return torch.where(z >= 0, z, self.slope * z)

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        at_lower, at_upper = self.value(lower), self.value(upper)
        low, high = torch.minimum(at_lower, at_upper), torch.maximum(at_lower, at_upper)
        # A negative slope has its minimum at the kink.
        kink = (lower < 0) & (upper > 0)
        return torch.where(kink, low.clamp(max=0), low), high

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        zero = torch.zeros_like(lower)
        left = torch.where(lower >= 0, zero, self.slope.abs().expand_as(lower))
        right = torch.where(upper <= 0, zero, torch.ones_like(upper))
        return torch.maximum(left, right)

    @property
    def lipschitz(self) -> float:
        return max(1.0, float(self.slope.abs().max()))

    def derivative(self, z: Tensor) -> Tensor:
        return torch.where(z >= 0, torch.ones_like(z), self.slope)

    def pieces(self) -> list[Line]:
        return [(-torch.inf, 0.0, self.slope, 0.0), (0.0, torch.inf, 1.0, 0.0)]

    def secant(self, lower: Tensor, upper: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """Towards a point beyond the kink the secant mixes the two slopes, by the share of the way
        that lies beyond it; the share is largest at the end of the box."""
        right = anchor >= 0
        end = torch.where(right, lower.clamp(max=0), upper.clamp(min=0))
        share = _ratio(end, end - anchor, torch.zeros_like(end))
        own, other = self.derivative(anchor), torch.where(right, self.slope, 1.0)
        mixed = (1 - share) * own + share * other
        # At the kink itself both slopes are met at once.
        mixed = torch.where((anchor == 0) & (lower < 0), self.slope, mixed)
        slack = 8 * torch.finfo(lower.dtype).eps * (1 + self.slope.abs())
        low, high = torch.minimum(own, mixed), torch.maximum(own, mixed)
        exact = share == 0
        return torch.where(exact, low, low - slack), torch.where(exact, high, high + slack)

    @property
    def rounding(self) -> tuple[float, float, float]:
        return 1.0, 0.0, 0.0


def relu(like: Tensor | None = None) -> Clip:
    """``max(z, 0)``; ``like`` gives the dtype and device."""
    return Clip(torch.zeros((), dtype=torch.float64) if like is None else like.new_zeros(()), None)


def absolute() -> PReLU:
    """``|z|``."""
    return PReLU(torch.tensor(-1.0, dtype=torch.float64))
