"""Maps whose norms are wanted, one for each sample of a batch, never written down."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network import Network, Segment
from lipcert.norms.scaling import exponent, exponents, power, product
from lipcert.norms.structure import Sizes
from lipcert.norms.sweeps import Sweeps
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64_TINY, gamma

# A map of a size from 2^-64 to 2^64 is taken as it is.
_USUAL = 64


class GramMap(ABC):
    """``M``, known by its Gram map ``G = MᵀM`` or ``MMᵀ`` alone: ``‖M‖² = λ_max(G)``.

    Vectors are ``(P·B, *shape)``: P copies of the batch of B samples in turn.
    """

    @property
    @abstractmethod
    def support(self) -> Tensor:
        """``(B, *shape)``: every ``G v`` vanishes where this is 0."""

    @property
    def batch(self) -> int:
        return self.support.shape[0]

    @property
    @abstractmethod
    def terms(self) -> int:
        """The roundings of one ``gram``: it computes ``G v`` within ``γ_terms |G| |v|``."""

    @abstractmethod
    def gram(self, v: Tensor) -> Tensor:
        """``G v`` for ``v`` on the support."""

    @abstractmethod
    def absolute_gram(self, v: Tensor) -> Tensor:
        """``|G| v`` or more, ``v ≥ 0``, where ``|G|`` multiplies the magnitudes of all parts."""

    @property
    @abstractmethod
    def underflow(self) -> Tensor:
        """``(B,)``: what numbers too small for a sweep take at most from the length of ``G v``,
        divided by ``1 + ‖v‖``."""

    def rounding(self, absolute: Tensor) -> Tensor:
        """``(B,)``: how far a computed ``G v`` is off at most, for each unit of ``‖v‖``, and once
        more a few roundings of ``‖M‖²``; ``absolute`` bounds ``‖ |M| ‖₂``. Without underflow."""
        return gamma(self.terms + 8) * absolute.square()

    @abstractmethod
    def scaled(self, by: Tensor) -> GramMap:
        """The map times ``2^by``, whole numbers ``(B,)``; odd ones may be rounded down."""

    def normalised(self) -> tuple[GramMap, Tensor]:
        """A map that is neither very large nor very small, and the ``by`` ``(B,)`` with which this
        one is ``2^by`` times that one."""
        return self, torch.zeros(self.batch, dtype=torch.int64, device=self.support.device)

    @abstractmethod
    def over(self, network: Network) -> GramMap:
        """The same map over a copy of the network, in its precision."""


@dataclass(frozen=True, eq=False)
class WeightedMap(GramMap):
    """``M = diag(outer) A diag(inner)``: an affine segment between weights.

    The local norms of the method are norms of such maps: ``outer`` ``(B, *out_shape)`` ≥ 0 marks
    the neurons after the segment that vary, ``inner`` ``(B, *in_shape)`` ≥ 0 holds the gains of
    those before it.
    """

    segment: Segment
    inner: Tensor
    outer: Tensor

    @cached_property
    def starts_inside(self) -> bool:
        """Whether the Gram map runs over the inner side, the smaller one."""
        return math.prod(self.segment.in_shape) <= math.prod(self.segment.out_shape)

    @property
    def support(self) -> Tensor:
        """The weights on the Gram map's side."""
        return self.inner if self.starts_inside else self.outer

    @property
    def terms(self) -> int:
        return self.segment.terms + self.segment.transposed_terms + 4

    @cached_property
    def _middle(self) -> Tensor:
        """The squared weights of the other side."""
        return (self.outer if self.starts_inside else self.inner).square()

    @cached_property
    def _is_mask(self) -> bool:
        # Not asked of a device, which would have to be waited for.
        support = self.support
        return support.device.type == "cpu" and bool(((support == 0) | (support == 1)).all())

    def gram(self, v: Tensor) -> Tensor:
        """Weights of 0 and 1 leave a ``v`` on the support as it is: there they are applied once,
        at the end."""
        if not self._is_mask:
            v = times(v, self.support)
        if self.starts_inside:
            out = self.segment.transpose(times(self.segment.apply(v), self._middle))
        else:
            out = self.segment.apply(times(self.segment.transpose(v), self._middle))
        return times(out, self.support)

    def absolute_gram(self, v: Tensor) -> Tensor:
        v = times(v, self.support)
        if self.starts_inside:
            there = self.segment.magnitude(v)
            out = self.segment.transpose_magnitude(times(there, self._middle))
        else:
            there = self.segment.transpose_magnitude(v)
            out = self.segment.magnitude(times(there, self._middle))
        return times(out, self.support)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes.of(self.segment)

    @property
    def underflow(self) -> Tensor:
        """Step by step, of any value: the weights before the sweep lose η of each, which the sweep
        adds up; the sweep loses its own; and so on. The last line turns values into a length."""
        there, back = self._sizes, self._sizes
        inner, outer = (side.double().flatten(1).amax(1) for side in (self.inner, self.outer))
        tiny, size = FLOAT64_TINY, math.sqrt(self.support[0].numel())
        if self.starts_inside:
            near, far, sums, sums_back = inner, outer, there.rows, back.columns
            lost, lost_back = there.lost, back.lost_back
        else:
            near, far, sums, sums_back = outer, inner, there.columns, back.rows
            lost, lost_back = there.lost_back, back.lost
        times, add = OUT64.times, OUT64.add
        swept = add(times(tiny, sums), lost)
        # The squares of the weights lose η too, of the values that they meet.
        weighted = add(times(far, far, swept), times(add(times(near, sums), 2.0), tiny))
        found = add(times(near, add(times(weighted, sums_back), lost_back)), tiny)
        return torch.nan_to_num(times(found, size), torch.inf, torch.inf)

    @cached_property
    def _sweeps(self) -> float:
        return Sweeps.of(self.segment).gram

    def rounding(self, absolute: Tensor) -> Tensor:
        inner, outer = (side.double().flatten(1).amax(1) for side in (self.inner, self.outer))
        size = product(inner, outer)
        by_lengths = OUT64.times(size, size, self._sweeps)
        return torch.minimum(super().rounding(absolute), by_lengths)

    def scaled(self, by: Tensor) -> WeightedMap:
        # What a device holds is not waited for.
        if by.device.type == "cpu" and not bool(by.any()):
            return self
        half = by.div(2, rounding_mode="floor")
        factor = power(half.clamp(-1022, 1022)).to(self.inner.dtype)
        inner, outer = (
            side * factor.reshape(-1, *(1,) * (side.dim() - 1)) for side in (self.inner, self.outer)
        )
        return WeightedMap(self.segment, inner, outer)

    def normalised(self) -> tuple[WeightedMap, Tensor]:
        sums = exponent(self._sizes.rows) + exponent(self._sizes.columns)
        inner, outer = (exponents(side.flatten(1).amax(1)) for side in (self.inner, self.outer))
        size = inner + outer + sums // 2
        # Halves go to both sides: whole ones.
        by = torch.where(size.abs() > _USUAL, 2 * size.div(2, rounding_mode="floor"), 0)
        return self.scaled(-by), by

    def over(self, network: Network) -> WeightedMap:
        dtype = network.anchor.dtype
        segment = Segment(network, self.segment.source, self.segment.sink)
        return WeightedMap(segment, self.inner.to(dtype), self.outer.to(dtype))


def times(v: Tensor, weight: Tensor) -> Tensor:
    """``weight`` ``(B, *shape)`` on every copy of its batch in ``v`` ``(P·B, *shape)``."""
    if v.shape == weight.shape:
        return v * weight
    return (v.reshape(-1, *weight.shape) * weight).reshape(v.shape)
