"""What sharpens an anchored state: local norms, chains, and narrow layers seen from the input.

A narrow layer is refined whole: every neuron that can vary is a form to bound by the dual from
both sides, and one reverse sweep of all rows gives its chain exactly. A wide layer's chain takes
one norm of a matrix-free map for each source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.bounds.anchored import Facts, Layer, State
from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Box, Centre
from lipcert.bounds.chain import Linearised, middle_and_half
from lipcert.bounds.dual import DualBound, Forms
from lipcert.network import Network
from lipcert.network.activations import Elementwise
from lipcert.network.operators import Operator
from lipcert.norms import WeightedMap, spectral_norm
from lipcert.rounding import FLOAT64, gamma

_CHUNK = 2**23

Chain = list[tuple[int, Tensor]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What was found at one radius and holds at every smaller one.

    ``edges``: local norms; masks and gains only grow with the radius. ``chains``: for an
    activation's input the norms of its chain, by source; secant ranges only widen with the radius,
    so the slopes they were taken at still serve. ``boxes``: refined boxes. ``fixed``: for every
    segment how many values of its sink cannot vary, ``(B, segments)``, where that is known.
    """

    edges: dict[Edge, Tensor] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    boxes: dict[int, Box] = field(default_factory=dict)
    fixed: Tensor | None = None


class Kept(Facts):
    """Facts that were prepared, at radii ``eps`` up to the one of the preparation."""

    def __init__(self, prepared: Prepared, eps: Tensor) -> None:
        self.prepared, self.eps = prepared, eps

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        return self.prepared.edges[edge]

    def box(self, node: int, state: State, box: Box) -> Box:
        return _meet(box, self.prepared.boxes.get(node))

    def ball(self, node: int, state: State, mask: Tensor, radius: Tensor) -> Tensor:
        chain = self.prepared.chains.get(node)
        return radius if chain is None else torch.minimum(radius, length(chain, state, self.eps))


def length(chain: Chain, state: State, eps: Tensor) -> Tensor:
    """``eps N_0 + Σ_i N_i ρ_i``: infinite where a norm is."""
    total = torch.zeros_like(eps)
    for source, norm in chain:
        total = total + norm * (eps if source == 0 else state[source].radius)
    return total * (1 + gamma(len(chain) + 4))


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


def narrow_chain(network: Network, eps: Tensor, node: int, state: State, mask: Tensor) -> Chain:
    """All norms of a narrow node's chain, by one reverse sweep of its rows."""
    batch, size = len(eps), math.prod(network.nodes[node].shape)
    unit = torch.eye(size, dtype=eps.dtype, device=eps.device)
    rows = (mask.flatten(1)[:, :, None] * unit).reshape(-1, *network.nodes[node].shape)
    pending, noise = {node: rows}, {node: torch.zeros_like(rows)}
    chain: Chain = []
    sweep = DualBound(network)

    def norm(value: Tensor, fuzz: Tensor) -> Tensor:
        matrix, spread = value.reshape(batch, size, -1), fuzz.flatten(1).square().sum(1)
        spread = spread.reshape(batch, size).sum(1).sqrt() * (1 + gamma(matrix[0].numel() + 8))
        return spectral_norm(matrix) + spread

    for i in range(node, 0, -1):
        if i not in pending:
            continue
        kind, value, fuzz = network.nodes[i].kind, pending.pop(i), noise.pop(i)
        if isinstance(kind, Elementwise):
            middle, half = (
                side.repeat_interleave(size, 0) for side in middle_and_half(kind, state[i])
            )
            ranged = value * half
            chain.append((i, norm(ranged, fuzz * half + 4 * FLOAT64 * ranged.abs())))
            value = value * middle
            fuzz = fuzz * middle.abs() + 4 * FLOAT64 * value.abs()
        sweep.pass_on(pending, i, value, "transpose")
        if isinstance(kind, Operator):
            slack = gamma(kind.transposed_terms + 24)
            fuzz = fuzz * (1 + slack) + slack * value.abs()
        sweep.pass_on(noise, i, fuzz, "transpose_magnitude")
    if 0 in pending:
        chain.append((0, norm(pending[0], noise[0])))
    return chain


def wide_chain(
    network: Network,
    node: int,
    state: State,
    mask: Tensor,
    like: Tensor,
    norm: Callable[[WeightedMap, int], Tensor],
) -> Chain:
    """The norms of a wide node's chain, each of a matrix-free map; ``norm`` is told its number."""
    slopes, halves = {}, {0: torch.ones_like(like)}
    for i, layer in state.items():
        kind = network.nodes[i].kind
        assert isinstance(kind, Elementwise)
        slopes[i], halves[i] = middle_and_half(kind, layer)
    chain: Chain = []
    for number, source in enumerate(chain_sources(network, node)):
        line = Linearised(network, source, node, slopes)
        chain.append((source, norm(WeightedMap(line, halves[source], mask), number)))
    return chain


def chain_sources(network: Network, node: int) -> list[int]:
    """The sources that reach a node, through activations or not; none but the input: no chain."""
    sources = [j for j in network.sources if j <= node and Linearised(network, j, node, {}).path]
    return sources if len(sources) > 1 else []


def _meet(box: Box, other: Box | None) -> Box:
    if other is None:
        return box
    return torch.maximum(box[0], other[0]), torch.minimum(box[1], other[1])


def select(state: State, rows: Tensor) -> dict[int, Layer]:
    """A state with one row for each form."""
    return {i: layer.map(lambda t: t[rows]) for i, layer in state.items()}
