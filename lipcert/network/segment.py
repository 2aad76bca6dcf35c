"""The affine stretches between activations, as linear maps that are swept and never materialised.

Write ``a_j`` for the value of source ``j`` (the input or an activation). The value at any node is
``Σ_j A_j a_j + b``; a ``Segment`` is one ``A_j``: every path from the source to the sink that
crosses no activation, so that residual branches add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network.activations import Activation
from lipcert.network.graph import Network
from lipcert.network.operators import Operator, Select, Shape


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
            if not isinstance(nodes[i].kind, Activation) and forward & set(nodes[i].inputs):
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
    def operators(self) -> tuple[Operator, ...] | None:
        """The operators one after the other where there is a single path, else None."""
        kinds = [self.network.nodes[i].kind for i in self.path]
        chain = tuple(kind for kind in kinds if isinstance(kind, Operator))
        return chain if len(chain) == len(kinds) and self._is_chain() else None

    def _is_chain(self) -> bool:
        before = (self.source, *self.path)
        return all(
            self.network.nodes[i].inputs == (j,) for j, i in zip(before, self.path, strict=False)
        )

    @cached_property
    def terms(self) -> int:
        """Roundings on the longest path: one sweep computes ``A v`` within ``γ_terms |A| |v|``."""
        return self._depth(transposed=False)

    @cached_property
    def transposed_terms(self) -> int:
        return self._depth(transposed=True)

    def _depth(self, *, transposed: bool) -> int:
        nodes, on_path = self.network.nodes, {self.source, *self.path}
        consumers = {i: sum(i in nodes[k].inputs for k in self.path) for i in on_path}
        depth = {self.source: 0}
        for i in self.path:
            parts = [j for j in nodes[i].inputs if j in on_path]
            kind = nodes[i].kind
            if isinstance(kind, Operator):
                own = kind.transposed_terms if transposed else kind.terms
            else:
                own = 0 if transposed else len(parts) - 1
            fan_out = max(consumers[j] - 1 for j in parts) if transposed else 0
            depth[i] = own + fan_out + max(depth[j] for j in parts)
        return depth[self.sink] if self.exists else 0

    def apply(self, v: Tensor) -> Tensor:
        return self._forward(v, "apply")

    def magnitude(self, v: Tensor) -> Tensor:
        """An upper bound of ``|A| v``, ``v ≥ 0``: magnitudes of the parts, multiplied out."""
        return self._forward(v, "magnitude")

    def transpose(self, v: Tensor) -> Tensor:
        return self._backward(v, "transpose")

    def transpose_magnitude(self, v: Tensor) -> Tensor:
        return self._backward(v, "transpose_magnitude")

    def rows(self) -> Tensor:
        """``A`` itself, one row an output: ``(outputs, *in_shape)``. For few outputs only."""
        anchor = self._anchor()
        size = math.prod(self.out_shape)
        unit = torch.eye(size, dtype=anchor.dtype, device=anchor.device)
        return self.transpose(unit.reshape(size, *self.out_shape))

    def _anchor(self) -> Tensor:
        """Some floating tensor of the network, for its dtype and device."""
        for node in self.network.nodes:
            if isinstance(node.kind, Operator):
                for tensor in (node.kind.entries(), node.kind.bias):
                    if tensor is not None:
                        return tensor
        return torch.zeros((), dtype=torch.float64)

    def _forward(self, v: Tensor, name: str) -> Tensor:
        values = {self.source: v}
        for i in self.path:
            node = self.network.nodes[i]
            parts = [values[j] for j in node.inputs if j in values]
            if isinstance(node.kind, Operator):
                values[i] = getattr(node.kind, name)(parts[0])
            else:
                total = parts[0]
                for part in parts[1:]:
                    total = total + part
                values[i] = total
        return values[self.sink]

    def _backward(self, v: Tensor, name: str) -> Tensor:
        pending: dict[int, Tensor] = {self.sink: v}
        on_path = {self.source, *self.path}
        for i in reversed(self.path):
            node, value = self.network.nodes[i], pending.pop(i)
            if isinstance(node.kind, Operator):
                value = getattr(node.kind, name)(value)
            for j in node.inputs:
                if j in on_path:
                    pending[j] = pending[j] + value if j in pending else value
        return pending[self.source]


def is_permutation(operator: Operator) -> bool:
    """Whether it only reorders: each input read once, no constant."""
    return isinstance(operator, Select) and (
        operator.is_reshape
        or (operator.multiplicity == 1 and math.prod(operator.in_shape) == operator.index.numel()
            and bool((operator.index >= 0).all()))
    )  # fmt: skip


def segments(network: Network, sink: int) -> tuple[Segment, ...]:
    """Every segment that ends in ``sink``, one for each source that reaches it."""
    sources = [j for j in network.sources if j <= sink]
    return tuple(s for s in (Segment(network, j, sink) for j in sources) if s.exists)
