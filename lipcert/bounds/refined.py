"""What sharpens an anchored state: local norms, chains, and boxes of layers seen from the input.

A layer is refined whole: every neuron that can vary is a form to bound by the dual from both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.bounds.anchored import Facts, State, select, to_dtype
from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Box, Centre
from lipcert.bounds.chain import Chain
from lipcert.bounds.dual import DualBound
from lipcert.bounds.forms import Forms
from lipcert.network import Network
from lipcert.network.activations import Elementwise
from lipcert.rounding import FLOAT64, rounded_up

_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Prepared:
    """What was found at one radius and holds at every smaller one.

    ``varying``: the masks of the activations; masks and gains only grow with the radius. ``edges``:
    local norms between these masks. ``chains``, ``boxes`` and ``noise``: of activations' inputs, by
    node.
    ``fixed``: for every segment how many values of its sink cannot vary, ``(B, segments)``, where
    that is known.
    """

    varying: dict[int, Tensor] = field(default_factory=dict)
    edges: dict[Edge, Tensor] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    boxes: dict[int, Box] = field(default_factory=dict)
    noise: dict[int, Tensor] = field(default_factory=dict)
    fixed: Tensor | None = None

    def select(self, rows: Tensor) -> Prepared:
        """Some of the samples."""
        return Prepared(
            varying={i: mask[rows] for i, mask in self.varying.items()},
            edges={edge: norm[rows] for edge, norm in self.edges.items()},
            chains={i: chain.select(rows) for i, chain in self.chains.items()},
            boxes={i: (low[rows], high[rows]) for i, (low, high) in self.boxes.items()},
            noise={i: noise[rows] for i, noise in self.noise.items()},
            fixed=None if self.fixed is None else self.fixed[rows],
        )


# What rounding adds at an activation's input, a node, from the layers before it and the box that
# these put it into: ``(B, *shape)``.
NoiseOf = Callable[[int, State, Box], Tensor]


class Kept(Facts):
    """Facts that were prepared, at radii up to the one of the preparation; ``noise_of`` may know
    of less noise at this one."""

    def __init__(self, prepared: Prepared, noise_of: NoiseOf | None = None) -> None:
        self.prepared, self.noise_of = prepared, noise_of

    def noise(self, node: int, state: State, box: Box) -> Tensor | None:
        noise = self.prepared.noise.get(node)
        if noise is None or self.noise_of is None:
            return noise
        return torch.fmin(noise, self.noise_of(node, state, box))

    def varying(self, activation: int, mask: Tensor) -> Tensor:
        # Chains hold for balls that cover every neuron which varied when they were found.
        return torch.maximum(mask, self.prepared.varying[activation])

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        return self.prepared.edges[edge]

    def box(self, node: int, state: State, box: Box, off: Tensor) -> Box:
        return _meet(box, self.prepared.boxes.get(node))

    def ball(self, node: int, state: State, mask: Tensor, radius: Tensor) -> Tensor:
        chain = self.prepared.chains.get(node)
        return radius if chain is None else torch.minimum(radius, chain.length(state))


def is_narrow(network: Network, node: int, widest: int) -> bool:
    return math.prod(network.nodes[node].shape) <= widest


def refined_box(
    duals: tuple[DualBound, DualBound], centre: Centre, node: int, state: State, box: Box,
    off: Tensor, kind: Elementwise, steps: int, work: float,
) -> Box:  # fmt: skip
    """The box of a layer, each neuron that varies bounded by the dual from both sides.

    ``duals``: the rigorous one, and the one where slopes are sought by ``steps``. Samples of more
    than ``work``, the values of all layers for every such neuron, keep the box that they have.
    ``off``: how far values may be from what the layers before tell.
    """
    shape = duals[0].network.nodes[node].shape
    lower, upper = (side.flatten(1).clone() for side in box)
    anchor, error = centre.values[node].flatten(1), off.flatten(1)
    flat, steep = kind.secant(*box, centre.values[node])
    size = sum(layer.anchor[0].numel() for layer in state.values())
    wanted = (flat != steep).flatten(1)
    wanted &= (wanted.sum(1, keepdim=True) * size) <= work
    rows, neurons = wanted.nonzero().unbind(1)
    for some in torch.split(torch.arange(len(rows)), max(1, _CHUNK // (2 * size))):
        row, neuron = rows[some], neurons[some]
        for sign, side in ((1.0, lower), (-1.0, upper)):
            form = anchor.new_zeros(len(row), anchor.shape[1])
            form.scatter_(1, neuron[:, None], sign)
            forms = Forms(node, row, form.reshape(-1, *shape))
            found = _bounded(duals, select(state, row), forms, steps)
            at, found = anchor[row, neuron], found - error[row, neuron]
            found = at + sign * (found - 4 * FLOAT64 * (at.abs() + found.abs()))
            # Rounded outwards, where the box is in a narrower type.
            found = -sign * rounded_up(-sign * found, side.dtype)
            now = side[row, neuron]
            # A NaN never wins; the side only moves inwards.
            better = found > now if sign > 0 else found < now
            side[row, neuron] = torch.where(better, found, now)
    return lower.reshape(box[0].shape), upper.reshape(box[1].shape)


def _bounded(duals: tuple[DualBound, DualBound], state: State, forms: Forms, steps: int) -> Tensor:
    rigorous, guide = duals
    dtype = guide.network.anchor.dtype
    single, small = to_dtype(state, dtype), forms.to(dtype)
    found = guide.start(single, small)
    if steps:
        _, found = guide.optimise(single, small, found, steps)
    if rigorous.network.rough:
        # A guess: what rounding adds is not its matter.
        return rigorous.change(state, forms, found)
    return rigorous.certified(state, forms, found)


def _meet(box: Box, other: Box | None) -> Box:
    if other is None:
        return box
    return torch.maximum(box[0], other[0]), torch.minimum(box[1], other[1])
