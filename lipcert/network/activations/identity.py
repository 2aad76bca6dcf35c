"""The activation that changes nothing: a place where a value's box is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.piecewise_linear import Line, PiecewiseLinear


@dataclass(frozen=True, eq=False)
class Identity(PiecewiseLinear):
    """``z`` itself; its slope is always 1. It stands where ``network.keep`` puts it: bounds keep
    the boxes of what activations read.
    """

    def value(self, z: Tensor) -> Tensor:
        return z

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return lower, upper

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower)

    @property
    def lipschitz(self) -> float:
        return 1.0

    def derivative(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)

    def pieces(self) -> list[Line]:
        return [(-torch.inf, torch.inf, 1.0, 0.0)]

    def secant(self, lower: Tensor, upper: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(anchor)
        return one, one
