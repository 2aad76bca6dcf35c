"""What sharpens an anchored state: local norms, chains, and boxes of layers seen from the input.

A layer is refined whole: every neuron that can vary is a form to bound by the dual from both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.bounds.anchored import Facts, Noised, State, select, to_dtype
from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Box, Centre
from lipcert.bounds.chain import Chain
from lipcert.bounds.dual import DualBound
from lipcert.bounds.forms import Forms
from lipcert.bounds.windows import Windows
from lipcert.network import Network, ancestors
from lipcert.network.activations import Elementwise
from lipcert.rounding import FLOAT64, rounded_up

_CHUNK = 2**19
# One of so many neurons is tried.
_EVERY = 16


@dataclass(frozen=True, eq=False)
class Prepared:
    """What was found at one radius and holds at every smaller one.

    ``varying`` and ``gains``: the masks of the activations and their gains. ``edges``: local norms
    between these. ``chains``, ``boxes`` and ``noise``: of activations' inputs, by node. ``shrunk``:
    to what share boxes did that were tried, by node. ``fixed``: for every segment how many values
    of its sink cannot vary, ``(B, segments)``, where that is known.
    """

    varying: dict[int, Tensor] = field(default_factory=dict)
    gains: dict[int, Tensor] = field(default_factory=dict)
    edges: dict[Edge, Tensor] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    boxes: dict[int, Box] = field(default_factory=dict)
    noise: dict[int, Noised] = field(default_factory=dict)
    shrunk: dict[int, Tensor] = field(default_factory=dict)
    fixed: Tensor | None = None

    def select(self, rows: Tensor) -> Prepared:
        """Some of the samples."""
        return Prepared(
            varying={i: mask[rows] for i, mask in self.varying.items()},
            gains={i: gain[rows] for i, gain in self.gains.items()},
            edges={edge: norm[rows] for edge, norm in self.edges.items()},
            chains={i: chain.select(rows) for i, chain in self.chains.items()},
            boxes={i: (low[rows], high[rows]) for i, (low, high) in self.boxes.items()},
            noise={i: noise.select(rows) for i, noise in self.noise.items()},
            shrunk={i: share[rows] for i, share in self.shrunk.items()},
            fixed=None if self.fixed is None else self.fixed[rows],
        )


# What rounding adds at an activation's input, a node, from the layers before it and the box that
# these put it into.
NoiseOf = Callable[[int, State, Box], Noised]


class Kept(Facts):
    """Facts that were prepared, at radii up to the one of the preparation; ``noise_of`` may know
    of less noise at this one."""

    def __init__(self, prepared: Prepared, noise_of: NoiseOf | None = None) -> None:
        self.prepared, self.noise_of = prepared, noise_of

    def noise(self, node: int, state: State, box: Box) -> Noised | None:
        noise = self.prepared.noise.get(node)
        if noise is None or self.noise_of is None:
            return noise
        return noise.met(self.noise_of(node, state, box))

    def varying(self, activation: int, mask: Tensor) -> Tensor:
        # Norms and chains hold between these neurons, and others cannot vary: a box of the larger
        # radius said so, whatever rounding makes of the one at hand.
        return self.prepared.varying[activation]

    def gain(self, activation: int, gain: Tensor) -> Tensor:
        # Both bound the same changes: the enclosure of a smaller box need not be the smaller one.
        return torch.minimum(gain, self.prepared.gains[activation])

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        return self.prepared.edges[edge]

    def box(self, node: int, state: State, box: Box, off: Tensor) -> Box:
        return _meet(box, self.prepared.boxes.get(node))

    def ball(self, node: int, state: State, mask: Tensor, radius: Tensor) -> Tensor:
        chain = self.prepared.chains.get(node)
        return radius if chain is None else torch.minimum(radius, chain.length(state))


def is_narrow(network: Network, node: int, widest: int) -> bool:
    return math.prod(network.nodes[node].shape) <= widest


@dataclass(frozen=True, eq=False)
class View:
    """The network as the neurons of one node see it, whole or through windows: the rigorous dual,
    and the one where slopes are sought."""

    node: int
    duals: tuple[DualBound, DualBound]
    windows: Windows | None

    @classmethod
    def of(cls, duals: tuple[DualBound, DualBound], node: int) -> View:
        exact, rough = (dual.network for dual in duals)
        windows, guides = Windows.of(exact, node), Windows.of(rough, node)
        if windows is None or guides is None:
            return cls(node, duals, None)
        images = duals[0].images
        small = DualBound(windows.network, images=images), DualBound(guides.network, images=images)
        return cls(windows.network.output, small, windows)

    @property
    def size(self) -> int:
        """How many values one neuron sees."""
        network = self.duals[0].network
        path = ancestors(network, self.node)
        return sum(math.prod(network.nodes[i].shape) for i in network.sources if i in path)

    def state(self, state: State, rows: Tensor, neurons: Tensor) -> State:
        """What each neuron sees of its row."""
        if self.windows is not None:
            return self.windows.state(state, rows, neurons)
        return select(state, rows)

    def forms(self, rows: Tensor, neurons: Tensor, like: Tensor) -> Forms:
        """Each neuron as a form."""
        if self.windows is not None:
            return Forms(self.node, rows, self.windows.coefficients(neurons, like))
        shape = self.duals[0].network.nodes[self.node].shape
        form = like.new_zeros(len(rows), math.prod(shape))
        form.scatter_(1, neurons[:, None], 1.0)
        return Forms(self.node, rows, form.reshape(-1, *shape))


@dataclass(frozen=True)
class Refinement:
    """How much goes into the boxes of a layer: ``steps`` of the slopes; ``work``: the values that
    all neurons that vary may see, bounded from both sides, or else those on whose sides slopes
    change. Where these see more, up to what may be ``tried``, they are bounded where a few of them
    shrink to less than ``worth`` of what they were."""

    steps: int = 0
    work: float = math.inf
    tried: float = 0.0
    worth: float = 0.0


def refined_box(
    view: View, centre: Centre, node: int, state: State, box: Box, off: Tensor, kind: Elementwise,
    refinement: Refinement,
) -> tuple[Box, Tensor]:  # fmt: skip
    """The box of a layer, with neurons bounded by the dual; and to what share sides shrank where a
    few were tried, ``(B,)``, else NaN.

    ``off``: how far values may be from what the layers before tell.
    """
    here = centre.values[node]
    sides = [side.flatten(1).clone() for side in box]
    lower, upper = torch.minimum(box[0], here), torch.maximum(box[1], here)
    bends = [_bends(kind, lower, here).flatten(1), _bends(kind, here, upper).flatten(1)]
    varying = (kind.gain(lower, upper) != 0).flatten(1)
    full = 2 * varying.sum(1) * view.size <= refinement.work
    work = (bends[0].sum(1) + bends[1].sum(1)) * view.size
    tried = (work > refinement.work) & (work <= refinement.tried)
    anchor, error = here.flatten(1), off.flatten(1)

    def refine(wanted: list[Tensor]) -> None:
        for mask, sign, side in zip(wanted, (1.0, -1.0), sides, strict=True):
            rows, neurons = mask.nonzero().unbind(1)
            for some in torch.split(torch.arange(len(rows)), max(1, _CHUNK // view.size)):
                row, neuron = rows[some], neurons[some]
                seen, forms = view.state(state, row, neuron), view.forms(row, neuron, anchor)
                signed = replace(forms, coefficients=sign * forms.coefficients)
                found = _bounded(view.duals, seen, signed, refinement.steps)
                at, found = anchor[row, neuron], found - error[row, neuron]
                found = at + sign * (found - 4 * FLOAT64 * (at.abs() + found.abs()))
                # Rounded outwards, where the box is in a narrower type.
                found = -sign * rounded_up(-sign * found, side.dtype)
                now = side[row, neuron]
                # A NaN never wins; the side only moves inwards.
                better = found > now if sign > 0 else found < now
                side[row, neuron] = torch.where(better, found, now)

    shrunk = torch.full_like(centre.logits[:, 0], math.nan)
    if bool(tried.any()):
        few = [mask & tried[:, None] & (mask.cumsum(1) % _EVERY == 1) for mask in bends]
        before = [side.clone() for side in sides]
        refine(few)
        now, then = (
            torch.stack(
                [(mask * (side - anchor).abs()).sum(1) for mask, side in zip(few, of, strict=True)]
            )
            for of in (sides, before)
        )
        shrunk = torch.where(tried, now.sum(0) / then.sum(0), math.nan).to(shrunk)
    sure = (work <= refinement.work) | (shrunk < refinement.worth)
    refine([varying & full[:, None] | mask & sure[:, None] for mask in bends])
    return (sides[0].reshape(box[0].shape), sides[1].reshape(box[1].shape)), shrunk


def _bends(kind: Elementwise, lower: Tensor, upper: Tensor) -> Tensor:
    """Whether an activation has several slopes in a box."""
    flat, steep = kind.slopes(lower, upper)
    return flat < steep


def _bounded(duals: tuple[DualBound, DualBound], state: State, forms: Forms, steps: int) -> Tensor:
    rigorous, guide = duals
    dtype = guide.network.anchor.dtype
    single, small = to_dtype(state, dtype), forms.to(dtype)
    # Where boxes count slopes are CROWN's.
    found = guide.start(single, small, crown=not steps)
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
