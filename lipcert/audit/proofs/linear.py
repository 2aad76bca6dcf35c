"""Linear maps, ``A v`` and ``Aᵀ v``, also with ``|A|`` and ``A∘A``; vectors are flat rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.audit.matrix import Matrix

# The entries themselves, their magnitudes, or their squares.
Part = Literal["entries", "magnitudes", "squares"]
_CHANGE: dict[Part, Callable[[Tensor], Tensor]] = {
    "entries": lambda entries: entries, "magnitudes": torch.abs, "squares": torch.square,
}  # fmt: skip
# In larger parts the columns of a convolution leave the caches.
_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Linear(ABC):
    """From ``inputs`` to ``outputs`` numbers. ``terms``: the most that a sum has, in either
    direction; ``mixes``: whether a result is a sum of several."""

    inputs: int
    outputs: int
    terms: int
    mixes: bool

    @abstractmethod
    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        """``(N, inputs)`` to ``(N, outputs)``."""

    @abstractmethod
    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        """By the transpose, ``(N, outputs)`` to ``(N, inputs)``."""


@dataclass(frozen=True, eq=False)
class Dense(Linear):
    """``x W`` for every row ``x`` of a value; ``weight`` is ``W``, ``(k, m)``."""

    weight: Tensor

    @classmethod
    def of(cls, inputs: int, outputs: int, weight: Tensor) -> Dense:
        return cls(inputs, outputs, max(weight.shape), True, weight.contiguous())

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        rows = v.reshape(-1, self.weight.shape[0])
        return (rows @ _CHANGE[part](self.weight)).reshape(len(v), self.outputs)

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        rows = v.reshape(-1, self.weight.shape[1])
        return (rows @ _CHANGE[part](self.weight).T).reshape(len(v), self.inputs)


@dataclass(frozen=True, eq=False)
class Sparse(Linear):
    """Entry by entry."""

    matrix: Matrix

    @classmethod
    def of(cls, m: Matrix) -> Sparse:
        mixes = bool((np.bincount(m.rows, minlength=1) > 1).any())
        return cls(m.shape[1], m.shape[0], m.longest, mixes, m)

    @cached_property
    def _tensors(self) -> dict[Part, tuple[Tensor, Tensor]]:
        """Both ways."""
        m = self.matrix
        places = torch.from_numpy(np.stack([m.rows, m.columns]).astype(np.int64))
        found = {}
        for part, change in _CHANGE.items():
            made = torch.sparse_coo_tensor(
                places, change(torch.from_numpy(m.entries)), m.shape, check_invariants=True
            )
            found[part] = made.coalesce(), made.T.coalesce()
        return found

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        made: Tensor = torch.sparse.mm(self._tensors[part][0], v.T).T.contiguous()
        return made

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        made: Tensor = torch.sparse.mm(self._tensors[part][1], v.T).T.contiguous()
        return made


@dataclass(frozen=True, eq=False)
class Convolution(Linear):
    """A convolution of ``shape`` ``(C, *space)``: ``pads`` before and after each axis."""

    shape: tuple[int, ...]
    weight: Tensor
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int
    padded: tuple[int, ...]
    space: tuple[int, ...]

    @classmethod
    def of(
        cls, shape: tuple[int, ...], weight: Tensor, strides: list[int], dilations: list[int],
        pads: tuple[tuple[int, int], ...], groups: int,
    ) -> Convolution:  # fmt: skip
        extents = [n + sum(pair) for n, pair in zip(shape[1:], pads, strict=True)]
        axes = zip(extents, weight.shape[2:], strides, dilations, strict=True)
        space = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes]
        # A number is read by no more results than a kernel has entries.
        terms = max(weight[0].numel(), weight.numel() // weight.shape[1])
        return cls(
            math.prod(shape), len(weight) * math.prod(space), terms, True, shape, weight,
            tuple(strides), tuple(dilations), pads, groups, (shape[0], *extents), tuple(space),
        )  # fmt: skip

    @cached_property
    def _sides(self) -> list[int]:
        """The pads of ``F.pad``, last axis first."""
        return [side for pair in reversed(self.pads) for side in pair]

    @cached_property
    def _weights(self) -> dict[Part, Tensor]:
        return {part: change(self.weight) for part, change in _CHANGE.items()}

    def _parts(self, v: Tensor, size: int, apply: Callable[[Tensor], Tensor]) -> Tensor:
        each = max(1, _AT_ONCE // max(1, self.outputs // len(self.weight) * self.terms))
        parts = [apply(some).reshape(len(some), size) for some in torch.split(v, each)]
        return torch.cat(parts) if len(v) else v.new_zeros(0, size)

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(self.strides)]

        def apply(some: Tensor) -> Tensor:
            image = F.pad(some.reshape(-1, *self.shape), self._sides)
            weight = self._weights[part]
            return convolve(image, weight, None, self.strides, 0, self.dilations, self.groups)

        return self._parts(v, self.outputs, apply)

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        def apply(some: Tensor) -> Tensor:
            image = some.reshape(-1, len(self.weight), *self.space)
            like = some.new_zeros(()).expand(len(image), *self.padded)
            none = [0] * len(self.space)
            found: Tensor = torch.ops.aten.convolution_backward(
                image, like, self._weights[part], None, list(self.strides), none,
                list(self.dilations), False, none, self.groups, (True, False, False),
            )[0]  # fmt: skip
            return F.pad(found, [-side for side in self._sides])

        return self._parts(v, self.inputs, apply)
