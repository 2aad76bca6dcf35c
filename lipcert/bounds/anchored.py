"""The anchored bound: how far every value moves away from the sample, layer by layer.

Box and ball of each activation's input are carried together. With ``s`` the secants of the
activations seen from the sample, ``|Δa| ≤ w |Δz|`` for ``w = max |s|``, so

    box:   interval image of the box of Δa   ∩   ± ρ ‖row_k(A diag(w))‖
    ball:  ρ' = Σ_j ‖M A_j diag(w_j)‖ ρ_j    and no more than the box's own half-diagonal,

``M`` the neurons that can vary. Later boxes gain from what earlier ones ruled out, and the secants
from the sample are flatter than the slopes between any two points: this bounds margins and radii,
and no Lipschitz constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Centre, Propagation
from lipcert.bounds.facts import Facts, Finds, NoiseOf
from lipcert.bounds.reach import Reach, joined, through
from lipcert.bounds.state import Coupling, Layer, Noised, State, half_diagonal
from lipcert.network import Forward, Network, Node, forward
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.operators import Operator
from lipcert.numbers import (
    Box,
    Outward,
    around,
    for_samples,
    image,
    meet,
    sum_box,
    widened,
)
from lipcert.rounding import FLOAT64_TINY, column, rounded_up

# The least share that one source of several has of a coupled ball, and the least ``τ`` for errors.
_SMALLEST_SHARE, _SMALLEST_DRIFT = 2.0**-10, 2.0**-30


@dataclass(frozen=True, eq=False)
class Motion:
    """Of one node: its box, how far it moves by balls alone, and how far its anchor is ``off`` from
    what the layers before make of theirs, noise included, None where nothing is charged; ``far``:
    that as a length, ``(B,)``, None where the values tell it."""

    box: Box
    reach: Reach
    off: Tensor | None
    far: Tensor | None = None


def anchored_state(
    propagation: Propagation, edges: dict[int, list[Edge]], centre: Centre, eps: Tensor,
    facts: Facts, noise_of: NoiseOf | None = None,
) -> State:  # fmt: skip
    """Makes every activation's layer over the balls of radius ``eps`` ``(B,)`` around the
    ``anchors`` of a ``Propagation``, from ``facts`` that hold over these balls.

    The network has element-wise activations only (``network.lower``); ``edges`` are the segments
    that end in each activation's input. ``noise_of`` tells the noise of these balls: that of the
    facts, which were found for larger ones, may be more.
    """
    rules = _Anchoring(propagation, edges, centre, eps, None, noise_of, facts)
    forward(propagation.network, rules)
    return rules.state


def found_state(
    propagation: Propagation, edges: dict[int, list[Edge]], centre: Centre, eps: Tensor,
    finder: Finds, noise_of: NoiseOf | None = None,
) -> tuple[Facts, State]:  # fmt: skip
    """Finds the facts of these balls layer by layer, and makes the state as ``anchored_state``."""
    rules = _Anchoring(propagation, edges, centre, eps, finder, noise_of)
    forward(propagation.network, rules)
    return rules.facts, rules.state


@dataclass(frozen=True, eq=False)
class _Anchoring(Forward[Motion]):
    """The rules of ``anchored_state``; ``state`` grows layer by layer, and with a finder so do
    ``facts``, which are then its own."""

    propagation: Propagation
    edges: dict[int, list[Edge]]
    centre: Centre
    eps: Tensor
    finder: Finds | None
    noise_of: NoiseOf | None
    facts: Facts = field(default_factory=Facts)
    state: State = field(default_factory=dict)

    @property
    def network(self) -> Network:
        return self.propagation.network

    @property
    def own(self) -> Outward:
        return self.network.outward

    def input(self, i: int) -> Motion:
        x, error = self.centre.values[i], self._error(i)
        ones, radius = torch.ones_like(x), column(self.eps, x).expand_as(x)
        box = self._known(i, around(x, radius, self.own), error)
        self.state[i] = Layer(x, *box, self.eps, ones, ones)
        return Motion(box, Reach(radius, self.eps, ones), error)

    def sum(self, i: int, parts: list[Motion]) -> Motion:
        box = sum_box([part.box for part in parts], self.own)
        return Motion(box, joined([part.reach for part in parts], self.own), self._error(i))

    def affine(self, i: int, operator: Operator, before: Motion) -> Motion:
        rows = self.propagation.rows[i]
        assert rows is not None
        reach = through(operator, before.reach, rows, self.propagation.norms[i], self.own)
        return Motion(image(operator, before.box, self.own), reach, self._error(i))

    def activation(self, i: int, activation: Activation, before: Motion) -> Motion:
        source = self.network.nodes[i].inputs[0]
        if not isinstance(activation, Elementwise):
            origin = self.network.nodes[i].origin
            raise TypeError(f"{origin}: {type(activation).__name__} is to be lowered")
        known = self._known(source, before.box, before.off)
        layer = self._layer(activation, i, source, known)
        layer = self._with_ball(layer, source, before)
        self.state[i] = layer
        # Gains are seen from the computed value.
        width = before.reach.width
        width = width if before.off is None else self.own.add(width, before.off)
        width = torch.minimum(column(layer.radius, layer.gain), width)
        squares = self.own.times(layer.gain, layer.gain)
        reach = Reach(self.own.times(width, layer.gain), layer.radius, squares)
        return Motion(activation.image(layer.lower, layer.upper), reach, self._error(i))

    def _error(self, i: int) -> Tensor | None:
        return None if self.network.rough else self.centre.errors[i]

    def _known(self, node: int, box: Box, off: Tensor | None) -> Box:
        """The box of an input of activations, or of the network, with what is known of it."""
        facts = self.facts
        if self.finder is not None and node not in facts.boxes:
            off = torch.zeros_like(box[0]) if off is None else off
            found = self.finder.box(node, self.state, box, off)
            if found is not None:
                facts.boxes[node], facts.shrunk[node] = found
        return meet(box, facts.boxes[node]) if node in facts.boxes else box

    def _layer(self, activation: Elementwise, node: int, source: int, box: Box) -> Layer:
        """All of a layer but its ball, which is the box's half-diagonal as yet."""
        anchor, error = self.centre.values[source], self._error(source)
        # The box holds the computed value too: it is what the secants are seen from.
        held = (anchor, anchor) if error is None else (anchor - error, anchor + error)
        lower, upper = torch.minimum(box[0], held[0]), torch.maximum(box[1], held[1])
        flat, steep = activation.secant(lower, upper, anchor)
        steepest = torch.maximum(flat.abs(), steep.abs())
        if self.finder is not None:
            self.facts.masks[node] = (activation.gain(lower, upper) != 0).to(anchor.dtype)
        # Norms and chains hold between the neurons that varied when they were found, and no others
        # can: a box of the larger radius said so, whatever rounding makes of the one at hand.
        varying = self.facts.masks[node]
        gain = torch.where(varying != 0, steepest, 0)
        if self.finder is not None:
            self.facts.gains[node] = gain
        else:
            # Both bound the same changes: the enclosure of a smaller box need not be the smaller.
            gain = torch.minimum(gain, self.facts.gains[node])
        width = torch.maximum(upper - anchor, anchor - lower) * varying
        # A difference is rounded.
        radius = self.own.up(half_diagonal(width, self.centre.logits.dtype), 1)
        return Layer(anchor, lower, upper, radius, gain, varying)

    def _with_ball(self, layer: Layer, source: int, before: Motion) -> Layer:
        """The layer, whose ball was its box's half-diagonal, with the least ball that is known."""
        state, facts, own = self.state, self.facts, for_samples(self.eps.dtype)
        for edge in self.edges[source]:
            if self.finder is not None and edge not in facts.norms:
                facts.norms[edge] = self.finder.norm(edge, state[edge[0]].gain, layer.varying)
        norms = {edge[0]: facts.norms[edge] for edge in self.edges[source]}
        total = torch.zeros_like(self.eps)
        for j, norm in norms.items():
            total = own.add(total, own.times(norm, state[j].radius))
        total = torch.minimum(total, layer.radius)
        if self.finder is not None and source not in facts.chains:
            chain = self.finder.chain(source, state, layer.varying)
            if chain is not None:
                facts.chains[source] = chain
        if source in facts.chains:
            total = torch.minimum(total, facts.chains[source].length(state))
        # From what the anchors before make of it to the anchor, and to the run's value.
        off = before.off
        error = torch.zeros_like(total) if off is None else half_diagonal(off, self.eps.dtype)
        if before.far is not None:
            error = torch.fmin(error, before.far)
        return replace(
            layer,
            radius=own.add(total, error),
            coupling=_coupling(norms, state, error, own),
            drift=before.off,
            drift_length=before.far,
        )

    def found(self, i: int, node: Node, value: Motion) -> Motion:
        """Met with what balls alone say; and with noise, where an activation reads it."""
        off, reach, own, far = value.off, value.reach, self.own, None
        box, width = value.box, reach.width
        if off is not None:
            box, width = widened(box, off, own), own.add(width, off)
        box = meet(box, around(self.centre.values[i], width, own))
        if i in self.network.sinks:
            noise = self._noise(i, box)
            if noise is not None:
                each, far = rounded_up(noise.each, box[0].dtype), noise.length.to(self.eps.dtype)
                if off is not None:
                    far = for_samples(self.eps.dtype).add(half_diagonal(off, self.eps.dtype), far)
                off = each if off is None else own.add(off, each)
                box = widened(box, each, own)
        return Motion(box, reach, off, far)

    def _noise(self, node: int, box: Box) -> Noised | None:
        """What rounding adds at an input of activations, which lies in the ``box`` but for that."""
        known = self.facts.noise.get(node)
        if self.noise_of is None or (known is None and self.finder is None):
            return known
        here = self.noise_of(node, self.state, box)
        if known is not None:
            return known.met(here)
        self.facts.noise[node] = here
        return here


