"""Activations that compare neurons: MaxMin, sorting, and the maximum of a group, as pooling has it.

Sorting a group never moves it further than its inputs moved: both have L2 gain 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.base import Activation
from lipcert.network.operators.base import Shape


@dataclass(frozen=True, eq=False)
class MaxMin(Activation):
    """Halves ``(a, b)`` along ``axis`` of a sample become ``(max(a, b), min(a, b))``; the last
    ``passing`` values along it are in no half, and stay as they are.

    Never constant, as in the paper. Clipped MaxMin is this followed by ``Clip`` with
    ``upper = θ⁺`` on the first half and ``lower = θ⁻`` on the second.

    ``spelling``: where a file writes it out with arithmetic, what that rounds at most, in units of
    the format's roundoff times the larger magnitude of a pair; 0 for a comparison. ``additions``:
    how many a value then has behind it, that others may be merged into.
    """

    axis: int
    spelling: float = 0.0
    additions: float = 0.0
    passing: int = 0

    def out_shape(self, in_shape: Shape) -> Shape:
        compared = in_shape[self.axis] - self.passing if 0 <= self.axis < len(in_shape) else -1
        if compared < 0 or compared % 2:
            raise ValueError(f"axis {self.axis} of {list(in_shape)} has no two halves")
        return in_shape

    def parts(self, z: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Both halves along an axis of a tensor, and what passes."""
        half = (z.shape[axis] - self.passing) // 2
        first, second = z.narrow(axis, 0, half), z.narrow(axis, half, half)
        return first, second, z.narrow(axis, 2 * half, self.passing)

    def value(self, z: Tensor) -> Tensor:
        first, second, rest = self.parts(z, self.axis + 1)
        both = torch.maximum(first, second), torch.minimum(first, second)
        return torch.cat([*both, rest], dim=self.axis + 1)

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(lower), self.value(upper)

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower)

    def varying(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower, dtype=torch.bool)

    def perturbation(self, lower: Tensor, upper: Tensor, error: Tensor) -> Tensor:
        first, second, rest = self.parts(error, self.axis + 1)
        larger = torch.maximum(first, second)
        return torch.cat([larger, larger, rest], dim=self.axis + 1)

    def pull_back(
        self, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``Δmax = α Δa + (1 − α) Δb`` and ``Δmin = (1 − α) Δa + α Δb`` for some α in [0, 1]:
        0 or 1 where one half is surely the larger, else each coefficient lies between both."""
        axis = self.axis + 1
        below_a, below_b, _ = self.parts(lower, axis)
        above_a, above_b, _ = self.parts(upper, axis)
        first, second = below_a >= above_b, below_b >= above_a
        sides = []
        for side, either in ((low, torch.minimum), (high, torch.maximum)):
            larger, smaller, rest = self.parts(side, axis)
            both = either(larger, smaller)
            a = torch.where(first, larger, torch.where(second, smaller, both))
            b = torch.where(first, smaller, torch.where(second, larger, both))
            sides.append(torch.cat([a, b, rest], axis))
        return sides[0], sides[1]

    @property
    def lipschitz(self) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class GroupMax(Activation):
    """The maximum over the last axis of a sample, which it drops.

    An input whose upper bound does not pass the largest lower bound of its group never matters.
    """

    def out_shape(self, in_shape: Shape) -> Shape:
        return in_shape[:-1]

    def value(self, z: Tensor) -> Tensor:
        return z.amax(-1)

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return lower.amax(-1), upper.amax(-1)

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self.varying(lower, upper).any(-1).to(lower.dtype)

    def varying(self, lower: Tensor, upper: Tensor) -> Tensor:
        return ~(upper <= lower.amax(-1, keepdim=True))

    def perturbation(self, lower: Tensor, upper: Tensor, error: Tensor) -> Tensor:
        return error.amax(-1)

    def pull_back(
        self, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``Δmax`` is a mean of the changes of the inputs that matter, weighted somehow."""
        varying = self.varying(lower, upper)
        alone = varying & (varying.sum(-1, keepdim=True) == 1)
        alone = alone & (lower >= lower.amax(-1, keepdim=True))
        low, high = low[..., None], high[..., None]
        least = torch.where(alone, low, low.clamp(max=0))
        most = torch.where(alone, high, high.clamp(min=0))
        return torch.where(varying, least, 0), torch.where(varying, most, 0)

    @property
    def lipschitz(self) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class GroupSort(Activation):
    """The last axis of a sample, sorted from the largest value to the smallest.

    Of two points each sorted value differs by no more than the largest difference of the group.
    """

    def value(self, z: Tensor) -> Tensor:
        return z.sort(-1, descending=True).values

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(lower), self.value(upper)

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower)

    def varying(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower, dtype=torch.bool)

    def perturbation(self, lower: Tensor, upper: Tensor, error: Tensor) -> Tensor:
        return error.amax(-1, keepdim=True).expand_as(error)

    def pull_back(
        self, lower: Tensor, upper: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``Δσ = P Δz`` with a mean ``P`` of permutations, those met on the way: each column of it
        adds up to 1, so that a coefficient is a mean of those of the group."""
        least, most = low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
        return least.expand_as(low), most.expand_as(high)

    @property
    def lipschitz(self) -> float:
        return 1.0
