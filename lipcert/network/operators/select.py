"""Everything that only moves values: reshape, transpose, slice, gather, split, zero padding.

One operator stands for them all: each output is one input, or the constant 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.operators.base import Operator, Shape


@dataclass(frozen=True, eq=False, repr=False)
class Select(Operator):
    """``out_o = v_{index(o)}``, or 0 where ``index(o) = −1``.

    ``index`` is a flat int64 tensor of ``prod(out_shape)`` places in the flattened input.
    ``A`` has one 1 a row at most, so ``A = |A| = A∘A`` and nothing is rounded; where an input is
    read several times (overlapping pooling windows), the transpose sums.
    """

    index: Tensor

    @classmethod
    def of(cls, index: Tensor, in_shape: Shape) -> Select:
        """``index`` has the shape of the output."""
        size = math.prod(in_shape)
        flat = index.reshape(-1).to(torch.int64)
        if flat.numel() and (int(flat.min()) < -1 or int(flat.max()) >= size):
            raise ValueError(f"an index outside an input of {size} values")
        return cls(in_shape, tuple(index.shape), None, flat)

    @classmethod
    def reshape(cls, in_shape: Shape, out_shape: Shape) -> Select:
        return cls.of(torch.arange(math.prod(in_shape)).reshape(out_shape), in_shape)

    def entries(self) -> None:
        return None

    @cached_property
    def is_reshape(self) -> bool:
        """Whether every value stays in its place and only the shape changes."""
        size = math.prod(self.in_shape)
        order = torch.arange(size, device=self.index.device)
        return self.index.numel() == size and bool((self.index == order).all())

    @cached_property
    def multiplicity(self) -> int:
        """How often the most-read input is read; ``‖A‖₂`` is its square root."""
        read = self.index[self.index >= 0]
        return int(torch.bincount(read).max()) if read.numel() else 0

    @cached_property
    def _places(self) -> _Places:
        return _Places.of(self.index)

    @cached_property
    def _inverse(self) -> _Places | None:
        """Which output reads each input, −1 for none; None if some input is read twice."""
        if self.multiplicity > 1:
            return None
        inverse = torch.full((math.prod(self.in_shape),), -1, device=self.index.device)
        outputs = (self.index >= 0).nonzero().flatten()
        inverse[self.index[outputs]] = outputs
        return _Places.of(inverse)

    def _forward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        flat = v.reshape(len(v), math.prod(self.in_shape))
        flat = flat if self.is_reshape else self._places.gather(flat)
        return flat.reshape(-1, *self.out_shape)

    def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        flat = v.reshape(len(v), math.prod(self.out_shape))
        if self.is_reshape:
            out = flat
        elif self._inverse is not None:
            out = self._inverse.gather(flat)
        else:
            read = (self.index >= 0).nonzero().flatten()
            out = flat.new_zeros(flat.shape[0], math.prod(self.in_shape))
            out = out.index_add(1, self.index[read], flat[:, read])
        return out.reshape(-1, *self.in_shape)

    @property
    def terms(self) -> int:
        return 0

    @property
    def transposed_terms(self) -> int:
        return 0 if self.multiplicity <= 1 else self.multiplicity

    @property
    def roundings(self) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass(frozen=True, eq=False)
class _Places:
    """Where values come from, −1 for the constant 0. ``run``: where all that come lie one behind
    the other, as in a concatenation or a slice, the first place that is read, how many, and how
    many zeros are before and behind them; None elsewhere."""

    shifted: Tensor
    run: tuple[int, int, int, int] | None

    @classmethod
    def of(cls, index: Tensor) -> _Places:
        return cls(index + 1, _run(index))

    def gather(self, flat: Tensor) -> Tensor:
        """``flat[:, index]`` with 0 where the index is −1."""
        if self.run is None:
            return F.pad(flat, (1, 0))[:, self.shifted]
        first, count, before, behind = self.run
        # One copy, several times as fast as places by number.
        return F.pad(flat[:, first : first + count], (before, behind))


def _run(index: Tensor) -> tuple[int, int, int, int] | None:
    outputs = (index >= 0).nonzero().flatten()
    if not outputs.numel():
        return None
    before, count, first = int(outputs[0]), len(outputs), int(index[outputs[0]])
    steps = torch.arange(count, device=index.device)
    if not bool((outputs - before == steps).all() & (index[outputs] - first == steps).all()):
        return None
    return first, count, before, len(index) - before - count
