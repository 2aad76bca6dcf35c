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

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

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
class Coupling:
    """What a layer's ball is made of: ``‖M Δz‖² ≤ Σ_j factors_j ‖Δσ_j / w_j‖² + rest``, over the
    activations j before it, ``w_j`` their gains; the ``rest`` is the input's. ``(B,)`` each."""

    factors: dict[int, Tensor]
    rest: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Coupling:
        return Coupling({j: change(g) for j, g in self.factors.items()}, change(self.rest))


@dataclass(frozen=True, eq=False)
class Layer:
    """One activation's input over the ball: values ``anchor`` at the sample, box, and ball
    ``‖M Δz‖₂ ≤ radius``; ``gain`` is ``w``, ``varying`` the mask M of all neurons whose output can
    change, and maybe of some more. The network's input is such a layer too, of gain 1.

    ``coupling``: how the ball follows from other activations; None where only the input counts.

    ``drift``: how far each value of the anchor is from what the layers before make of their own
    anchors, ``|z0 − (W σ(z0') + b)|``, and a run's from what they make of its own, together; for
    the input 0; None where nothing was rounded. ``drift_length`` is its length where that is known
    to be less than what the values come to, ``(B,)``.

    What is one number a sample, the radius and the coupling, is in float64, whatever the type of
    the rest.
    """

    anchor: Tensor
    lower: Tensor
    upper: Tensor
    radius: Tensor
    gain: Tensor
    varying: Tensor
    coupling: Coupling | None = None
    drift: Tensor | None = None
    drift_length: Tensor | None = None

    @property
    def drifted(self) -> Tensor:
        """The length of the drift, rounded up: ``(B,)``."""
        if self.drift is None:
            return torch.zeros_like(self.radius)
        found = half_diagonal(self.drift, self.radius.dtype)
        return found if self.drift_length is None else torch.fmin(found, self.drift_length)

    def map(self, change: Callable[[Tensor], Tensor]) -> Layer:
        """Every tensor changed alike: rows chosen, or a type."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        coupling = values.pop("coupling")
        drift, length = values.pop("drift"), values.pop("drift_length")
        tensors = {name: change(value) for name, value in values.items()}
        return Layer(
            **tensors,
            coupling=coupling and coupling.map(change),
            drift=None if drift is None else change(drift),
            drift_length=None if length is None else change(length),
        )


# By source: the input, 0, and every activation.
State = dict[int, Layer]


def select(state: State, rows: Tensor) -> State:
    """Some rows of a state, in this order."""
    return {i: layer.map(lambda t: t[rows]) for i, layer in state.items()}


def to_dtype(state: State, dtype: torch.dtype) -> State:
    return {i: layer.map(lambda t: t.to(dtype)) for i, layer in state.items()}


@dataclass(frozen=True, eq=False)
class Noised:
    """How far rounding puts a run off at one node: each value, ``(B, *shape)``, and all of them
    together by their length, ``(B,)``, which may be far less than that of ``each``."""

    each: Tensor
    length: Tensor

    def select(self, rows: Tensor) -> Noised:
        """Some of the samples."""
        return Noised(self.each[rows], self.length[rows])

    def where(self, known: Tensor, instead: float) -> Noised:
        """The same for the samples that are ``known``, ``(B,)``, and another number for others."""
        wide = known.reshape(-1, *(1,) * (self.each.dim() - 1))
        return Noised(
            torch.where(wide, self.each, instead), torch.where(known, self.length, instead)
        )

    def met(self, other: Noised) -> Noised:
        """What both say."""
        return Noised(torch.fmin(self.each, other.each), torch.fmin(self.length, other.length))


class Facts(ABC):
    """What a state is built from beside the boxes: norms, and refinements of single nodes."""

    def varying(self, activation: int, mask: Tensor) -> Tensor:
        """A mask of at least these neurons, for the layer's ball to cover."""
        return mask

    def gain(self, activation: int, gain: Tensor) -> Tensor:
        """A chance to lower the gains: those found at a larger radius hold too, and norms that
        were found there count on gains that are no larger."""
        return gain

    @abstractmethod
    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        """``‖diag(outer) A diag(inner)‖`` of an edge: ``(B,)``."""

    def noise(self, node: int, state: State, box: Box) -> Noised | None:
        """How far a run may be off at an activation's input by rounding, seen from the layers
        before it, that put it into the ``box`` but for that."""
        return None

    def box(self, node: int, state: State, box: Box, off: Tensor) -> Box:
        """A chance to tighten the box of an activation's input from the layers before it, which
        tell it but for ``off``."""
        return box

    def ball(self, node: int, state: State, mask: Tensor, radius: Tensor) -> Tensor:
        """A chance to tighten ``‖M Δv‖ ≤ radius`` of an activation's input: ``(B,)``."""
        return radius


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
    what the layers before make of theirs, noise included; ``length``: that as a length, ``(B,)``,
    None where the values tell it."""

    box: Box
    reach: Reach
    off: Tensor
    length: Tensor | None = None


def anchored_state(
    propagation: Propagation,
    edges: dict[int, list[Edge]],
    centre: Centre,
    eps: Tensor,
    facts: Facts,
) -> State:
    """Every activation's layer over the balls of radius ``eps`` ``(B,)`` around the ``anchors``
    of a ``Propagation``.

    The network has element-wise activations only (``network.lower``); ``edges`` are the segments
    that end in each activation's input.
    """
    rules = _Anchoring(propagation, edges, centre, eps, facts)
    forward(propagation.network, rules)
    return rules.state


@dataclass(frozen=True, eq=False)
class _Anchoring(Forward[Motion]):
    """The rules of ``anchored_state``; ``state`` grows layer by layer."""

    propagation: Propagation
    edges: dict[int, list[Edge]]
    centre: Centre
    eps: Tensor
    facts: Facts
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
        box = self.facts.box(i, self.state, around(x, radius, self.own), error)
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
        known = self.facts.box(source, self.state, before.box, before.off)
        layer = _layer(activation, i, self.centre, source, known, self.facts, self.own)
        layer = self._with_ball(layer, source, before)
        self.state[i] = layer
        # Gains are seen from the computed value.
        width = (before.reach.width + before.off) * (1 + 2 * self.own.unit)
        width = torch.minimum(column(layer.radius, layer.gain), width)
        moved = width * layer.gain * (1 + 4 * self.own.unit)
        reach = Reach(moved, layer.radius, layer.gain.square())
        return Motion(activation.image(layer.lower, layer.upper), reach, self.centre.errors[i])

    def _with_ball(self, layer: Layer, source: int, before: Motion) -> Layer:
        """The layer, whose ball was its box's half-diagonal, with the least ball that is known."""
        state = self.state
        norms = {
            edge[0]: self.facts.norm(edge, state[edge[0]].gain, layer.varying)
            for edge in self.edges[source]
        }
        total = torch.zeros_like(self.eps)
        for j, norm in norms.items():
            total = total + norm * state[j].radius
        total = total * (1 + (len(norms) + 2) * FLOAT64)
        total = torch.minimum(total, layer.radius)
        total = self.facts.ball(source, state, layer.varying, total)
        # From what the anchors before make of it to the anchor, and to the run's value.
        error = half_diagonal(before.off, self.eps.dtype)
        if before.length is not None:
            error = torch.fmin(error, before.length)
        return replace(
            layer,
            radius=(total + error) * (1 + 4 * FLOAT64),
            coupling=_coupling(norms, state, error),
            drift=before.off,
            drift_length=before.length,
        )

    def found(self, i: int, node: Node, value: Motion) -> Motion:
        """Met with what balls alone say; and with noise, where an activation reads it."""
        off, reach, own, length = value.off, value.reach, self.own, None
        near = around(self.centre.values[i], reach.width + off, own)
        box = meet(widened(value.box, off, own), near)
        if i in self.network.sinks:
            noise = self.facts.noise(i, self.state, box)
            if noise is not None:
                each = rounded_up(noise.each, off.dtype)
                length = half_diagonal(off, self.eps.dtype) + noise.length.to(self.eps.dtype)
                length = length * (1 + 4 * FLOAT64)
                off = (off + each) * (1 + 2 * own.unit)
                box = widened(box, each, own)
        return Motion(box, reach, off, length)


