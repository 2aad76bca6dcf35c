"""Linear maps that are never written down: ``A v``, ``Aᵀ v``, and the same with ``|A|`` and ``A∘A``.

Vectors are flat, ``(N, n)``. ``terms`` bounds how many numbers a sum has, in either direction.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.audit.matrix import Matrix

# The entries themselves, their magnitudes, or their squares.
Part = Literal["entries", "magnitudes", "squares"]
_CHANGE: dict[Part, Callable[[Tensor], Tensor]] = {
    "entries": lambda entries: entries, "magnitudes": torch.abs, "squares": torch.square,
}  # fmt: skip
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# In larger parts the columns of a convolution leave the caches.
_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Linear(ABC):
    """A map from ``inputs`` to ``outputs`` numbers. ``mixes``: a result is a sum of several."""

    inputs: int
    outputs: int
    mixes = True

    @property
    @abstractmethod
    def terms(self) -> int: ...

    @abstractmethod
    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        """``(N, inputs)`` to ``(N, outputs)``."""

    @abstractmethod
    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        """By the transpose, ``(N, outputs)`` to ``(N, inputs)``."""


@dataclass(frozen=True, eq=False)
class Dense(Linear):
    """``x W`` for every row ``x`` of ``rows``; ``weight`` is ``W``, ``(k, m)``."""

    rows: int
    weight: Tensor

    @property
    def terms(self) -> int:
        return max(self.weight.shape)

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        weight = _CHANGE[part](self.weight)
        return (v.reshape(-1, weight.shape[0]) @ weight).reshape(len(v), self.outputs)

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        weight = _CHANGE[part](self.weight)
        return (v.reshape(-1, weight.shape[1]) @ weight.T).reshape(len(v), self.inputs)


@dataclass(frozen=True, eq=False)
class Convolution(Linear):
    """A convolution of ``(C, *space)``: ``pads`` before and after each axis."""

    shape: tuple[int, ...]
    weight: Tensor
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int

    @cached_property
    def _weights(self) -> dict[Part, Tensor]:
        return {part: change(self.weight) for part, change in _CHANGE.items()}

    @property
    def terms(self) -> int:
        """A value of the input is read by no more results than a kernel has entries."""
        return max(self.weight[0].numel(), self.weight.numel() // self.weight.shape[1])

    @property
    def _sides(self) -> list[int]:
        """The pads of ``F.pad``, last axis first."""
        return [side for pair in reversed(self.pads) for side in pair]

    @cached_property
    def _padded(self) -> tuple[int, ...]:
        extents = zip(self.shape[1:], self.pads, strict=True)
        return (self.shape[0], *(n + sum(pair) for n, pair in extents))

    @cached_property
    def space(self) -> tuple[int, ...]:
        axes = zip(
            self._padded[1:], self.weight.shape[2:], self.strides, self.dilations, strict=True
        )
        return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes)

    def _parts(self, v: Tensor, size: int, apply: Callable[[Tensor], Tensor]) -> Tensor:
        each = max(1, _AT_ONCE // max(1, self.weight[0].numel() * math.prod(self.space)))
        if not len(v):
            return v.new_zeros(0, size)
        parts = [apply(some).flatten(1) for some in torch.split(v, each)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        weight, convolve = self._weights[part], _CONVOLVE[len(self.strides)]

        def apply(some: Tensor) -> Tensor:
            image = F.pad(some.reshape(-1, *self.shape), self._sides)
            return convolve(image, weight, None, self.strides, 0, self.dilations, self.groups)

        return self._parts(v, self.outputs, apply)

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        weight = self._weights[part]
        even = all(before == after for before, after in self.pads)
        pads = [before if even else 0 for before, _ in self.pads]
        extents = self.shape if even else self._padded
        none = [0] * len(pads)

        def apply(some: Tensor) -> Tensor:
            image = some.reshape(-1, self.weight.shape[0], *self.space)
            like = image.new_zeros(()).expand(len(image), *extents)
            found: Tensor = torch.ops.aten.convolution_backward(
                image, like, weight, None, list(self.strides), pads, list(self.dilations), False,
                none, self.groups, (True, False, False),
            )[0]  # fmt: skip
            if not even:
                found = F.pad(found, [-side for side in self._sides])
            return found

        return self._parts(v, self.inputs, apply)


@dataclass(frozen=True, eq=False)
class Scale(Linear):
    """Each number times its own."""

    factors: Tensor
    mixes = False

    @property
    def terms(self) -> int:
        return 1

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        return v * _CHANGE[part](self.factors)

    back = forth


@dataclass(frozen=True, eq=False)
class Move(Linear):
    """Result ``k`` is number ``index[k]``, or 0 where that is −1."""

    index: Tensor
    mixes = False

    @cached_property
    def terms(self) -> int:
        read = self.index[self.index >= 0]
        return int(torch.bincount(read, minlength=1).max())

    @cached_property
    def _read(self) -> tuple[Tensor, Tensor]:
        places = (self.index >= 0).nonzero().flatten()
        return places, self.index[places]

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        places, read = self._read
        if len(places) == self.outputs:
            return v.index_select(1, read)
        return v.new_zeros(len(v), self.outputs).index_copy(1, places, v.index_select(1, read))

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        places, read = self._read
        return v.new_zeros(len(v), self.inputs).index_add(1, read, v.index_select(1, places))


@dataclass(frozen=True, eq=False)
class Sparse(Linear):
    """Entry by entry: averages, sums, and what else has no map of its own."""

    matrix: Matrix

    @property
    def terms(self) -> int:
        return self.matrix.longest

    @cached_property
    def _tensors(self) -> dict[Part, tuple[Tensor, Tensor]]:
        m, found = self.matrix, {}
        for part, change in _CHANGE.items():
            entries = change(torch.from_numpy(m.entries))
            pair = []
            for rows, columns, shape in (
                (m.rows, m.columns, m.shape), (m.columns, m.rows, m.shape[::-1]),
            ):  # fmt: skip
                places = torch.stack([torch.from_numpy(rows), torch.from_numpy(columns)])
                made = torch.sparse_coo_tensor(places, entries, shape, check_invariants=True)
                pair.append(made.coalesce())
            found[part] = (pair[0], pair[1])
        return found

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        return torch.sparse.mm(self._tensors[part][0].to(v.dtype), v.T).T

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        return torch.sparse.mm(self._tensors[part][1].to(v.dtype), v.T).T
