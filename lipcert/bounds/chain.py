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
from lipcert.network import Segment
from lipcert.network.activations import Elementwise
from lipcert.network.operators import Operator
from lipcert.rounding import FLOAT64


def middle_and_half(activation: Elementwise, layer: Layer) -> tuple[Tensor, Tensor]:
    """``C`` and ``R ≥ 0`` of one activation, 0 where it cannot vary."""
    flat, steep = activation.secant(layer.lower, layer.upper, layer.anchor)
    middle = (flat + steep) / 2 * layer.varying
    # Wide enough for the rounding of the middle.
    half = ((steep - flat) / 2 + 8 * FLOAT64 * (flat.abs() + steep.abs())) * layer.varying
    return middle, torch.where(flat == steep, 0, half)


@dataclass(frozen=True, eq=False)
class Linearised(Segment):
    """A segment that crosses activations, each a slope for every neuron of every sample.

    ``slopes`` are ``(B, *shape)`` and vectors ``(P·B, *shape)``, P copies of the batch in turn.
    """

    slopes: dict[int, Tensor]

    @property
    def is_monomial(self) -> bool:
        return False

    @cached_property
    def terms(self) -> int:
        """The roundings of all the path's nodes together: more than of any one way through."""
        kinds = [self.network.nodes[i].kind for i in self.path]
        return sum(kind.terms if isinstance(kind, Operator) else 4 for kind in kinds)

    @cached_property
    def transposed_terms(self) -> int:
        kinds = [self.network.nodes[i].kind for i in self.path]
        return sum(kind.transposed_terms if isinstance(kind, Operator) else 4 for kind in kinds)

    def _crosses(self, node: int) -> bool:
        return True

    def _step(self, node: int, v: Tensor, name: str) -> Tensor:
        if node not in self.slopes:
            return super()._step(node, v, name)
        slope = self.slopes[node]
        slope = slope.abs() if "magnitude" in name else slope
        return (v.reshape(-1, *slope.shape) * slope).reshape(v.shape)
