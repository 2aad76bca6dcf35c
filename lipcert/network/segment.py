"""The affine stretches between activations, as linear maps that are swept and never materialised.

Write ``a_j`` for the value of source ``j`` (the input, an activation or a joint). The value at any
node is ``Σ_j A_j a_j + b``; a ``Segment`` is one ``A_j``: every path from the source to the sink
that crosses no activation or joint, so that residual branches add up.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network.activations import Activation
from lipcert.network.graph import Network
from lipcert.network.joints import Joint
from lipcert.network.nodes import Node
from lipcert.network.operators import Diagonal, Operator, Select, Shape
from lipcert.network.walk import Backward, Forward, backward, forward


@dataclass(frozen=True, eq=False)
class Segment:
    """The linear map from the value of node ``source`` to that of node ``sink``."""

    network: Network
    source: int
    sink: int

    @property
    def in_shape(self) -> Shape:
        return self.network.nodes[self.source].shape

    @property
    def out_shape(self) -> Shape:
        return self.network.nodes[self.sink].shape

    @cached_property
    def path(self) -> tuple[int, ...]:
        """The nodes after the source, up to the sink, that the source reaches affinely."""
        nodes = self.network.nodes
        forward = {self.source}
        for i in range(self.source + 1, self.sink + 1):
            if self._crosses(i) and forward & set(nodes[i].inputs):
                forward.add(i)
        needed = {self.sink} & forward
        for i in range(self.sink, self.source, -1):
            if i in needed:
                needed.update(set(nodes[i].inputs) & forward)
        return tuple(sorted(needed - {self.source}))

    @cached_property
    def exists(self) -> bool:
        return self.source == self.sink or self.sink in self.path

    @cached_property
    def is_monomial(self) -> bool:
        """Whether each row of ``A`` has at most one entry: one path of moves and scales only."""
        before = (self.source, *self.path)
        nodes = self.network.nodes
        return all(
            nodes[i].inputs == (j,) and isinstance(nodes[i].kind, Select | Diagonal)
            for j, i in zip(before, self.path, strict=False)
        )

    @cached_property
    def terms(self) -> int:
        """Roundings on the longest path: one sweep computes ``A v`` within ``γ_terms |A| |v|``."""
        return self._depth(transposed=False)

    @cached_property
    def transposed_terms(self) -> int:
        return self._depth(transposed=True)

    def _depth(self, *, transposed: bool) -> int:
        if not self.exists:
            return 0
        rules = _Depth(self, transposed)
        start = {self.source: rules.gathered(self.source)}
        return forward(self.network, rules, known=start, along=self.path)[self.sink]

    @cached_property
    def fan_in(self) -> int:
        """The most values of the source that one of the sink's is computed from, those that are
        read on several ways counted for each."""
        ones = self.network.anchor.new_ones(1, *self.in_shape)
        return int(self._forward(ones, "count").max())

    def apply(self, v: Tensor) -> Tensor:
        return self._forward(v, "apply")

    def magnitude(self, v: Tensor) -> Tensor:
        """An upper bound of ``|A| v``, ``v ≥ 0``: magnitudes of the parts, multiplied out."""
        return self._forward(v, "magnitude")

    def transpose(self, v: Tensor) -> Tensor:
        return self._backward(v, "transpose")

    def transpose_magnitude(self, v: Tensor) -> Tensor:
        return self._backward(v, "transpose_magnitude")

    def transpose_squared(self, v: Tensor) -> Tensor:
        """``(A∘A)ᵀ v`` for a monomial segment; elsewhere squares of parts do not multiply out."""
        if not self.is_monomial:
            raise ValueError("the squares of a segment that sums are not those of its parts")
        return self._backward(v, "transpose_squared")

    def rows(self, *, magnitude: bool = False) -> Tensor:
        """``A`` (or ``|A|``) itself, a row an output: ``(outputs, *in_shape)``; for few outputs."""
        anchor = self.network.anchor
        size = math.prod(self.out_shape)
        unit = torch.eye(size, dtype=anchor.dtype, device=anchor.device)
        unit = unit.reshape(size, *self.out_shape)
        return self.transpose_magnitude(unit) if magnitude else self.transpose(unit)

    def _crosses(self, node: int) -> bool:
        """Whether a path may lead through the node."""
        return not isinstance(self.network.nodes[node].kind, Activation | Joint)

    def _forward(self, v: Tensor, name: str) -> Tensor:
        found = forward(self.network, _Map(name), known={self.source: v}, along=self.path)
        return found[self.sink]

    def _backward(self, v: Tensor, name: str) -> Tensor:
        found = backward(
            self.network, self.sink, v, _Transpose(name), to=self.source, along=self.path
        )
        assert found is not None
        return found


@dataclass(frozen=True)
class _Depth(Forward[int]):
    """The roundings on the longest path to a node of a segment."""

    segment: Segment
    transposed: bool

    @cached_property
    def reads(self) -> Counter[int]:
        """How often each value is read on the path. Backwards, one that is read n times gathers n
        parts: n − 1 roundings."""
        nodes = self.segment.network.nodes
        return Counter(j for k in self.segment.path for j in nodes[k].inputs)

    def sum(self, i: int, parts: list[int]) -> int:
        return max(parts) + (0 if self.transposed else len(parts) - 1)

    def affine(self, i: int, operator: Operator, before: int) -> int:
        return before + (operator.transposed_terms if self.transposed else operator.terms)

    def gathered(self, i: int) -> int:
        """The roundings that gather a node's parts backwards."""
        return max(0, self.reads[i] - 1) if self.transposed else 0

    def found(self, i: int, node: Node, value: int) -> int:
        return value + self.gathered(i)


@dataclass(frozen=True)
class _Map(Forward[Tensor]):
    """One of the linear maps of every operator, by its name."""

    name: str

    def sum(self, i: int, parts: list[Tensor]) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def affine(self, i: int, operator: Operator, before: Tensor) -> Tensor:
        mapped: Tensor = getattr(operator, self.name)(before)
        return mapped


@dataclass(frozen=True)
class _Transpose(Backward[Tensor]):
    """One of the transposed maps of every operator, by its name."""

    name: str

    def affine(self, i: int, operator: Operator, value: Tensor) -> Tensor:
        mapped: Tensor = getattr(operator, self.name)(value)
        return mapped

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


def segments(network: Network, sink: int) -> tuple[Segment, ...]:
    """Every segment that ends in ``sink``, one for each source that reaches it."""
    sources = [j for j in network.sources if j <= sink]
    return tuple(s for s in (Segment(network, j, sink) for j in sources) if s.exists)
