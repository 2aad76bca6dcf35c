"""Curved pieces that smooth activations are made of, and a search along them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The value, its derivative and its second derivative.
Jet = tuple[Tensor, Tensor, Tensor]

# Further out every slope has its limit to the last bit.
FAR = 1000.0


@dataclass(frozen=True)
class Piece:
    """``σ`` between ``start`` and ``end``, where ``σ''`` keeps its sign; ``|σ''|`` rises up to
    ``peak`` and falls after it. ``jet`` is ``(σ, σ', σ'')``, of this side at the piece's ends."""

    start: float
    end: float
    convex: bool
    peak: float
    jet: Callable[[Tensor], Jet]
    linear: bool = False

    def within(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The piece's part of a box; its ends cross where it has none."""
        return lower.clamp(min=self.start), upper.clamp(max=self.end)


def identity(z: Tensor) -> Jet:
    """The jet of a piece that is ``z`` itself."""
    return z, torch.ones_like(z), torch.zeros_like(z)


def search(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    low: Tensor,
    high: Tensor,
    steps: int,
) -> Tensor:
    """Near a zero of a function that rises from ``low`` to ``high``, given with its derivative:
    Newton's steps as long as they stay between the ends, which close in, else halves."""
    place = start
    for _ in range(steps):
        value, steep = function(place)
        low = torch.where(value < 0, place, low)
        high = torch.where(value > 0, place, high)
        step = place - value / steep
        inside = (step - low) * (step - high) <= 0
        place = torch.where(inside, step, (low + high) / 2)
    return place
