"""Fully connected layers: a matrix applied along the last axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lipcert.network.operators.base import Operator, Shape


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Operator):
    """``v ↦ v Wᵀ + b`` along the last axis; ``W`` is ``(out, in)``, other axes are kept."""

    weight: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, in_shape: Shape) -> Dense:
        outputs, inputs = weight.shape
        if not in_shape or in_shape[-1] != inputs:
            raise ValueError(f"a {outputs}×{inputs} matrix does not fit an input {list(in_shape)}")
        return cls(in_shape, (*in_shape[:-1], outputs), bias, weight)

    def entries(self) -> Tensor:
        return self.weight

    def _forward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        assert entries is not None
        return F.linear(v, entries)

    def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        assert entries is not None
        return v @ entries

    def reader(self, v: Tensor) -> Callable[[int], Tensor]:
        """By the number of a product, what it reads of values ``(B, *in_shape)`` for every output;
        broadcast to the outputs."""
        return lambda k: v[..., k : k + 1]

    def column(self, k: int) -> Tensor:
        """What the product ``k`` of every output multiplies that with."""
        return self.weight[:, k]

    @property
    def terms(self) -> int:
        return self.weight.shape[1]

    @property
    def transposed_terms(self) -> int:
        return self.weight.shape[0]

    @property
    def roundings(self) -> tuple[float, float]:
        """A weight; a product, and two roundings more where it was scaled by a factor."""
        return 1.0, 3.0
