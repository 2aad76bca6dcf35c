"""Puts operators on the network under construction; every rule of the reader speaks to this."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.loading.allowance import GraphLimits
from lipcert.network import Network, NetworkBuilder, Node
from lipcert.network.activations import Activation, GroupMax, GroupSort, MaxMin
from lipcert.network.joints import Joint, MatrixProduct
from lipcert.network.lower import comparators
from lipcert.network.operators import (
    Convolution,
    Dense,
    Diagonal,
    Operator,
    Select,
    Shape,
    TransposedConvolution,
)  # fmt: skip
from lipcert.rounding import SINGLE, Arithmetic, coarsest

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Variable:
    """A value that depends on the network's input: a node of the network, with its shape."""

    node: int
    shape: Shape

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Assembler:
    """A network builder in terms of ``Variable``, which shares what is built twice.

    All that it builds is charged to one ``allowance`` first, so that a small file cannot ask for
    all memory. ``samples``: how many the batch has that the graph is read for. ``own`` is the
    format in which the file computes the node at hand, ``formats`` that of every node so far.
    """

    def __init__(
        self, in_shape: Shape, origin: str, allowance: GraphLimits | None = None, samples: int = 1
    ) -> None:
        self.allowance = allowance or GraphLimits()
        self.allowance.keep(math.prod(in_shape))
        self.builder = NetworkBuilder(in_shape, origin)
        self.samples = samples
        self.origin = origin
        self.own = SINGLE
        self.formats: dict[int, Arithmetic] = {}
        self._selects: dict[tuple[int, Shape, bytes], Variable] = {}
        self._pairs: dict[tuple[int, int], Variable] = {}

    @property
    def input(self) -> Variable:
        return Variable(0, self.builder.shape(0))

    def operator(self, operator: Operator, x: Variable) -> Variable:
        size = math.prod(operator.out_shape)
        self.allowance.keep(size)
        self.allowance.run(size * max(1, operator.terms))
        for part in (operator.bias, operator.scale if isinstance(operator, Diagonal) else None):
            if part is not None and not _fits(part.shape, operator.out_shape):
                raise ValueError(f"{list(part.shape)} does not fit {list(operator.out_shape)}")
        twin = operator.convolution if isinstance(operator, TransposedConvolution) else operator
        if isinstance(twin, Convolution):
            # Its padded input, and its columns, as libraries lay them out.
            pads = zip(twin.in_shape[2:], twin.padding, strict=True)
            padded = math.prod(size + sum(max(0, side) for side in pad) for size, pad in pads)
            self.allowance.borrow(math.prod(twin.in_shape[:2]) * padded)
            spots = math.prod(twin.out_shape[2:])
            self.allowance.borrow(twin.terms * twin.groups * spots)
        for numbers in (operator.entries(), operator.bias):
            if numbers is not None and not bool(numbers.isfinite().all()):
                raise ValueError("its constants, multiplied out, are not finite")
        return self._variable(self.builder.operator(operator, x.node, self.origin))

    def activation(
        self, activation: Activation, x: Variable, format: Arithmetic | None = None
    ) -> Variable:
        """``format``: one that it rounds in at least, whatever it is deployed in."""
        self.allowance.keep(x.size)
        if isinstance(activation, GroupMax):
            # A maximum of many is lowered to matrices of all pairs.
            self.allowance.move(x.shape[-1] ** 2)
        self.builder.format = format
        node = self.builder.activation(activation, x.node, self.origin)
        self.builder.format = None
        return self._variable(node)

    def joint(self, joint: Joint, parts: Sequence[Variable]) -> Variable:
        size = math.prod(joint.out_shape)
        self.allowance.keep(size)
        # Boxes of its inputs are kept too.
        self.allowance.keep(sum(part.size for part in parts))
        if isinstance(joint, MatrixProduct):
            self.allowance.run(size * joint.inner)
        return self._variable(self.builder.joint(joint, [part.node for part in parts], self.origin))

    def stored(self, x: Variable, format: Arithmetic) -> Variable:
        """The value in another format: rounded to it, and lost where it overflows there."""
        self.allowance.keep(x.size)
        self.builder.format = format
        node = self.builder.operator(Diagonal.of(None, None, x.shape), x.node, self.origin)
        self.builder.format = None
        return self._variable(node)

    def within(self, x: Variable, largest: float) -> Variable:
        """The value, which nothing is known of where it could pass ``±largest / 2``."""
        return self.stored(x, Arithmetic(0.0, 0.0, largest))

    def network(
        self, output: Variable, *, mixed: bool, leaves: Arithmetic | None, each: bool = False
    ) -> Network:
        """The network that was built. ``mixed``: the file changes type on the way, and each value
        rounds in its own. ``leaves`` and ``each``: as of the network."""
        if mixed:
            self.formats[0] = self.formats.get(0, self.own)
            self.builder.nodes = [
                node if _is_stored(node) else replace(node, format=coarsest(node.format, own))
                for node, own in (
                    (node, self.formats[i]) for i, node in enumerate(self.builder.nodes)
                )
            ]
        return replace(self.builder.build(output.node), leaves=leaves, each=each)

    def diagonal(self, x: Variable, scale: Tensor | None, bias: Tensor | None) -> Variable:
        """``scale ∘ x + bias``, both broadcast to the shape of ``x``."""
        if scale is None and bias is None:
            return x
        return self.operator(Diagonal.of(scale, bias, x.shape), x)

    def dense(self, x: Variable, weight: Tensor, bias: Tensor | None = None) -> Variable:
        """``x Wᵀ + bias`` along the last axis."""
        return self.operator(Dense.of(weight, bias, x.shape), x)

    def sum(self, terms: Sequence[Variable]) -> Variable:
        self.allowance.keep(terms[0].size)
        return self._variable(self.builder.sum([x.node for x in terms], self.origin))

    def select(self, x: Variable, index: Index) -> Variable:
        """``x.flat[index]`` in the shape of ``index``, 0 where it is −1."""
        content = hashlib.blake2b(index.tobytes()).digest()
        key = (x.node, index.shape, content)
        if key not in self._selects:
            still = index.shape == x.shape and np.array_equal(index.reshape(-1), np.arange(x.size))
            operator = Select.of(torch.from_numpy(index.copy()), x.shape)
            self._selects[key] = x if still else self.operator(operator, x)
        return self._selects[key]

    def reshape(self, x: Variable, shape: Sequence[int]) -> Variable:
        self.allowance.move(x.size)
        return self.select(x, places(x.shape).reshape(shape))

    def transpose(self, x: Variable, axes: Sequence[int]) -> Variable:
        self.allowance.move(x.size)
        return self.select(x, places(x.shape).transpose(axes))

    def expand(self, x: Variable, shape: Shape) -> Variable:
        """Broadcast to ``shape``."""
        self.allowance.move(math.prod(shape))
        return self.select(x, np.broadcast_to(places(x.shape), shape))

    def stack(self, parts: Sequence[Variable], axis: int) -> Variable:
        """The parts, of one shape, along a new axis: 0 or −1."""
        terms = []
        self.allowance.move(len(parts) ** 2 * parts[0].size)
        for number, part in enumerate(parts):
            blocks = [np.full(part.shape, -1, dtype=np.int64)] * len(parts)
            blocks[number] = places(part.shape)
            terms.append(self.select(part, np.stack(blocks, axis)))
        return self.sum(terms)

    def max_and_min(self, a: Variable, b: Variable) -> tuple[Variable, Variable]:
        """Both from one MaxMin, which serves every Max and Min of the same two values."""
        first, second = sorted((a, b), key=lambda x: x.node)
        key = (first.node, second.node)
        if key not in self._pairs:
            self._pairs[key] = self.activation(MaxMin(0), self.stack([first, second], 0))
        self.allowance.move(2 * a.size)
        both = places((2, *a.shape))
        return self.select(self._pairs[key], both[0]), self.select(self._pairs[key], both[1])

    def group_extremum(self, x: Variable, largest: bool) -> Variable:
        """The largest or smallest value along the last axis, which goes."""
        if largest:
            return self.activation(GroupMax(), x)
        return self.negate(self.activation(GroupMax(), self.negate(x)))

    def sorted_group(self, x: Variable, largest: bool) -> Variable:
        """The values along the last axis from the largest to the smallest, or the other way."""
        size = x.shape[-1]
        self.allowance.move(x.size + size**2 * len(comparators(size)))
        found = self.activation(GroupSort(), x)
        return found if largest else self.select(found, places(x.shape)[..., ::-1])

    def negate(self, x: Variable) -> Variable:
        return self.diagonal(x, number(-1.0), None)

    def _variable(self, node: int) -> Variable:
        self.formats.setdefault(node, self.own)
        return Variable(node, self.builder.shape(node))


def _is_stored(node: Node) -> bool:
    return isinstance(node.kind, Diagonal) and node.kind.is_identity


def places(shape: Sequence[int]) -> Index:
    """Every value's place in the flattened tensor."""
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)


def _fits(part: Sequence[int], whole: Shape) -> bool:
    """Whether a tensor broadcasts to this shape, and not beyond it."""
    return np.broadcast_shapes(tuple(part), whole) == whole


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
