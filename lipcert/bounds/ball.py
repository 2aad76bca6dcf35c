"""How far each node can move: global Lipschitz constants from the input to every node.

A ball of radius ``eps`` around the input reaches a node within ``L · eps``. Norms multiply along a
path and add up where branches meet, so residual networks need nothing special.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lipcert.network import Forward, Network, Node, forward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.norms import SegmentNorms, operator_norm, row_norms
from lipcert.numbers import OUT64
from lipcert.rounding import rounded_up

Edge = tuple[int, int]


def node_constants(
    network: Network, norms: Mapping[Edge, SegmentNorms], own: Sequence[float] | None = None
) -> list[float]:
    """For each node an upper bound of the L2 Lipschitz constant from the input to it.

    ``norms`` holds whole segments, by (source, sink); a sink whose segments are all there is
    bounded by them, any other affine node by its operator's own norm; ``own`` has these where they
    are known already, an entry a node.
    """
    return list(forward(network, _Constants(network, norms, own)).values())


@dataclass(frozen=True, eq=False)
class _Constants(Forward[float]):
    network: Network
    norms: Mapping[Edge, SegmentNorms]
    own: Sequence[float] | None
    reached: dict[int, float] = field(default_factory=dict)

    def input(self, i: int) -> float:
        return 1.0

    def sum(self, i: int, parts: list[float]) -> float:
        return OUT64.add(*parts)

    def affine(self, i: int, operator: Operator, before: float) -> float:
        if self._arriving(i):
            return 0.0
        return OUT64.times(before, operator_norm(operator) if self.own is None else self.own[i])

    def activation(self, i: int, activation: Activation, before: float) -> float:
        return OUT64.times(before, activation.lipschitz)

    def joint(self, i: int, joint: Joint, parts: list[float]) -> float:
        return math.inf

    def found(self, i: int, node: Node, value: float) -> float:
        arriving = self._arriving(i)
        if i and arriving and not isinstance(node.kind, Activation | Joint):
            value = OUT64.add(
                *(OUT64.times(norm.norm.value, self.reached[j]) for j, norm in arriving)
            )
        self.reached[i] = value
        return value

    def _arriving(self, i: int) -> list[tuple[int, SegmentNorms]]:
        """The whole segments that end here, by their sources."""
        return [(edge[0], norm) for edge, norm in self.norms.items() if edge[1] == i]


def coordinate_reach(network: Network, constants: list[float]) -> list[Tensor | None]:
    """For each affine node how far one neuron moves for each unit of ``eps``: ``(1, *shape)``.

    ``L_in ‖row_k(A)‖₂``; None for sums and activations, where
    the boxes before them say as much.
    """
    reach: list[Tensor | None] = [None] * len(network.nodes)
    for i, operator in network.exact.operators.items():
        constant = constants[network.nodes[i].inputs[0]]
        if math.isfinite(constant):
            rows = OUT64.times(row_norms(operator, network.exact.anchor), constant)
            reach[i] = rounded_up(rows, network.anchor.dtype)
    return reach
