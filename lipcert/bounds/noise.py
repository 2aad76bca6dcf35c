"""The deployed network as a noisy one: what rounding does between two activations, and no further.

A run in floating point gives the input of an activation as ``ẑ = A â + b + δ``, where ``â`` are its
own values at the activations before, and ``δ`` is what was rounded since: ``|δ| ≤ r``. So it is a
run of the real network with noise in front of every activation. The anchored bounds follow how far
values move from their anchors, and what an anchor drifts is such a noise already: with ``r`` added
to it their boxes hold the values of every run that rounds at most so, the deployed, the real and
any mixture, and their margins are those of all of them. Nothing has to be known of how far a
deployed value is from the real one, which in the worst case grows with the depth like a product of
``‖ |A| ‖``.

``r`` depends on how large values are: on the layers before, whose boxes hold deployed values. So it
is found layer by layer, as these are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds.ordered import Moves
from lipcert.bounds.reach import Reach, joined, through
from lipcert.bounds.rounding_sweep import Place, Rounded, RoundingSweep
from lipcert.bounds.roundoff import Roundoff
from lipcert.bounds.state import Layer, Noised, State
from lipcert.network import Input, Network, Node, ancestors, forward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.joints.base import ways_of
from lipcert.network.lower import lowered
from lipcert.network.operators import Operator, Shape
from lipcert.numbers import OUT64, Box, around, largest, meet
from lipcert.rounding import DOUBLE, Arithmetic, column

# How near the values of the same activation are in two versions of a network: to their own size,
# and, for small ones, to the largest in so many roundoffs; at so many points.
_SAME, _NOUGHT, _POINTS = 1e-4, 2.0**20, 3


@dataclass(frozen=True, eq=False)
class Noise:
    """The noise of a deployed network, for states of another version of it.

    ``roundoff``: of the network as deployed, but for comparisons, which are lowered; these nodes
    are ``compared``, and round nothing. ``partners``: by its sources those of the other version;
    ``sinks``: by the inputs of the other's activations those of its own.
    """

    roundoff: Roundoff
    compared: frozenset[int]
    partners: Mapping[int, int]
    sinks: Mapping[int, set[int]]
    arithmetic: Arithmetic | None

    @classmethod
    def of(
        cls, deployed: Network, analysed: Network, arithmetic: Arithmetic | None,
        analysis: Arithmetic,
    ) -> Noise | None:  # fmt: skip
        """None where the activations of the two are not the same, in order.

        Where a sum was rewritten as a rearrangement, an activation may read its values in another
        order: no sum may be missing. Of moves all rewritings make the same.
        """
        network, compared = lowered(deployed)
        if _outline(network) != _outline(analysed):
            return None
        if not _alike(network, analysed.exact, analysis.unit):
            return None
        partners = dict(zip(network.sources, analysed.sources, strict=True))
        sinks: dict[int, set[int]] = {}
        for i, other in zip(network.activations, analysed.activations, strict=True):
            sink = analysed.nodes[other].inputs[0]
            sinks.setdefault(sink, set()).add(network.nodes[i].inputs[0])
        return cls(Roundoff.of(network, analysis), compared, partners, sinks, arithmetic)

    def over(self, eps: Tensor) -> NoiseSweep:
        """For the balls of radius ``eps``, ``(B,)``, and one state."""
        return NoiseSweep(self, eps)


class NoiseSweep:
    """The noise in front of the activations of one state, found as the state grows."""

    def __init__(self, noise: Noise, eps: Tensor) -> None:
        self.noise, self.eps = noise, eps
        self.found: dict[int, Rounded[_Run]] = {}

    def before(self, sink: int, state: State, box: Box) -> Noised:
        """``r`` at an input of activations of the state's network, in float64; its length by norms,
        which know what elements do not: that errors rarely all add up.

        ``state`` has the layers of all activations before it, which put it into the ``box``, but
        for this noise."""
        known = box[0].double(), box[1].double()
        nodes = sorted(self.noise.sinks[sink])
        each = torch.stack([self._at(node, state, known) for node in nodes]).amax(0)
        return Noised(each, torch.stack([self.found[node].length for node in nodes]).amax(0))

    def logits(self, state: State) -> Tensor:
        """``r`` of the logits, ``(B, K)``; infinite where anything before them could overflow: what
        comes after may be no number, which no clip mends."""
        found = self._at(self.noise.roundoff.network.output, state).flatten(1)
        fresh = [one.fresh.isfinite().flatten(1).all(1) for one in self.found.values()]
        return torch.where(torch.stack(fresh).all(0)[:, None], found, torch.inf)

    def _at(self, node: int, state: State, known: Box | None = None) -> Tensor:
        network = self.noise.roundoff.network
        rules = _FromState(self.noise, self.eps, state, node, known)
        path = ancestors(network, node)
        self.found = forward(network, rules, known=self.found, along=path)
        return self.found[node].total


@dataclass(frozen=True, eq=False)
class _Run(Place):
    """``reference``: what the anchors come to at a node, computed within ``residual``, and
    ``reach`` how far a run is from that, but for rounding."""

    reference: Tensor
    residual: Tensor
    reach: Reach


class _FromState(RoundingSweep[_Run]):
    """``RoundingSweep`` beside a state: every activation is a new start. What is known of one
    ``node``, its box, is met."""

    def __init__(
        self, noise: Noise, eps: Tensor, state: State, node: int, known: Box | None
    ) -> None:
        super().__init__(noise.roundoff, eps, noise.arithmetic)
        self.noise, self.state, self.node, self.known = noise, state, node, known

    def format(self, i: int) -> Arithmetic | None:
        return None if i in self.noise.compared else super().format(i)

    def place(self, i: int, parts: list[Rounded[_Run]]) -> _Run:
        kind, runs = self.tools.network.nodes[i].kind, [part.here for part in parts]
        match kind:
            case Input():
                value, rest, reach = self._start()
            case Activation():
                value, rest, reach = self._past(i, kind)
            case Joint():
                value, rest, reach = self._past_joint(i, kind)
            case Operator():
                rows = self.tools.rows[i]
                assert rows is not None
                value, rest = OUT64.apply(kind, runs[0].reference, runs[0].residual)
                reach = through(kind, runs[0].reach, rows, self.tools.norms[i], OUT64)
            case _:
                value, rest = OUT64.total([(run.reference, run.residual) for run in runs])
                reach = joined([run.reach for run in runs], OUT64)
        box = around(value, OUT64.add(reach.width, rest))
        if isinstance(kind, Joint):
            box = meet(box, kind.image([run.box for run in runs]))
        if i == self.node and self.known is not None:
            box = meet(box, self.known)
        return _Run(box, value, rest, reach)

    def _start(self) -> tuple[Tensor, Tensor, Reach]:
        x = self._layer(0).anchor
        return x, torch.zeros_like(x), Reach(column(self.eps, x).expand_as(x), self.eps)

    def _past(self, i: int, activation: Activation) -> tuple[Tensor, Tensor, Reach]:
        layer = self._layer(i)
        value = activation.value(layer.anchor)
        way = OUT64.up(torch.maximum(layer.upper - layer.anchor, layer.anchor - layer.lower), 1)
        width = OUT64.times(torch.minimum(way, column(layer.radius, way)), layer.gain)
        reach = Reach(width, layer.radius, OUT64.times(layer.gain, layer.gain))
        return value, OUT64.rounding(activation.rounding, value, layer.anchor), reach

    def _past_joint(self, i: int, joint: Joint) -> tuple[Tensor, Tensor, Reach]:
        layers = [self._layer(j) for j in self.tools.network.nodes[i].inputs]
        anchors = [layer.anchor for layer in layers]
        boxes = [(layer.lower, layer.upper) for layer in layers]
        rest = joint.rounding([(anchor, anchor) for anchor in anchors], DOUBLE)
        derivative = joint.derivative(anchors)
        linear = derivative.magnitude_once([largest(way) for way in ways_of(anchors, boxes)])
        width = OUT64.add(OUT64.up(linear, derivative.terms + 8), joint.remainder(anchors, boxes))
        return joint.value(*anchors), rest, Reach(width, OUT64.length(width))

    def _layer(self, i: int) -> Layer:
        return self.state[self.noise.partners[i]].map(lambda t: t.double())

    def past(self, activation: Activation, before: Rounded[_Run]) -> tuple[Tensor, Tensor]:
        shape = activation.out_shape(before.total.shape[1:])
        return before.total.new_zeros(len(self.eps), *shape), torch.zeros_like(self.eps)

    def past_joint(self, joint: Joint, parts: list[Rounded[_Run]]) -> tuple[Tensor, Tensor]:
        none = self.eps.new_zeros(len(self.eps), *joint.out_shape)
        return none, torch.zeros_like(self.eps)

    def near(self, operator: Operator, rows: Tensor, before: Rounded[_Run], here: _Run) -> Tensor:
        run = before.here
        size = OUT64.add(run.reference.abs(), run.residual, 2 * before.total)
        return OUT64.add(OUT64.magnitude(operator, size), here.reach.width)

    def moves(self, before: Rounded[_Run]) -> Moves:
        run = before.here
        spread = OUT64.add(run.residual, 2 * before.total)
        return Moves(run.reference, spread, run.reach.width, run.reach.whole, before.size != 0)

    def found(self, i: int, node: Node, value: Rounded[_Run]) -> Rounded[_Run]:
        """An activation's own rounding, of limits in a narrower analysis too, is behind it."""
        if i not in self.noise.partners:
            return value
        residual = OUT64.add(value.here.residual, 2 * value.total)
        return replace(value, here=replace(value.here, residual=residual))


