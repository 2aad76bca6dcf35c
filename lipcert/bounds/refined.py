"""Refined boxes: inner neurons, bounded from both sides by the dual, seen from the input.

A layer is refined whole: every neuron that can vary is an objective to bound by the dual from both
sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds.boxes import Centre
from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import Objectives
from lipcert.bounds.receptive import ReceptiveFields
from lipcert.bounds.state import State, select, to_dtype
from lipcert.bounds.terms import against
from lipcert.chunks import at_once, slices
from lipcert.network import ancestors
from lipcert.network.activations import Elementwise
from lipcert.numbers import OUT64, Box
from lipcert.rounding import rounded_up

# Values of the subnetwork at once: more samples and neurons in one pass cost memory, and no longer
# save time once they leave the processor's caches.
_CHUNK = 2**19
# One of so many neurons is tried.
_EVERY = 16


@dataclass(frozen=True, eq=False)
class Subnetwork:
    """The network as the neurons of one node see it, whole or through windows: the rigorous dual,
    and the one where slopes are sought."""

    node: int
    duals: tuple[DualBound, DualBound]
    receptive: ReceptiveFields | None

    @classmethod
    def of(cls, duals: tuple[DualBound, DualBound], node: int, most: float = 0.5) -> Subnetwork:
        """Looks through receptive fields that hold at most the share ``most`` of all values."""
        fields, guides = (ReceptiveFields.of(dual.network, node, most) for dual in duals)
        if fields is None or guides is None:
            return cls(node, duals, None)
        images = duals[0].images
        small = DualBound(fields.network, images=images), DualBound(guides.network, images=images)
        return cls(fields.network.output, small, fields)

    @property
    def rough(self) -> bool:
        """Whether slopes would be sought with an activation that is only known roughly there:
        steps gain next to nothing then."""
        network = self.duals[0].network
        kinds = [network.nodes[i].kind for i in ancestors(network, self.node)]
        return any(isinstance(kind, Elementwise) and kind.rough for kind in kinds)

    @property
    def size(self) -> int:
        """The number of values that one neuron sees."""
        network = self.duals[0].network
        path = ancestors(network, self.node)
        return sum(math.prod(network.nodes[i].shape) for i in network.sources if i in path)

    def state(self, state: State, rows: Tensor, neurons: Tensor) -> State:
        """Gives each neuron what it sees of its row."""
        if self.receptive is not None:
            return self.receptive.state(state, rows, neurons)
        return select(state, rows)

    def objectives(self, rows: Tensor, neurons: Tensor, like: Tensor) -> Objectives:
        """Makes an objective of each neuron."""
        if self.receptive is not None:
            return Objectives(self.node, rows, self.receptive.coefficients(neurons, like))
        shape = self.duals[0].network.nodes[self.node].shape
        objective = like.new_zeros(len(rows), math.prod(shape))
        objective.scatter_(1, neurons[:, None], 1.0)
        return Objectives(self.node, rows, objective.reshape(-1, *shape))


@dataclass(frozen=True)
class Refinement:
    """How much goes into the boxes of a layer: ``steps`` of the slopes; ``work``: the values that
    all neurons that vary may see, bounded from both sides, or else those on whose sides slopes
    change. Where these see more, up to what may be ``tried``, they are bounded where a few of them
    shrink to less than ``worth`` of what they were, then with so many steps ``more``.
    ``receptive``: neurons are seen through receptive fields that hold at most so much of all
    values."""

    steps: int = 0
    work: float = math.inf
    tried: float = 0.0
    worth: float = 0.0
    more: int = 0
    receptive: float = 0.5


def refined_box(
    subnetwork: Subnetwork, centre: Centre, node: int, state: State, box: Box, off: Tensor,
    kind: Elementwise, refinement: Refinement,
) -> tuple[Box, Tensor]:  # fmt: skip
    """The box of a layer, with neurons bounded by the dual; and to what share sides shrank where a
    few were tried, ``(B,)``, else NaN.

    ``off``: how far values may be from what the layers before tell.
    """
    here = centre.values[node]
    sides = torch.stack([side.flatten(1) for side in box])
    lower, upper = torch.minimum(box[0], here), torch.maximum(box[1], here)
    bends = torch.stack([_bends(kind, lower, here), _bends(kind, here, upper)]).flatten(2)
    varying = (kind.gain(lower, upper) != 0).flatten(1)
    full = 2 * varying.sum(1) * subnetwork.size <= refinement.work
    work = bends.sum((0, 2)) * subnetwork.size
    tried = (work > refinement.work) & (work <= refinement.tried)
    anchor = here.flatten(1)

    def refine(wanted: Tensor, steps: int) -> None:
        _move_inwards(subnetwork, state, sides, wanted, anchor, off.flatten(1), steps)

    shrunk = torch.full_like(centre.logits[:, 0], math.nan)
    if refinement.tried and bool(tried.any()):
        few = bends & tried[:, None] & (bends.cumsum(2) % _EVERY == 1)
        before = sides.clone()
        refine(few, refinement.steps)
        now, then = ((few * (of - anchor).abs()).sum((0, 2)) for of in (sides, before))
        shrunk = torch.where(tried, now / then, math.nan).to(shrunk)
    pays = tried & (shrunk < refinement.worth)
    little = (work <= refinement.work)[:, None]
    refine(varying & full[:, None] | bends & little, refinement.steps)
    refine(bends & pays[:, None], refinement.steps + refinement.more)
    return (sides[0].reshape(box[0].shape), sides[1].reshape(box[1].shape)), shrunk


def _move_inwards(
    subnetwork: Subnetwork, state: State, sides: Tensor, wanted: Tensor, anchor: Tensor,
    error: Tensor, steps: int,
) -> None:  # fmt: skip
    """Bounds the ``wanted`` ones of all sides, ``(2, B, m)``, by the dual, in place; a side only
    moves inwards. ``anchor`` and ``error`` are ``(B, m)``."""
    steps = 0 if subnetwork.rough else steps
    places = wanted.nonzero()
    for some in slices(len(places), at_once(_CHUNK, anchor.device, each=subnetwork.size)):
        side, row, neuron = places[some].unbind(1)
        sign = 1.0 - 2.0 * side
        seen = subnetwork.state(state, row, neuron)
        objectives = subnetwork.objectives(row, neuron, anchor)
        signed = against(sign, objectives.coefficients) * objectives.coefficients
        objectives = replace(objectives, coefficients=signed)
        found = _bounded(subnetwork.duals, seen, objectives, steps)
        at, found = anchor[row, neuron], found - error[row, neuron]
        found = at + sign * (found - OUT64.error(at.abs() + found.abs(), 4))
        # Rounded outwards, where the box is in a narrower type.
        found = -sign * rounded_up(-sign * found, sides.dtype)
        now = sides[side, row, neuron]
        # A NaN never wins.
        better = sign * found > sign * now
        sides[side, row, neuron] = torch.where(better, found, now)


def _bends(kind: Elementwise, lower: Tensor, upper: Tensor) -> Tensor:
    """Tells whether an activation has several slopes in a box."""
    flat, steep = kind.slopes(lower, upper)
    return flat < steep


def _bounded(
    duals: tuple[DualBound, DualBound], state: State, objectives: Objectives, steps: int
) -> Tensor:
    rigorous, guide = duals
    dtype = guide.network.anchor.dtype
    single, small = to_dtype(state, dtype), objectives.to(dtype)
    # Where boxes count slopes are CROWN's.
    found = guide.start(single, small, crown=not steps)
    if steps:
        _, found = guide.optimise(single, small, found, steps)
    if rigorous.network.rough:
        # A guess: what rounding adds is not its matter.
        return rigorous.change(state, objectives, found)
    return rigorous.certified(state, objectives, found)
