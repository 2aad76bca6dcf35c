"""Softened ReLU: softplus and ELU, and by scaling CELU and SELU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.pieces import Jet, Piece, identity
from lipcert.network.activations.smooth import Smooth


class Softplus(Smooth):
    """``log(1 + exp(z))``, convex.

    Torch's own takes ``z`` itself beyond 20, which is off by ``2e-9``: less than a float32
    rounding there.
    """

    lipschitz = 1.0

    def jet(self, z: Tensor) -> Jet:
        decay = torch.exp(-z.abs())
        rest = 1 / (1 + decay)
        slope = torch.where(z >= 0, rest, decay * rest)
        return z.clamp(min=0) + torch.log1p(decay), slope, decay * rest.square()

    def value(self, z: Tensor) -> Tensor:
        return z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))

    def pieces(self) -> Sequence[Piece]:
        return (Piece(-math.inf, math.inf, True, 0.0, self.jet),)

    @property
    def rounding(self) -> tuple[float, float, float]:
        # Many libraries take log(1 + exp(z)) as it is written.
        return 8.0, 9.0, 0.0

    @property
    def slope_rounding(self) -> tuple[float, float]:
        return 16.0, 0.0


@dataclass(frozen=True, eq=False)
class Elu(Smooth):
    """``z`` where ``z ≥ 0``, else ``alpha (exp(z) − 1)``; ``alpha > 0``, a kink at 0 unless it
    is 1."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha {self.alpha} is not positive")

    @property
    def lipschitz(self) -> float:
        return max(1.0, self.alpha)

    def value(self, z: Tensor) -> Tensor:
        return torch.where(z >= 0, z, self.alpha * torch.expm1(z.clamp(max=0)))

    def jet(self, z: Tensor) -> Jet:
        right = z >= 0
        _, slope, bend = self._left(z)
        return self.value(z), torch.where(right, 1.0, slope), torch.where(right, 0.0, bend)

    def _left(self, z: Tensor) -> Jet:
        z = z.clamp(max=0)
        slope = self.alpha * torch.exp(z)
        return self.alpha * torch.expm1(z), slope, slope

    def pieces(self) -> Sequence[Piece]:
        return (
            Piece(-math.inf, 0.0, True, 0.0, self._left),
            Piece(0.0, math.inf, True, 0.0, identity, linear=True),
        )

    @property
    def kinks(self) -> Sequence[float]:
        return () if self.alpha == 1 else (0.0,)

    @property
    def rounding(self) -> tuple[float, float, float]:
        # Many libraries take exp(z) − 1 as it is written.
        return 8.0, 8.0 * self.alpha, 0.0

    @property
    def slope_rounding(self) -> tuple[float, float]:
        return 8.0, 0.0
