"""What every bound needs of an affine operator: four maps, and nothing else.

An operator is the affine map ``v ↦ A v + b`` of one sample. Tensors carry the samples in a
leading batch dimension: ``(B, *in_shape) → (B, *out_shape)``. No operator materialises ``A``;
each offers its linear part under three weightings of its entries

    apply      A v          magnitude  |A| v  (v ≥ 0)          squared  (A∘A) v  (v ≥ 0)

and the transposes of these. Row norms follow: ``‖row_k(A diag w)‖₂ = sqrt(((A∘A) w²)_k)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self, TypeVar

import torch
from torch import Tensor

Shape = tuple[int, ...]
Record = TypeVar("Record")


def move_tensors(record: Record, convert: Callable[[Tensor], Tensor]) -> Record:
    """The frozen dataclass with every tensor field passed through ``convert``."""
    changed = {
        field.name: convert(value)
        for field in fields(record)  # type: ignore[arg-type]
        if isinstance(value := getattr(record, field.name), Tensor)
    }
    return replace(record, **changed)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Operator(ABC):
    """An affine map ``A v + b`` from ``in_shape`` to ``out_shape`` (shapes of one sample).

    ``bias`` is anything that broadcasts to ``out_shape``, or None.
    """

    in_shape: Shape
    out_shape: Shape
    bias: Tensor | None

    @abstractmethod
    def entries(self) -> Tensor | None:
        """The tensor that holds the entries of ``A``; None where each is 0 or 1."""

    @abstractmethod
    def _forward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        """The linear map with these entries in place of ``A``'s own."""

    @abstractmethod
    def _backward(self, v: Tensor, entries: Tensor | None) -> Tensor:
        """The transpose of ``_forward``."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """The most products that are summed for one output (bias left out); 0: no rounding."""

    @property
    @abstractmethod
    def transposed_terms(self) -> int:
        """The most products that are summed for one output of the transpose."""

    @property
    @abstractmethod
    def roundings(self) -> tuple[float, float]:
        """``(K, L)`` of one term of the sum, in a run of the deployed file: how often the constants
        it is made of are rounded themselves, and how often it and the factors it has are, before it
        is added. ``(0, 0)`` where values are only moved."""

    @property
    def is_elementwise(self) -> bool:
        """Whether each output is made of the input at its place: a runtime may take it up into the
        sum before it."""
        return False

    @property
    def is_identity(self) -> bool:
        """Whether each output is its input, maybe stored in another format (``Node.format``)."""
        return False

    @property
    def is_move(self) -> bool:
        """Whether each output is one of the inputs or 0, as it is."""
        return not self.terms and self.bias is None and not self.is_identity

    @cached_property
    def heaviest(self) -> float:
        """The largest magnitude of an entry: 1 where each is 0 or 1."""
        entries = self.entries()
        return 1.0 if entries is None else float(entries.abs().max())

    def apply(self, v: Tensor) -> Tensor:
        return self._forward(v, self.entries())

    def magnitude(self, v: Tensor) -> Tensor:
        return self._forward(v, _mapped(self.entries(), torch.abs))

    def squared(self, v: Tensor) -> Tensor:
        return self._forward(v, _mapped(self.entries(), torch.square))

    def count(self, v: Tensor) -> Tensor:
        """How many entries of each row of ``A`` that are not 0 meet a 1 of the mask ``v``."""
        return self._forward(v, _mapped(self.entries(), lambda entries: (entries != 0).to(v.dtype)))

    def transpose(self, v: Tensor) -> Tensor:
        return self._backward(v, self.entries())

    def transpose_magnitude(self, v: Tensor) -> Tensor:
        return self._backward(v, _mapped(self.entries(), torch.abs))

    def transpose_squared(self, v: Tensor) -> Tensor:
        return self._backward(v, _mapped(self.entries(), torch.square))

    def forward(self, v: Tensor) -> Tensor:
        """``A v + b``."""
        out = self.apply(v)
        return out if self.bias is None else out + self.bias

    def bias_magnitude(self) -> Tensor | float:
        """``|b|``, broadcastable to ``out_shape``."""
        return 0.0 if self.bias is None else self.bias.abs()

    def convert(self, change: Callable[[Tensor], Tensor]) -> Self:
        return move_tensors(self, change)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.in_shape)} → {list(self.out_shape)})"


def _mapped(entries: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if entries is None else function(entries)