def change_boxes(network: Network, centre: Centre, state: State) -> dict[int, Box]:
    """The box of ``Δa`` of every source, the input's too."""
    boxes, unit = {}, network.arithmetic.unit
    for i, layer in state.items():
        kind = network.nodes[i].kind
        lower, upper = layer.lower, layer.upper
        if isinstance(kind, Elementwise):
            lower, upper = kind.image(lower, upper)
        value, error = centre.values[i], centre.errors[i]
        slack = error + 4 * unit * (value.abs() + lower.abs() + upper.abs())
        boxes[i] = (lower - value - slack, upper - value + slack)
    return boxes


def _layer(
    activation: Elementwise, node: int, centre: Centre, source: int, box: Box, facts: Facts,
    own: Arithmetic,
) -> Layer:  # fmt: skip
    """All of a layer but its ball, which is the box's half-diagonal as yet."""
    anchor, error = centre.values[source], centre.errors[source]
    # The box holds the computed value too: it is what the secants are seen from.
    lower = torch.minimum(box[0], anchor - error)
    upper = torch.maximum(box[1], anchor + error)
    flat, steep = activation.secant(lower, upper, anchor)
    varying = facts.varying(node, (activation.gain(lower, upper) != 0).to(anchor.dtype))
    gain = torch.where(varying != 0, torch.maximum(flat.abs(), steep.abs()), 0)
    gain = facts.gain(node, gain)
    width = torch.maximum(upper - anchor, anchor - lower) * varying
    radius = half_diagonal(width, centre.logits.dtype) * (1 + 2 * own.unit)
    return Layer(anchor, lower, upper, radius, gain, varying)


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


def half_diagonal(widths: Tensor, dtype: torch.dtype) -> Tensor:
    """Of boxes of these half-widths, summed in this type: ``(B,)``."""
    flat = widths.flatten(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
    return length * (1 + gamma(flat.shape[1] + 8))


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
