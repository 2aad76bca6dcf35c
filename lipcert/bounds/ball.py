"""How far each node can move: global Lipschitz constants from the input to every node.

A ball of radius ``eps`` around the input reaches a node within ``L · eps``. Norms multiply along a
path and add up where branches meet, so residual networks need nothing special.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lipcert.network import Network
from lipcert.network.activations import Activation
from lipcert.network.operators import Operator
from lipcert.norms import SegmentNorms, at_least_tiny, operator_norm, row_norms
from lipcert.rounding import FLOAT64, FLOAT64_TINY, rounded_up

Edge = tuple[int, int]


def node_constants(
    network: Network, norms: Mapping[Edge, SegmentNorms], own: Sequence[float] | None = None
) -> list[float]:
    """For each node an upper bound of the L2 Lipschitz constant from the input to it.

    ``norms`` holds whole segments, by (source, sink); a sink whose segments are all there is
    bounded by them, any other affine node by its operator's own norm; ``own`` has these where they
    are known already, an entry a node.
    """
    constants: list[float] = []
    for i, node in enumerate(network.nodes):
        parts = [constants[j] for j in node.inputs]
        arriving = [(edge[0], norm) for edge, norm in norms.items() if edge[1] == i]
        if i == 0:
            bound = 1.0
        elif arriving and not isinstance(node.kind, Activation):
            bound = sum(
                at_least_tiny(norm.norm.value, constants[source]) for source, norm in arriving
            )
        elif isinstance(node.kind, Activation):
            bound = at_least_tiny(parts[0], node.kind.lipschitz)
        elif isinstance(node.kind, Operator):
            norm_here = operator_norm(node.kind) if own is None else own[i]
            bound = at_least_tiny(parts[0], norm_here)
        else:
            bound = sum(parts)
        constants.append(bound * (1 + (len(arriving) + len(parts) + 4) * FLOAT64))
    return constants


def coordinate_reach(network: Network, constants: list[float]) -> list[Tensor | None]:
    """For each affine node how far one neuron moves for each unit of ``eps``: ``(1, *shape)``.

    ``L_in ‖row_k(A)‖₂``; None for sums and activations, where
    the boxes before them say as much.
    """
    like, dtype = network.exact.anchor, network.anchor.dtype
    reach: list[Tensor | None] = []
    for node in network.exact.nodes:
        if isinstance(node.kind, Operator) and math.isfinite(constants[node.inputs[0]]):
            rows = row_norms(node.kind, like) * constants[node.inputs[0]] + FLOAT64_TINY
            reach.append(rounded_up(rows, dtype))
        else:
            reach.append(None)
    return reach