def _outline(network: Network) -> tuple[int, list[tuple[type, Shape]]]:
    """How many sums there are, and the kinds and input shapes of the activations and joints."""
    nodes = network.nodes
    kinds = [(type(nodes[i].kind), nodes[nodes[i].inputs[0]].shape) for i in network.sources if i]
    return len(network.sums), kinds


def some_inputs(network: Network) -> Tensor:
    """A few that mean nothing, ``(3, …)`` in [0, 1]."""
    places = torch.arange(math.prod(network.in_shape)).to(network.anchor)
    flat = torch.stack([0.5 + 0.5 * torch.sin(1.0 + k + (k + 1) * places) for k in range(_POINTS)])
    return flat.reshape(_POINTS, *network.in_shape)


def _alike(one: Network, other: Network, unit: float) -> bool:
    """Whether their activations read the same at a few points, but for rounding in a type of this
    ``unit``; where that is large too, or numbers are not finite, they do not."""
    x = some_inputs(one)
    values, others = one.values(x), other.values(x)
    for i, j in zip(one.activations, other.activations, strict=True):
        first, second = values[one.nodes[i].inputs[0]], others[other.nodes[j].inputs[0]]
        sizes = first.abs() + second.abs()
        allowed = _SAME * sizes + _NOUGHT * unit * sizes.amax()
        if not bool(((first - second).abs() <= allowed).all()):
            return False
    return True
