"""Scales that a runtime merges with the weights before or behind them, or applies later.

``s (W x)`` may be computed as ``(s W) x`` and the other way round. That rounds no more than a sum
of products has room for (see ``lipcert.bounds.rounding_sweep``), but another number may leave the
range of the format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.operators import Operator
from lipcert.numbers import OUT64
from lipcert.rounding import Arithmetic, rounded_up


@dataclass(frozen=True, eq=False)
class Scaled:
    """What could come up where scales since the last activation or sum are merged with weights, or
    wait until later: no value is larger than ``most`` ``(B,)``, no weight than ``weight``; and a
    weight that underflows is multiplied with at most ``source`` ``(B,)``, in sums of ``terms``.

    ``weights``: how many steps have any; ``scales``: how many of them are scales.
    """

    most: Tensor
    source: Tensor
    weight: float = 1.0
    terms: int = 1
    weights: int = 0
    scales: int = 0

    @classmethod
    def start(cls, size: Tensor) -> Scaled:
        """From the values themselves, that are at most so large."""
        peak = size.flatten(1).amax(1)
        return cls(peak, peak)

    @property
    def merges(self) -> bool:
        """Whether there is a scale, and something to merge it with."""
        return bool(self.scales) and self.weights > 1

    def through(self, operator: Operator, rows: Tensor, size: Tensor) -> Scaled:
        """Behind an operator with these norms of its rows, of values of this ``size``."""
        entries, bias = operator.entries(), operator.bias_magnitude()
        heaviest, scale = max(1.0, operator.heaviest), operator.is_elementwise
        length = OUT64.times(rows.amax().double(), OUT64.up(math.sqrt(operator.terms), 1))
        widest = heaviest if scale else rounded_up(length.clamp(min=1.0), self.most.dtype)
        shift = rounded_up(bias.amax(), self.most.dtype) if isinstance(bias, Tensor) else bias
        return Scaled(
            OUT64.add(OUT64.times(self.most, widest), shift),
            torch.maximum(self.source, size.flatten(1).amax(1)),
            OUT64.times(self.weight, heaviest),
            max(self.terms, operator.terms),
            self.weights + (entries is not None),
            self.scales + (scale and entries is not None),
        )

    def times(self, other: Scaled, terms: int) -> Scaled:
        """Of sums of so many products of two values: the scales of either may wait until after
        them, and be merged with one behind them; what underflows then multiplies such a sum."""
        most = OUT64.times(self.most, other.most, float(terms))
        return Scaled(
            most,
            torch.maximum(most, torch.maximum(self.source, other.source)),
            OUT64.times(self.weight, other.weight),
            max(self.terms, other.terms, terms),
            self.weights + other.weights + 1,
            self.scales + other.scales,
        )

    def lost(self, own: Arithmetic) -> Tensor:
        """What weights that underflow once they are merged can take from a value, ``(B,)``;
        infinite where one, or a value whose scale waits until later, could overflow."""
        lost = OUT64.times(self.source, own.tiny, self.terms + 1.0)
        safe = self.most <= min(own.largest, own.accumulator.largest) / 4
        safe = safe & (self.weight <= own.largest / 4)
        return torch.where(safe, lost, torch.inf)
