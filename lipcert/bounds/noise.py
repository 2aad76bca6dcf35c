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
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.anchored import Layer, Reach, State, joined, through
from lipcert.bounds.boxes import Box, around, meet
from lipcert.bounds.rounding_sweep import ForwardSweep, length_of
from lipcert.bounds.roundoff import Roundoff
from lipcert.network import Input, Network, Sum, ancestors
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.lower import lowered
from lipcert.network.operators import Operator, Shape
from lipcert.rounding import DOUBLE, FLOAT64, Arithmetic, column, gamma

# How near the values of the same activation are in two spellings of a network: to their own size,
# and, for small ones, to the largest in so many roundoffs; at so many points.
_SAME, _NOUGHT, _POINTS = 1e-4, 2.0**20, 3


@dataclass(frozen=True, eq=False)
class Noise:
    """The noise of a deployed network, for states of another spelling of it.

    ``roundoff``: of the network as deployed, but for comparisons, which are lowered; these nodes
    are ``compared``, and round nothing. ``partners``: by its sources those of the other spelling;
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


class NoiseSweep(ForwardSweep):
    """``ForwardSweep`` beside a state that grows: every activation is a new start.

    ``reference``: what the anchors come to at each node, computed within ``residual``, and
    ``reach`` how far a run is from that, but for rounding.
    """

    def __init__(self, noise: Noise, eps: Tensor) -> None:
        super().__init__(noise.roundoff, eps, noise.arithmetic)
        self.noise = noise
        self.state: State = {}
        self.reference: dict[int, Tensor] = {}
        self.residual: dict[int, Tensor] = {}
        self.reach: dict[int, Reach] = {}

    def before(self, sink: int, state: State, box: Box) -> Tensor:
        """``r`` at an input of activations of the state's network: ``(B, *shape)``, in float64.

        ``state`` has the layers of all activations before it, which put it into the ``box``, but
        for this noise."""
        known = box[0].double(), box[1].double()
        found = [self._at(node, state, known) for node in sorted(self.noise.sinks[sink])]
        return torch.stack(found).amax(0) if len(found) > 1 else found[0]

    def format(self, i: int) -> Arithmetic | None:
        return None if i in self.noise.compared else super().format(i)

    def logits(self, state: State) -> Tensor:
        """``r`` of the logits, ``(B, K)``; infinite where anything before them could overflow: what
        comes after may be no number, which no clip mends."""
        found = self._at(self.tools.network.output, state).flatten(1)
        lost = torch.stack([fresh.isfinite().flatten(1).all(1) for fresh in self.fresh.values()])
        return torch.where(lost.all(0)[:, None], found, torch.inf)

    def _at(self, node: int, state: State, known: Box | None = None) -> Tensor:
        self.state = state
        for i in ancestors(self.tools.network, node):
            if i not in self.total:
                self._follow(i)
                width = self.reach[i].width + self.residual[i]
                box = around(self.reference[i], width)
                kind = self.tools.network.nodes[i].kind
                if isinstance(kind, Joint):
                    inputs = self.tools.network.nodes[i].inputs
                    box = meet(box, kind.image([self.boxes[j] for j in inputs]))
                if i == node and known is not None:
                    box = torch.maximum(box[0], known[0]), torch.minimum(box[1], known[1])
                self.boxes[i] = box
                self.step(i)
                if i in self.noise.partners:
                    # Its own rounding, of limits in a narrower analysis too.
                    self.residual[i] = self.residual[i] + 2 * self.total[i]
        return self.total[node]

    def _layer(self, i: int) -> Layer:
        return self.state[self.noise.partners[i]].map(lambda t: t.double())

    def _follow(self, i: int) -> None:
        """Reference, residual and reach of a node."""
        node = self.tools.network.nodes[i]
        parts = [self.reference[j] for j in node.inputs]
        match node.kind:
            case Input():
                value = self._layer(0).anchor
                rest, radius = torch.zeros_like(value), column(self.eps, value).expand_as(value)
                reach = Reach(radius, self.eps)
            case Activation() as activation:
                layer = self._layer(i)
                value = activation.value(layer.anchor)
                relative, absolute, scaled = activation.rounding
                rest = relative * value.abs() + absolute + scaled * layer.anchor.abs()
                rest = FLOAT64 * rest * (1 + 8 * FLOAT64)
                way = torch.maximum(layer.upper - layer.anchor, layer.anchor - layer.lower)
                width = torch.minimum(way, column(layer.radius, way)) * layer.gain
                reach = Reach(width * (1 + 8 * FLOAT64), layer.radius, layer.gain.square())
            case Joint() as joint:
                layers = [self._layer(j) for j in node.inputs]
                anchors = [layer.anchor for layer in layers]
                value = joint.value(*anchors)
                rest = joint.rounding([(anchor, anchor) for anchor in anchors], DOUBLE)
                ways = [
                    torch.maximum(layer.upper - layer.anchor, layer.anchor - layer.lower)
                    for layer in layers
                ]
                bounds = [(layer.lower, layer.upper) for layer in layers]
                derivative = joint.derivative(anchors)
                width = derivative.magnitude_once(ways) * (1 + gamma(derivative.terms + 8))
                width = (width + joint.remainder(anchors, bounds)) * (1 + 8 * FLOAT64)
                reach = Reach(width, length_of(width))
            case Operator() as operator:
                before = self.reach[node.inputs[0]]
                rows = self.tools.rows[i]
                assert rows is not None
                value, slack = operator.forward(parts[0]), gamma(operator.terms + 8)
                off = self.residual[node.inputs[0]] + slack * parts[0].abs()
                rest = operator.magnitude(off) + slack * operator.bias_magnitude()
                rest = rest * (1 + slack)
                reach = through(operator, before, rows, self.tools.norms[i], DOUBLE)
            case Sum():
                value = torch.stack(parts).sum(0)
                sizes = torch.stack([part.abs() for part in parts]).sum(0)
                rest = torch.stack([self.residual[j] for j in node.inputs]).sum(0)
                rest = rest * (1 + 32 * FLOAT64) + gamma(len(parts) + 4) * sizes
                reach = joined([self.reach[j] for j in node.inputs], DOUBLE)
        self.reference[i], self.residual[i], self.reach[i] = value, rest, reach

    def past(self, i: int, activation: Activation) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.reference[i]), torch.zeros_like(self.eps)

    def past_joint(self, i: int, joint: Joint) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.reference[i]), torch.zeros_like(self.eps)

    def near(self, i: int, operator: Operator, slack: float) -> Tensor:
        (j,) = self.tools.network.nodes[i].inputs
        value = self.reference[j].abs() + self.residual[j] + 2 * self.total[j]
        return operator.magnitude(value) * slack + self.reach[i].width


def _outline(network: Network) -> tuple[int, list[tuple[type, Shape]]]:
    """How many sums there are, and the kinds and input shapes of the activations and joints."""
    nodes = network.nodes
    sums = sum(isinstance(node.kind, Sum) for node in nodes)
    kinds = [(type(nodes[i].kind), nodes[nodes[i].inputs[0]].shape) for i in network.sources if i]
    return sums, kinds


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
