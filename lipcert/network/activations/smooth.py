"""Smooth increasing activations whose slope falls away from 0: sigmoid and tanh.

The gain over a box is the slope at its point nearest to 0. A computed value is taken to be off
by at most 8 units of roundoff of 1, the bound that libraries keep for these functions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.base import Elementwise

_LIBRARY_ROUNDINGS = 8.0


@dataclass(frozen=True, eq=False)
class Sigmoidal(Elementwise):
    """An increasing function with values in [−1, 1] and an even slope, largest at 0."""

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """``σ'(z)``, computed without cancellation."""

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        slack = _LIBRARY_ROUNDINGS * torch.finfo(lower.dtype).eps
        return self.value(lower) - slack, self.value(upper) + slack

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        nearest = torch.clamp(torch.zeros_like(lower), min=lower, max=upper)
        slack = 1 + 2 * _LIBRARY_ROUNDINGS * torch.finfo(lower.dtype).eps
        # Far out the slope underflows; the smallest normal number is still above it.
        tiny = torch.finfo(lower.dtype).tiny
        return torch.where(nearest.isnan(), self.lipschitz, self.slope(nearest) * slack + tiny)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        slack = 1 - 2 * _LIBRARY_ROUNDINGS * torch.finfo(lower.dtype).eps
        return torch.minimum(self.slope(lower), self.slope(upper)) * slack, self.gain(lower, upper)

    @property
    @abstractmethod
    def curvature(self) -> float:
        """An upper bound of ``|σ''|``."""

    def derivative(self, z: Tensor) -> Tensor:
        return self.slope(z)

    def secant(self, lower: Tensor, upper: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """The steepest slope in the box from above; from below the secants to its two ends, since
        on its way out a secant of an S first steepens and then flattens."""
        unit = torch.finfo(lower.dtype).eps
        slopes = torch.minimum(self.slope(lower), self.slope(upper))
        least = slopes * (1 - 2 * _LIBRARY_ROUNDINGS * unit)
        ends = []
        for end in (lower, upper):
            way = (end - anchor).abs()
            far = way > 1e-3
            rise = (self.value(end) - self.value(anchor)).abs() - 4 * _LIBRARY_ROUNDINGS * unit
            ends.append(torch.where(far, rise / torch.where(far, way, 1), least))
        return torch.maximum(least, torch.minimum(*ends)), self.gain(lower, upper)

    def relaxed_minimum(
        self,
        coefficient: Tensor,
        slope: Tensor,
        multiplier: Tensor,
        anchor: Tensor,
        lower: Tensor,
        upper: Tensor,
    ) -> Tensor:
        """The larger of two lower bounds: the cone of the secants, and the tangent with the most
        that the curvature can bend away from it."""
        low, high = lower - anchor, upper - anchor
        flat, steep = self.secant(lower, upper, anchor)
        one, two = coefficient * (flat - slope), coefficient * (steep - slope)
        cone = torch.minimum(
            _parabola(torch.minimum(one, two), multiplier, torch.zeros_like(high), high),
            _parabola(torch.maximum(one, two), multiplier, low, torch.zeros_like(low)),
        )
        tilt = coefficient * (self.slope(anchor) - slope)
        bend = multiplier - coefficient.abs() * self.curvature / 2
        return torch.maximum(cone, _parabola(tilt, bend, low, high))

    @property
    def rounding(self) -> tuple[float, float]:
        return 0.0, _LIBRARY_ROUNDINGS


def _parabola(tilt: Tensor, bend: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``min of a d + b d²`` over ``low ≤ d ≤ high``, for either sign of b."""
    ends = torch.minimum(tilt * low + bend * low.square(), tilt * high + bend * high.square())
    convex = bend > 0
    vertex = -tilt / (2 * torch.where(convex, bend, 1))
    inside = torch.minimum(torch.maximum(vertex, low), high)
    return torch.where(convex, torch.minimum(tilt * inside + bend * inside.square(), ends), ends)


class Sigmoid(Sigmoidal):
    """``1 / (1 + exp(−z))``."""

    def value(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def slope(self, z: Tensor) -> Tensor:
        decay = torch.exp(-z.abs())
        return decay / (1 + decay).square()

    @property
    def curvature(self) -> float:
        return 0.09623  # 1 / (6 √3)

    @property
    def lipschitz(self) -> float:
        return 0.25


class Tanh(Sigmoidal):
    """``tanh(z)``."""

    def value(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def slope(self, z: Tensor) -> Tensor:
        decay = torch.exp(-2 * z.abs())
        return 4 * decay / (1 + decay).square()

    @property
    def curvature(self) -> float:
        return 0.7699  # 4 / (3 √3)

    @property
    def lipschitz(self) -> float:
        return 1.0
