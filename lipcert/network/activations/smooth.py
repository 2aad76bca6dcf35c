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

    @property
    def rounding(self) -> tuple[float, float]:
        return 0.0, _LIBRARY_ROUNDINGS


class Sigmoid(Sigmoidal):
    """``1 / (1 + exp(−z))``."""

    def value(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def slope(self, z: Tensor) -> Tensor:
        decay = torch.exp(-z.abs())
        return decay / (1 + decay).square()

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
    def lipschitz(self) -> float:
        return 1.0
