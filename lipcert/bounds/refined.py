"""What sharpens an anchored state: local norms, chains, and boxes of layers seen from the input.

A layer is refined whole: every neuron that can vary is a form to bound by the dual from both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.bounds.anchored import Facts, State
from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Box, Centre
from lipcert.bounds.chain import Chain
from lipcert.bounds.dual import DualBound, Forms
from lipcert.network import Network
from lipcert.network.activations import Elementwise

_CHUNK = 2**23


@dataclass(frozen=True, eq=False)
class Prepared:
    """What was found at one radius and holds at every smaller one.

    ``varying``: the masks of the activations; masks and gains only grow with the radius. ``edges``:
    local norms between these masks. ``chains`` and ``boxes``: of activations' inputs, by node.
    """

    varying: dict[int, Tensor] = field(default_factory=dict)
    edges: dict[Edge, Tensor] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    boxes: dict[int, Box] = field(default_factory=dict)


class Kept(Facts):
    """Facts that were prepared, at radii ``eps`` up to the one of the preparation."""

    def __init__(self, prepared: Prepared, eps: Tensor) -> None:
        self.prepared, self.eps = prepared, eps

    def varying(self, activation: int, mask: Tensor) -> Tensor:
        # Chains hold for balls that cover every neuron which varied when they were found.
        return torch.maximum(mask, self.prepared.varying[activation])

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        return self.prepared.edges[edge]

    def box(self, node: int, state: State, box: Box) -> Box:
        return _meet(box, self.prepared.boxes.get(node))

    def ball(self, node: int, state: State, mask: Tensor, radius: Tensor) -> Tensor:
        chain = self.prepared.chains.get(node)
        return radius if chain is None else torch.minimum(radius, chain.length(state, self.eps))


def is_narrow(network: Network, node: int, widest: int) -> bool:
    return math.prod(network.nodes[node].shape) <= widest


def refined_box(
    network: Network, rough: Network, centre: Centre, eps: Tensor, node: int, state: State,
    box: Box, kind: Elementwise, steps: int,
) -> Box:  # fmt: skip
    """The box of a narrow layer, each neuron that varies bounded by the dual from both sides.

    Slopes take ``steps`` in float32 on ``rough``, a copy of the network.
    """
    shape = network.nodes[node].shape
    lower, upper = (side.flatten(1).clone() for side in box)
    anchor, error = centre.values[node].flatten(1), centre.errors[node].flatten(1)
    flat, steep = kind.secant(*box, centre.values[node])
    rows, neurons = (flat != steep).flatten(1).nonzero().unbind(1)
    size = sum(math.prod(network.nodes[i].shape) for i in state)
    for some in torch.split(torch.arange(len(rows)), max(1, _CHUNK // (2 * size))):
        row, neuron = rows[some], neurons[some]
        for sign, side in ((1.0, lower), (-1.0, upper)):
            form = anchor.new_zeros(len(row), anchor.shape[1])
            form.scatter_(1, neuron[:, None], sign)
            forms = Forms(node, row, form.reshape(-1, *shape))
            found = _bounded(network, rough, state, eps, forms, steps)
            found = anchor[row, neuron] + sign * (found - error[row, neuron])
            now = side[row, neuron]
            # A NaN never wins; the side only moves inwards.
            better = found > now if sign > 0 else found < now
            side[row, neuron] = torch.where(better, found, now)
    return lower.reshape(box[0].shape), upper.reshape(box[1].shape)


def _bounded(
    network: Network, rough: Network, state: State, eps: Tensor, forms: Forms, steps: int
) -> Tensor:
    used = {i: layer for i, layer in state.items() if i < forms.node}
    own = {i: layer.map(lambda t: t[forms.rows]) for i, layer in used.items()}
    guide, radius = DualBound(rough), eps[forms.rows]
    single = {i: layer.map(lambda t: t.float()) for i, layer in own.items()}
    small = forms.to(torch.float32)
    found = guide.start(single, small)
    if steps:
        _, found = guide.optimise(single, radius.float(), small, found, steps)
    return DualBound(network).certified(own, radius, forms, found.to(eps.dtype))


def _meet(box: Box, other: Box | None) -> Box:
    if other is None:
        return box
    return torch.maximum(box[0], other[0]), torch.minimum(box[1], other[1])
