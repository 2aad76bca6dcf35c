"""Element-wise piecewise linear activations.

``Clip`` is ReLU, ReLU-θ, ReLU6, hard tanh, and Min or Max with a constant; ``PReLU`` is leaky ReLU
and the absolute value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.base import Elementwise


@dataclass(frozen=True, eq=False)
class Clip(Elementwise):
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


@dataclass(frozen=True, eq=False)
class PReLU(Elementwise):
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

    @property
    def rounding(self) -> tuple[float, float]:
        return 1.0, 0.0


def relu(like: Tensor | None = None) -> Clip:
    """``max(z, 0)``; ``like`` gives the dtype and device."""
    return Clip(torch.zeros((), dtype=torch.float64) if like is None else like.new_zeros(()), None)


def absolute() -> PReLU:
    """``|z|``."""
    return PReLU(torch.tensor(-1.0, dtype=torch.float64))
