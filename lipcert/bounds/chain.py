"""The network linearised between two nodes: affine operators as they are, activations as slopes.

Write ``C`` and ``R`` for the middle and the half-width of an activation's secant range, so that
``Δa = (C + RΘ) Δz`` with ``|Θ| ≤ 1``. Unrolling a node back to the input,

    ‖M Δv‖ ≤ eps ‖M A C … A₁‖ + Σ_i ‖M A C … A_{i+1} R_i‖ ρ_i

(compare LipLT, Fazlyab et al., NeurIPS 2023): products of matrices in place of products of norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.anchored import Layer
from lipcert.network import Network
from lipcert.network.activations import Elementwise
from lipcert.network.operators import Operator, Shape
from lipcert.rounding import FLOAT64


def middle_and_half(activation: Elementwise, layer: Layer) -> tuple[Tensor, Tensor]:
    """``C`` and ``R ≥ 0`` of one activation, 0 where it cannot vary."""
    flat, steep = activation.secant(layer.lower, layer.upper, layer.anchor)
    middle = (flat + steep) / 2 * layer.varying
    # Wide enough for the rounding of the middle.
    half = ((steep - flat) / 2 + 8 * FLOAT64 * (flat.abs() + steep.abs())) * layer.varying
    return middle, torch.where(flat == steep, 0, half)


@dataclass(frozen=True, eq=False)
class Linearised:
    """The linear map from the value of node ``source`` to that of ``sink``, with per-sample slopes.

    It offers what a ``WeightedMap`` needs of a segment; ``slopes`` are ``(B, *shape)`` and vectors
    ``(P·B, *shape)``, P copies of the batch in turn.
    """

    network: Network
    source: int
    sink: int
    slopes: dict[int, Tensor]

    @property
    def in_shape(self) -> Shape:
        return self.network.nodes[self.source].shape

    @property
    def out_shape(self) -> Shape:
        return self.network.nodes[self.sink].shape

    @cached_property
    def path(self) -> tuple[int, ...]:
        """The nodes after the source that it reaches, and that reach the sink."""
        nodes = self.network.nodes
        reached = {self.source}
        for i in range(self.source + 1, self.sink + 1):
            if reached & set(nodes[i].inputs):
                reached.add(i)
        needed = {self.sink} & reached
        for i in range(self.sink, self.source, -1):
            if i in needed:
                needed.update(set(nodes[i].inputs) & reached)
        return tuple(sorted(needed - {self.source}))

    @cached_property
    def terms(self) -> int:
        """The roundings of all the path's nodes together: more than of any one way through."""
        kinds = [self.network.nodes[i].kind for i in self.path]
        return sum(kind.terms if isinstance(kind, Operator) else 4 for kind in kinds)

    @cached_property
    def transposed_terms(self) -> int:
        kinds = [self.network.nodes[i].kind for i in self.path]
        return sum(kind.transposed_terms if isinstance(kind, Operator) else 4 for kind in kinds)

    def apply(self, v: Tensor) -> Tensor:
        return self._forward(v, "apply")

    def magnitude(self, v: Tensor) -> Tensor:
        return self._forward(v, "magnitude")

    def transpose(self, v: Tensor) -> Tensor:
        return self._backward(v, "transpose")

    def transpose_magnitude(self, v: Tensor) -> Tensor:
        return self._backward(v, "transpose_magnitude")

    def _step(self, node: int, v: Tensor, name: str) -> Tensor:
        kind = self.network.nodes[node].kind
        if isinstance(kind, Operator):
            out: Tensor = getattr(kind, name)(v)
            return out
        if node in self.slopes:
            slope = self.slopes[node]
            slope = slope.abs() if "magnitude" in name else slope
            return (v.reshape(-1, *slope.shape) * slope).reshape(v.shape)
        return v

    def _forward(self, v: Tensor, name: str) -> Tensor:
        values = {self.source: v}
        for i in self.path:
            parts = [values[j] for j in self.network.nodes[i].inputs if j in values]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            values[i] = self._step(i, total, name)
        return values[self.sink]

    def _backward(self, v: Tensor, name: str) -> Tensor:
        pending = {self.sink: v}
        kept = {self.source, *self.path}
        for i in reversed(self.path):
            value = self._step(i, pending.pop(i), name)
            for j in self.network.nodes[i].inputs:
                if j in kept:
                    pending[j] = pending[j] + value if j in pending else value
        return pending[self.source]
