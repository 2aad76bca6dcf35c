"""The affine nodes of a file as linear maps in torch, ``A v`` and ``Aᵀ v``, also with ``|A|`` and
``A∘A``; vectors are flat rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.audit.affine import MOST_ENTRIES, pulled
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.matrix import Matrix
from lipcert.audit.operators import NotRead, attributes_of, window

# The entries themselves, their magnitudes, or their squares.
Part = Literal["entries", "magnitudes", "squares"]
_CHANGE: dict[Part, Callable[[Tensor], Tensor]] = {
    "entries": lambda entries: entries, "magnitudes": torch.abs, "squares": torch.square,
}  # fmt: skip
# In larger parts the columns of a convolution leave the caches.
_AT_ONCE = 2**20
# Unit vectors at once.
_ROWS = 256


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

    @cached_property
    def matrix(self) -> Matrix:
        """Its entries, from unit vectors. Raises ``NotRead`` where they are too many."""
        n, m = self.inputs, self.outputs
        if n * m > MOST_ENTRIES:
            raise NotRead(f"a layer from {n} to {m} values in a bound")
        rows, columns, entries = [], [], []
        for first in range(0, m, _ROWS):
            units = torch.eye(m, dtype=torch.float64)[first : first + _ROWS]
            image = self.back(units).numpy()
            row, column = image.nonzero()
            rows.append(first + row)
            columns.append(column)
            entries.append(image[row, column])
        places = np.concatenate(rows), np.concatenate(columns)
        return Matrix.of(*places, np.concatenate(entries), (m, n))


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

    given: Matrix

    @classmethod
    def of(cls, m: Matrix) -> Sparse:
        mixes = bool((np.bincount(m.rows, minlength=1) > 1).any())
        return cls(m.shape[1], m.shape[0], m.longest, mixes, m)

    @cached_property
    def matrix(self) -> Matrix:
        return self.given

    @cached_property
    def _tensors(self) -> dict[Part, Tensor]:
        m = self.given
        places = torch.from_numpy(np.stack([m.rows, m.columns]).astype(np.int64))
        entries = torch.from_numpy(m.entries.astype(np.float64))
        return {
            part: torch.sparse_coo_tensor(
                places, change(entries), m.shape, check_invariants=True
            ).coalesce()
            for part, change in _CHANGE.items()
        }

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        made: Tensor = torch.sparse.mm(self._tensors[part], v.T).T.contiguous()
        return made

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        made: Tensor = torch.sparse.mm(self._tensors[part].T, v.T).T.contiguous()
        return made


@dataclass(frozen=True, eq=False)
class Convolution(Linear):
    """From ``shape`` ``(C, *space)`` to ``made``; ``pads`` as ``F.pad`` has them."""

    shape: tuple[int, ...]
    made: tuple[int, ...]
    weight: Tensor
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[int]
    groups: int

    @classmethod
    def of(
        cls, shape: tuple[int, ...], made: tuple[int, ...], weight: Tensor,
        window: tuple[Sequence[int], Sequence[int], Sequence[int]], groups: int,
    ) -> Convolution:  # fmt: skip
        # A number is read by no more results than a kernel has entries.
        terms = max(weight[0].numel(), weight.numel() // weight.shape[1])
        sizes = math.prod(shape), math.prod(made)
        return cls(*sizes, terms, True, shape, made, weight, *window, groups)

    def _by_parts(self, v: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        columns = math.prod(self.made[1:]) * self.terms
        parts = torch.split(v, max(1, _AT_ONCE // columns))
        return torch.cat([apply(some).flatten(1) for some in parts])

    def forth(self, v: Tensor, part: Part = "entries") -> Tensor:
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(self.strides)]
        weight = _CHANGE[part](self.weight)

        def apply(some: Tensor) -> Tensor:
            image = F.pad(some.reshape(-1, *self.shape), self.pads)
            return convolve(image, weight, None, self.strides, 0, self.dilations, self.groups)

        return self._by_parts(v, apply)

    def back(self, v: Tensor, part: Part = "entries") -> Tensor:
        weight, none = _CHANGE[part](self.weight), [0] * len(self.strides)

        def apply(some: Tensor) -> Tensor:
            like = F.pad(some.new_zeros(1, *self.shape), self.pads)
            found: Tensor = torch.ops.aten.convolution_backward(
                some.reshape(-1, *self.made), like.expand(len(some), *like.shape[1:]), weight,
                None, self.strides, none, self.dilations, False, none, self.groups,
                (True, False, False),
            )[0]  # fmt: skip
            return F.pad(found, [-side for side in self.pads])

        return self._by_parts(v, apply)


def maps_of(
    node: onnx.NodeProto, which: int, varying: Sequence[str], reading: Interpreter
) -> tuple[tuple[Linear, ...], Tensor]:
    """The maps of one output, for each varying input, and its bias."""
    given, made = reading.shapes[varying[0]], reading.shapes[node.output[which]]
    n, m = math.prod(given), math.prod(made)
    a, bias = attributes_of(node), torch.zeros(m, dtype=torch.float64)
    _, weight, added, *_ = [*(reading.constants.get(one) for one in node.input), None, None]
    if isinstance(weight, Tensor) and varying == [node.input[0]]:
        weight = weight.to(bias)
        if node.op_type == "Conv" and given[0] == 1:
            at = window(a, torch.empty(given), weight.shape[2:])
            linear = Convolution.of(given[1:], made[1:], weight, at, a.get("group", 1))
            if isinstance(added, Tensor):
                column = added.to(bias).reshape(-1, *(1,) * (len(made) - 2))
                bias = column.expand(made[1:]).reshape(-1)
            return (linear,), bias
        if node.op_type == "Gemm" and not a.get("transA"):
            weight = (weight.T if a.get("transB") else weight) * a.get("alpha", 1.0)
            if isinstance(added, Tensor):
                bias = (added.to(bias) * a.get("beta", 1.0)).expand(made).reshape(-1)
            return (Dense.of(n, m, weight),), bias
        if node.op_type == "MatMul" and weight.ndim == 2:
            return (Dense.of(n, m, weight),), bias
    matrices, numbers = pulled(node, which, varying, reading)
    return tuple(Sparse.of(matrix) for matrix in matrices), torch.from_numpy(np.array(numbers))
