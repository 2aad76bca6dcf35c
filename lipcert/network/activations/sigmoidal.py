"""Sigmoid, tanh and erf: increasing S-curves in [−1, 1], convex before 0 and concave after it.

A computed value is taken to be off by at most 8 units of roundoff of 1, the bound that libraries
keep for these functions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lipcert.network.activations.pieces import Jet, Piece
from lipcert.network.activations.smooth import Smooth


class Sigmoidal(Smooth):
    """An S-curve with an even slope, largest at 0."""

    @property
    @abstractmethod
    def bend(self) -> float:
        """The place ``z > 0`` of the largest ``|σ''|``."""

    def pieces(self) -> Sequence[Piece]:
        return (
            Piece(-math.inf, 0.0, True, -self.bend, self.jet),
            Piece(0.0, math.inf, False, self.bend, self.jet),
        )

    @property
    def rounding(self) -> tuple[float, float, float]:
        return 0.0, 8.0, 0.0

    @property
    def slope_rounding(self) -> tuple[float, float]:
        return 16.0, 0.0


class Sigmoid(Sigmoidal):
    """``1 / (1 + exp(−z))``."""

    bend = math.log(2 + math.sqrt(3))
    lipschitz = 0.25

    def value(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def jet(self, z: Tensor) -> Jet:
        decay = torch.exp(-z.abs())
        value, slope = torch.sigmoid(z), decay / (1 + decay).square()
        return value, slope, slope * (1 - 2 * value)


class Tanh(Sigmoidal):
    """``tanh(z)``."""

    bend = math.log(2 + math.sqrt(3)) / 2
    lipschitz = 1.0

    def value(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def jet(self, z: Tensor) -> Jet:
        decay = torch.exp(-2 * z.abs())
        slope = 4 * decay / (1 + decay).square()
        value = torch.tanh(z)
        return value, slope, -2 * value * slope


class Erf(Sigmoidal):
    """``erf(z) = 2/√π ∫₀ᶻ exp(−t²) dt``."""

    bend = math.sqrt(0.5)

    def value(self, z: Tensor) -> Tensor:
        return torch.erf(z)

    @property
    def slope_rounding(self) -> tuple[float, float]:
        # The square in the exponent is rounded before its exponential.
        return 16.0, 16.0

    def jet(self, z: Tensor) -> Jet:
        slope = 2 / math.sqrt(math.pi) * torch.exp(-z.square())
        # Infinity times 0.
        return torch.erf(z), slope, -2 * z.clamp(-1e3, 1e3) * slope
