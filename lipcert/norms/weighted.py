"""``M = diag(outer) A diag(inner)`` for each sample of a batch: an affine segment between weights.

The local norms of the method are norms of such maps: ``outer`` marks the neurons after the
segment that vary, ``inner`` holds the gains of those before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lipcert.network import Segment


@dataclass(frozen=True, eq=False)
class WeightedMap:
    """``inner``: ``(B, *in_shape)`` ≥ 0, ``outer``: ``(B, *out_shape)`` ≥ 0, one B for both."""

    segment: Segment
    inner: Tensor
    outer: Tensor

    @property
    def batch(self) -> int:
        return self.inner.shape[0]

    @cached_property
    def starts_inside(self) -> bool:
        """Whether the Gram map runs over the inner side, the smaller one."""
        return math.prod(self.segment.in_shape) <= math.prod(self.segment.out_shape)

    @property
    def support(self) -> Tensor:
        """The weights on the Gram map's side: its values vanish where they do."""
        return self.inner if self.starts_inside else self.outer

    @cached_property
    def _middle(self) -> Tensor:
        """The squared weights of the other side."""
        return (self.outer if self.starts_inside else self.inner).square()

    @cached_property
    def _is_mask(self) -> bool:
        return bool(((self.support == 0) | (self.support == 1)).all())

    def gram(self, v: Tensor) -> Tensor:
        """``MᵀM v`` or ``MMᵀ v`` for ``v`` on the support: ``(P·B, *shape)``, P copies of a batch.

        Weights of 0 and 1 leave such a ``v`` as it is: there they are applied once, at the end.
        """
        if not self._is_mask:
            v = _times(v, self.support)
        if self.starts_inside:
            out = self.segment.transpose(_times(self.segment.apply(v), self._middle))
        else:
            out = self.segment.apply(_times(self.segment.transpose(v), self._middle))
        return _times(out, self.support)

    def absolute(self, v: Tensor) -> Tensor:
        """``|M| v`` or more, ``v ≥ 0``."""
        return self.segment.magnitude(v * self.inner) * self.outer

    def absolute_transpose(self, v: Tensor) -> Tensor:
        return self.segment.transpose_magnitude(v * self.outer) * self.inner


def _times(v: Tensor, weight: Tensor) -> Tensor:
    """``weight`` on every copy of its batch in ``v``."""
    if v.shape[0] == weight.shape[0]:
        return v * weight
    return (v.reshape(-1, *weight.shape) * weight).reshape(v.shape)
