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
from lipcert.bounds.boxes import (
    Box,
    Centre,
    Propagation,
    affine_box,
    around,
    meet,
    sum_box,
    widened,
)
from lipcert.bounds.facts import Facts, Finder, NoiseOf
from lipcert.bounds.state import Coupling, Layer, State, half_diagonal
from lipcert.network import Forward, Network, Node, forward
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.operators import Diagonal, Operator, Select
from lipcert.rounding import (
    DOUBLE,
    FLOAT64,
    FLOAT64_TINY,
    Arithmetic,
    column,
    gamma,
    rounded_up,
)

# The least share that one source of several has of a coupled ball, and the least ``τ`` for errors.
_SMALLEST_SHARE, _SMALLEST_DRIFT = 2.0**-10, 2.0**-30


@dataclass(frozen=True, eq=False)
class Reach:
    """How far a node moves, from balls alone: ``|Δv| ≤ width`` and ``Δv = diag(√squares) r`` with
    ``‖r‖₂ ≤ radius``; ``squares`` None for ones."""

    width: Tensor
    radius: Tensor
    squares: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Motion:
    """Of one node: its box, how far it moves by balls alone, and how far its anchor is ``off`` from
    what the layers before make of theirs, noise included."""

    box: Box
    reach: Reach
    off: Tensor


def anchored_state(
    propagation: Propagation, edges: dict[int, list[Edge]], centre: Centre, eps: Tensor,
    facts: Facts, finder: Finder | None = None, noise_of: NoiseOf | None = None,
) -> State:  # fmt: skip
    """Every activation's layer over the balls of radius ``eps`` ``(B,)`` around the ``anchors``
    of a ``Propagation``.

    The network has element-wise activations only (``network.lower``); ``edges`` are the segments
    that end in each activation's input. ``facts`` hold over these balls; what the ``finder`` finds
    is added to them first. ``noise_of`` tells the noise of these balls: that of the facts, which
    were found for larger ones, may be less.
    """
    rules = _Anchoring(propagation, edges, centre, eps, facts, finder, noise_of)
    forward(propagation.network, rules)
    return rules.state


@dataclass(frozen=True, eq=False)
class _Anchoring(Forward[Motion]):
    """The rules of ``anchored_state``; ``state`` grows layer by layer, and with a finder so do the
    facts."""

    propagation: Propagation
    edges: dict[int, list[Edge]]
    centre: Centre
    eps: Tensor
    facts: Facts
    finder: Finder | None
    noise_of: NoiseOf | None
    state: State = field(default_factory=dict)

    @property
    def network(self) -> Network:
        return self.propagation.network

    @property
    def own(self) -> Arithmetic:
        return self.network.arithmetic

    def input(self, i: int) -> Motion:
        x, error = self.centre.values[i], self.centre.errors[i]
        ones, radius = torch.ones_like(x), column(self.eps, x).expand_as(x)
        box = self._known(i, around(x, radius, self.own), error)
        self.state[i] = Layer(x, *box, self.eps, ones, ones)
        return Motion(box, Reach(radius, self.eps, ones), error)

    def sum(self, i: int, parts: list[Motion]) -> Motion:
        box = sum_box([part.box for part in parts], self.own)
        return Motion(box, joined([part.reach for part in parts], self.own), self.centre.errors[i])

    def affine(self, i: int, operator: Operator, before: Motion) -> Motion:
        rows = self.propagation.rows[i]
        assert rows is not None
        reach = through(operator, before.reach, rows, self.propagation.norms[i], self.own)
        return Motion(affine_box(operator, before.box, self.own), reach, self.centre.errors[i])

    def activation(self, i: int, activation: Activation, before: Motion) -> Motion:
        source = self.network.nodes[i].inputs[0]
        if not isinstance(activation, Elementwise):
            origin = self.network.nodes[i].origin
            raise TypeError(f"{origin}: {type(activation).__name__} is to be lowered")
        known = self._known(source, before.box, before.off)
        layer = self._layer(activation, i, source, known)
        layer = self._with_ball(layer, source, before.off)
        self.state[i] = layer
        # Gains are seen from the computed value.
        width = (before.reach.width + before.off) * (1 + 2 * self.own.unit)
        width = torch.minimum(column(layer.radius, layer.gain), width)
        moved = width * layer.gain * (1 + 4 * self.own.unit)
        reach = Reach(moved, layer.radius, layer.gain.square())
        return Motion(activation.image(layer.lower, layer.upper), reach, self.centre.errors[i])

    def _known(self, node: int, box: Box, off: Tensor) -> Box:
        """The box of an input of activations, or of the network, with what is known of it."""
        facts = self.facts
        if self.finder is not None and node not in facts.boxes:
            found = self.finder.box(node, self.state, box, off)
            if found is not None:
                facts.boxes[node], facts.shrunk[node] = found
        return meet(box, facts.boxes[node]) if node in facts.boxes else box

    def _layer(self, activation: Elementwise, node: int, source: int, box: Box) -> Layer:
        """All of a layer but its ball, which is the box's half-diagonal as yet."""
        anchor, error = self.centre.values[source], self.centre.errors[source]
        # The box holds the computed value too: it is what the secants are seen from.
        lower = torch.minimum(box[0], anchor - error)
        upper = torch.maximum(box[1], anchor + error)
        flat, steep = activation.secant(lower, upper, anchor)
        steepest = torch.maximum(flat.abs(), steep.abs())
        if self.finder is not None:
            mask = (activation.gain(lower, upper) != 0).to(anchor.dtype)
            self.facts.masks[node] = mask
            self.facts.gains[node] = torch.where(mask != 0, steepest, 0)
        # Norms and chains hold between the neurons that varied when they were found, and no others
        # can: a box of the larger radius said so, whatever rounding makes of the one at hand.
        varying = self.facts.masks[node]
        # Both bound the same changes: the enclosure of a smaller box need not be the smaller one.
        gain = torch.minimum(torch.where(varying != 0, steepest, 0), self.facts.gains[node])
        width = torch.maximum(upper - anchor, anchor - lower) * varying
        radius = half_diagonal(width, self.centre.logits.dtype) * (1 + 2 * self.own.unit)
        return Layer(anchor, lower, upper, radius, gain, varying)

    def _with_ball(self, layer: Layer, source: int, off: Tensor) -> Layer:
        """The layer, whose ball was its box's half-diagonal, with the least ball that is known."""
        state, facts = self.state, self.facts
        for edge in self.edges[source]:
            if self.finder is not None and edge not in facts.norms:
                facts.norms[edge] = self.finder.norm(edge, state[edge[0]].gain, layer.varying)
        norms = {edge[0]: facts.norms[edge] for edge in self.edges[source]}
        total = torch.zeros_like(self.eps)
        for j, norm in norms.items():
            total = total + norm * state[j].radius
        total = total * (1 + (len(norms) + 2) * FLOAT64)
        total = torch.minimum(total, layer.radius)
        if self.finder is not None and source not in facts.chains:
            chain = self.finder.chain(source, state, layer.varying)
            if chain is not None:
                facts.chains[source] = chain
        if source in facts.chains:
            total = torch.minimum(total, facts.chains[source].length(state))
        # From what the anchors before make of it to the anchor, and to the run's value.
        error = half_diagonal(off, self.eps.dtype)
        return replace(
            layer,
            radius=(total + error) * (1 + 4 * FLOAT64),
            coupling=_coupling(norms, state, error),
            drift=off,
        )

    def found(self, i: int, node: Node, value: Motion) -> Motion:
        """Met with what balls alone say; and with noise, where an activation reads it."""
        off, reach, own = value.off, value.reach, self.own
        near = around(self.centre.values[i], reach.width + off, own)
        box = meet(widened(value.box, off, own), near)
        if i in self.network.sinks:
            noise = self._noise(i, box)
            if noise is not None:
                noise = rounded_up(noise, off.dtype)
                off = (off + noise) * (1 + 2 * own.unit)
                box = widened(box, noise, own)
        return Motion(box, reach, off)

    def _noise(self, node: int, box: Box) -> Tensor | None:
        """What rounding adds at an input of activations, which lies in the ``box`` but for that."""
        known = self.facts.noise.get(node)
        if self.noise_of is None or (known is None and self.finder is None):
            return known
        here = self.noise_of(node, self.state, box)
        if known is not None:
            return torch.fmin(known, here)
        self.facts.noise[node] = here
        return here


