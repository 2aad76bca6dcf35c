"""Maps whose norms are wanted, one for each sample of a batch, never written down."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lipcert.network import Network, Segment


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
        return bool(((self.support == 0) | (self.support == 1)).all())

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

    def over(self, network: Network) -> WeightedMap:
        dtype = network.anchor.dtype
        segment = Segment(network, self.segment.source, self.segment.sink)
        return WeightedMap(segment, self.inner.to(dtype), self.outer.to(dtype))


def times(v: Tensor, weight: Tensor) -> Tensor:
    """``weight`` ``(B, *shape)`` on every copy of its batch in ``v`` ``(P·B, *shape)``."""
    if v.shape == weight.shape:
        return v * weight
    return (v.reshape(-1, *weight.shape) * weight).reshape(v.shape)