def _coupling(
    norms: dict[int, Tensor], state: State, error: Tensor, own: Outward
) -> Coupling | None:
    """With any shares ``t_j > 0`` of 1, ``(Σ_j n_j r_j)² ≤ Σ_j (n_j²/t_j) r_j²``: shares as the
    balls have them. ``norms`` by source. What is rounded in the shares counts with the rest.

    The anchor is within ``error`` of what the sources' anchors give, and
    ``(a + b)² ≤ (1 + τ) a² + (1 + 1/τ) b²``.
    """
    if set(norms) <= {0}:
        return None
    sizes = {j: norm * state[j].radius for j, norm in norms.items()}
    whole = torch.stack(list(sizes.values())).sum(0)
    floor = _SMALLEST_SHARE * whole + FLOAT64_TINY
    whole = whole + len(norms) * floor
    drift = (error / whole).clamp(min=_SMALLEST_DRIFT, max=1.0)
    factors = {
        j: own.up(norm.square() * whole / (sizes[j] + floor) * (drift + 1), 2 * len(norms) + 32)
        for j, norm in norms.items()
    }
    rest = own.times(error, error, own.up(1 / drift + 1, 2))
    if 0 in factors:
        rest = own.add(rest, own.times(factors.pop(0), state[0].radius, state[0].radius))
    return Coupling(factors, rest)