def _coupling(norms: dict[int, Tensor], state: State, error: Tensor) -> Coupling | None:
    """With any shares ``t_j > 0`` of 1, ``(Σ_j n_j r_j)² ≤ Σ_j (n_j²/t_j) r_j²``: shares as the
    balls have them. ``norms`` by source.

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
    slack = (1 + drift) * (1 + gamma(2 * len(norms) + 32))
    factors = {j: norm.square() * whole / (sizes[j] + floor) * slack for j, norm in norms.items()}
    rest = error.square() * (1 + 1 / drift)
    if 0 in factors:
        rest = rest + factors.pop(0) * state[0].radius.square()
    return Coupling(factors, rest * (1 + 16 * FLOAT64))


def through(operator: Operator, before: Reach, rows: Tensor, norm: float, own: Arithmetic) -> Reach:
    """Row by row, ``rows`` the norms of all rows; and whole, by the operator's own norm."""
    slack = 1 + own.gamma(operator.terms + 8)
    squares, ball = None, rows
    if before.squares is not None:
        squares = operator.squared(before.squares) * slack
        ball = squares.sqrt()
    ball = ball * column(before.radius, ball) * (1 + 8 * own.unit)
    width = torch.minimum(ball, operator.magnitude(before.width) * slack)
    if isinstance(operator, Diagonal) or (
        isinstance(operator, Select) and operator.multiplicity <= 1
    ):
        return Reach(width, before.radius, rows.square() if squares is None else squares)
    return Reach(width, _whole(before) * norm * (1 + 4 * FLOAT64))


def joined(parts: list[Reach], own: Arithmetic) -> Reach:
    """Of a sum."""
    radius = _total([_whole(part) for part in parts], DOUBLE)
    return Reach(_total([part.width for part in parts], own), radius)


def _whole(reach: Reach) -> Tensor:
    """``‖Δv‖₂`` of a node."""
    if reach.squares is None:
        return reach.radius
    steepest = reach.squares.flatten(1).amax(1).to(reach.radius.dtype).sqrt()
    return reach.radius * steepest * (1 + 8 * FLOAT64)


def _total(widths: list[Tensor], own: Arithmetic) -> Tensor:
    """Their sum, rounded up."""
    return torch.stack(widths).sum(0) * (1 + own.gamma(len(widths)))
