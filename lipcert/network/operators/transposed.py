"""Transposed convolutions: the transpose of a convolution as a layer of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lipcert.network.operators.base import Operator, Shape
from lipcert.network.operators.convolution import Convolution


@dataclass(frozen=True, eq=False, repr=False)
class TransposedConvolution(Operator):
    """``v ↦ Cᵀ v + b``, where ``C`` is the convolution of ``out_shape`` to ``in_shape``.

    ``weight`` is ``(in, out / groups, *kernel)``; the rest as of ``Convolution``.
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        in_shape: Shape,
        space: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int = 1,
    ) -> TransposedConvolution:
        """``space``: the extents of the output, of which the stride leaves several possible."""
        out_shape = (in_shape[0], weight.shape[1] * groups, *space)
        if bias is not None and bias.dim() == 1:
            bias = bias.reshape(-1, *(1,) * len(space))
        made = cls(
            in_shape,
            out_shape,
            bias,
            weight,
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            groups,
        )
        if made.convolution.out_shape != in_shape:
            raise ValueError(f"the output {list(out_shape)} does not come from {list(in_shape)}")
        return made

    @cached_property
    def convolution(self) -> Convolution:
        """``C``."""
        return Convolution.of(
            self.weight, None, self.out_shape, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups,
        )  # fmt: skip

    def entries(self) -> Tensor:
        return self.weight

    def _forward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        return self.convolution._backward(v, entries)

    def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        return self.convolution._forward(v, entries)

    @property
    def terms(self) -> int:
        return self.convolution.transposed_terms

    @property
    def transposed_terms(self) -> int:
        return math.prod(self.weight.shape[1:])

    @property
    def roundings(self) -> tuple[float, float]:
        """A weight; a product, and two roundings more where it was scaled by a factor."""
        return 1.0, 3.0
