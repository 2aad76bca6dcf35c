"""Claims of a sketched tube: boxes that one pass with coins of its own expects, and with them the
slopes, remainders and roundings that a proof holds fast.

See ``lipcert.bounds.sketch`` for the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.boxes import Centre
from lipcert.bounds.projections import (
    ALPHA,
    LARGEST,
    LARGEST_NORMAL,
    Bundle,
    ProjectionAssurance,
    RandomNumbers,
    Tangents,
)
from lipcert.bounds.state import Layer, Noised, State, half_diagonal
from lipcert.network import Forward, Network
from lipcert.network.activations import Activation, Elementwise, Identity
from lipcert.network.joints import Derivative, Joint
from lipcert.network.operators import Operator
from lipcert.numbers import OUT64, Box, around
from lipcert.rounding import DOUBLE, FLOAT64, SINGLE, column, gamma

# What is rounded in front of an activation: of its input's node, the layers before it, and the
# node's box but for that.
Rounding = Callable[[int, State, Box], Noised]

# A claim leaves room for what two passes differ by: more where that costs next to nothing, as of a
# neuron that stays on its side of a kink.
_ROOM_WHERE_FREE, _LITTLE = 1.5, 2.0**-8
_ROUNDING = 2.0**-30
# Of a joint's inputs, whose errors go with the square of it.
_ROOM_OF_JOINTS = 1.2
# Within how many times its claim a neuron must stay, as roundings are found for that.
_MOST = 2.0
# Of a neuron's width its output is taken to have as much for its scale: a dead one may wake.
_FLOOR = 2.0**-8
# What float32 does not see of a scale, and of the root of its mean square, where a proof in float64
# does: the share of a score that a mask makes small, the slope of a gate that is shut.
_UNSEEN, _UNSEEN_MEAN = 2.0**-100, 2.0**-56
# So small a multiplier that the relaxed minimum is that of the remainder alone.
_NO_MULTIPLIER = 1e-200


@dataclass(frozen=True, eq=False)
class Claimed:
    """What is claimed at one activation, ``(B, *shape)`` each in float64.

    ``slope``, ``middle`` and ``rest``: of its remainder; ``half``: all errors that enter at its
    output;
    ``shift`` and ``width``: its input lies in ``anchor + shift ± width``, and at most ``most`` from
    there; ``own``: what of the width is no projection's, the noise in front of it. ``spread``,
    ``drawn``: the scale that Cauchy numbers and ``eps`` times normal ones are claimed to have at
    its output; ``rounded``, ``slipped``: what either is rounded by in front of it. ``ball``:
    ``eps`` times the 2-norms of its rows, from unit vectors that were sent through these very
    slopes, with what they were rounded by since the last activations; None where the proof
    measures them.
    """

    slope: Tensor
    middle: Tensor
    rest: Tensor
    half: Tensor
    shift: Tensor
    width: Tensor
    most: Tensor
    own: Tensor
    spread: Tensor
    drawn: Tensor
    rounded: Tensor
    slipped: Tensor
    ball: Tensor | None


@dataclass(frozen=True, eq=False)
class JointClaimed:
    """What is claimed at a joint: its ``line``, the ``rest`` that this leaves over the claimed
    boxes of its inputs, and at its output ``half``, ``spread`` and ``drawn`` as of ``Claimed``."""

    line: Derivative
    rest: Tensor
    half: Tensor
    spread: Tensor
    drawn: Tensor


@dataclass(frozen=True, eq=False)
class Claim:
    """A tube that is to be proven, unless it is only ``guessed``: its places by activations and by
    joints; the ``state`` of the widest boxes that a proof may find, over which roundings were
    found; and the one of the boxes that it is ``expected`` to find, but for few neurons."""

    eps: Tensor
    places: dict[int, Claimed]
    state: State
    expected: State
    joints: dict[int, JointClaimed]
    guessed: bool


@dataclass(frozen=True)
class Rows:
    """How the 2-norms of rows are found: in the proof from as many normal tangents as Cauchy ones,
    or, ``exact``, in the claim from one unit vector for each value of the input, of which the proof
    only takes what they were rounded by. ``guessed``: by how many projections a claim would be
    made that this one only guesses, not to be proven, with rows from normal tangents; else 0."""

    exact: bool = False
    guessed: int = 0


@dataclass(frozen=True, eq=False)
class _Flow:
    """At one node: the ``tangents``; the ``shift``; bounds of what ``eps`` times a row's length (of
    normal tangents: per unit of their largest) and a Cauchy tangent are in absolute value,
    ``drawn`` and ``spread``; and by how much these and the shift were rounded since the last
    activations: ``slipped``, ``rounded``, ``moved``."""

    tangents: Bundle
    shift: Tensor
    drawn: Tensor
    spread: Tensor
    slipped: Tensor
    rounded: Tensor
    moved: Tensor


class Claiming(Forward[_Flow]):
    """The rules of ``Tube.claim`` over a network and its ``rough`` copy in float32; places and
    state grow layer by layer.

    **Exact rows.** The tangents ``V`` of unit vectors are computed in float32 through rounded
    weights and slopes, so at a node ``V = A V' + E``, where by the triangle inequality every row of
    ``E`` has at most the length ``κ = γ |A| ‖rows of V'‖``, ``γ`` in units of float32. So the true
    row of a neuron ``k`` is at most ``‖row_k(V)‖ + Σ |J| κ``: ``eps κ`` is one more error of the
    sum that Cauchy tangents measure.
    """

    def __init__(
        self, network: Network, rough: Network, centre: Centre, eps: Tensor,
        assurance: ProjectionAssurance, coins: RandomNumbers, count: int,
        rounding: Rounding | None, rows: Rows,
    ) -> None:  # fmt: skip
        self.room, self.factor = assurance.room(rows.guessed or count), assurance.factor
        if rows.exact:
            self.room, self.factor = (1.0, self.room[1]), 1.0
        self.network, self.rough, self.exact = network, rough, rows.exact
        self.centre, self.eps, self.assurance, self.rounding = centre, eps, assurance, rounding
        units = rows.exact and not rows.guessed
        self.tangents = Tangents(
            len(eps), math.prod(network.in_shape) if units else count, count, coins,
            rough.anchor.dtype, largest=network.largest, device=eps.device, exact=units,
        )  # fmt: skip
        # What tangents that measure rows are computed in where anything is proven by them.
        self.own = SINGLE if rows.exact else DOUBLE
        self.ranks = torch.full_like(eps, round(count * assurance.rank / assurance.count)).long()
        self.places: dict[int, Claimed] = {}
        self.joints: dict[int, JointClaimed] = {}
        self.state: State = {}
        self.expected: State = {}

    def input(self, i: int) -> _Flow:
        x, error = self.centre.values[i], self.centre.errors[i]
        radius, ones, none = column(self.eps, x), torch.ones_like(x), torch.zeros_like(x)
        self.state[i] = Layer(x, *around(x, radius.expand_as(x)), self.eps, ones, ones)
        self.expected[i] = self.state[i]
        start = self.tangents.start(x.shape[1:])
        return _Flow(start, none, radius.expand_as(x), none, none, none, error)

    def sum(self, i: int, parts: list[_Flow]) -> _Flow:
        slack, own = gamma(len(parts) + 4), gamma(len(parts) + 4, self.own.unit)

        def total(values: list[Tensor]) -> Tensor:
            return torch.stack(values).sum(0)

        drawn, spread = total([p.drawn for p in parts]), total([p.spread for p in parts])
        sizes = total([p.shift.abs() for p in parts])
        return _Flow(
            Bundle.total([p.tangents for p in parts]),
            total([p.shift for p in parts]),
            drawn * (1 + own),
            spread * (1 + slack),
            (total([p.slipped for p in parts]) + own * drawn) * (1 + own),
            (total([p.rounded for p in parts]) + slack * spread) * (1 + slack),
            (total([p.moved for p in parts]) + slack * sizes) * (1 + slack),
        )

    def affine(self, i: int, operator: Operator, before: _Flow) -> _Flow:
        slack, own = gamma(operator.terms + 8), gamma(operator.terms + 8, self.own.unit)
        lost = (operator.terms + 1) * DOUBLE.tiny
        slipped = before.slipped + own * before.drawn
        passed, drawn = operator.magnitude(slipped), operator.magnitude(before.drawn)
        underflow = column(self._lost(before.drawn, operator.terms + 1), drawn)

        def error(passed: Tensor, size: Tensor) -> Tensor:
            return (operator.magnitude(passed + slack * size) + lost) * (1 + slack)

        rough = self.rough.nodes[i].kind
        assert isinstance(rough, Operator)
        return _Flow(
            before.tangents.map(rough.apply),
            operator.apply(before.shift),
            drawn * (1 + own) + underflow,
            operator.magnitude(before.spread) * (1 + slack),
            (passed + underflow) * (1 + own),
            error(before.rounded, before.spread),
            error(before.moved, before.shift.abs()),
        )

    def _lost(self, drawn: Tensor, terms: float) -> Tensor:
        """What underflows in so many products with tangents that measure rows: of each product, and
        of a number times the largest tangent; in exact ones of as many vectors as there are values
        of the input: ``(B,)``."""
        lost = terms * self.own.tiny * (1 + 2.0**-20)
        if not self.exact:
            return torch.full_like(self.eps, lost)
        largest = drawn.flatten(1).amax(1) + self.eps
        return lost * math.sqrt(math.prod(self.network.in_shape)) * largest

    def activation(self, i: int, activation: Activation, before: _Flow) -> _Flow:
        assert isinstance(activation, Elementwise)
        sink = self.network.nodes[i].inputs[0]
        anchor, off = self.centre.values[sink], self.centre.errors[sink]
        eps = column(self.eps, anchor)
        middle = self.tangents.ordered(before.tangents, self.ranks)
        length = self.tangents.lengths(before.tangents)
        if not self.exact:
            length = length + _UNSEEN_MEAN
        drawn = eps * length * self.factor * self.room[0]
        spread = (middle + _UNSEEN) / self.assurance.divisor * self.room[1]
        # What the proof's pass is rounded by counts where nothing else moves a neuron.
        spread = spread + 2 * LARGEST / self.assurance.divisor * before.rounded
        ball = None
        if self.exact:
            drawn = OUT64.up(drawn, 4)
            ball = OUT64.add(drawn, before.slipped)
            width = ball + (2 * ALPHA + 1) * spread
        else:
            drawn = drawn + 2 * LARGEST_NORMAL * self.factor * before.slipped
            width = (2 * ALPHA + 1) * (drawn + spread) + ALPHA * spread
        # A proof may round otherwise.
        width = width * (1 + _ROUNDING) * self._room(activation, sink, before.shift, width)
        # What is rounded in front of it, in the deployed network and by the anchors here.
        own = off + before.moved
        box = around(anchor + before.shift, _MOST * width + own)
        if self.rounding is not None:
            noise = self.rounding(sink, self.state, box).each
            own = OUT64.add(own, noise)
        width = OUT64.add(width, own)
        place, self.expected[i] = self._place(
            activation, sink, before, width, own, drawn, spread, ball
        )
        self.places[i] = place
        # Roundings are found for runs that leave the claim by so much.
        wide = around(anchor + place.shift, place.most)
        self.state[i] = layer_of(activation, anchor, wide, own)
        moved = (place.slope * before.shift).abs() + place.middle.abs()
        return _Flow(
            self.tangents.through(before.tangents, place.slope, place.half),
            place.slope * before.shift + place.middle,
            place.drawn,
            place.spread,
            torch.zeros_like(width),
            torch.zeros_like(width),
            8 * FLOAT64 * moved,
        )

    def _room(self, activation: Elementwise, sink: int, shift: Tensor, width: Tensor) -> Tensor:
        """By how much wider a claim is: more where next to nothing remains over the wider box."""
        anchor = self.centre.values[sink]
        if isinstance(activation, Identity):
            return torch.full_like(width, _ROOM_OF_JOINTS)
        low, high = around(anchor + shift, _ROOM_WHERE_FREE * width)
        low, high = torch.minimum(low, anchor), torch.maximum(high, anchor)
        _, rest = remainder(activation, _chord(activation, low, high), anchor, low, high)
        return torch.where(rest <= _LITTLE * width, _ROOM_WHERE_FREE, 1.0)

    def joint(self, i: int, joint: Joint, parts: list[_Flow]) -> _Flow:
        inputs = self.network.nodes[i].inputs
        anchors = [self.state[j].anchor for j in inputs]
        places = [self.places[j] for j in inputs]
        boxes = [claimed_box(anchor, place) for anchor, place in zip(anchors, places, strict=True)]
        line, rest = joint.derivative(anchors), joint.remainder(anchors, boxes)
        slack = gamma(line.terms + 8)
        drawn, spread = (
            line.magnitude_once(sizes) * (1 + slack)
            for sizes in ([p.drawn for p in parts], [p.spread for p in parts])
        )
        # What the proof's own pass rounds here, and at the fresh errors.
        passed = line.magnitude_once([LARGEST * p.rounded for p in parts]) * (1 + slack)
        kappa = passed + slack * LARGEST * spread
        own = gamma(2 * line.terms + 16, self.own.unit)
        slipped = line.magnitude_once([p.slipped for p in parts]) * (1 + own) + own * drawn
        if self.exact:
            lost = self._lost(torch.cat([p.drawn.flatten(1) for p in parts], 1), line.terms + 8)
            half = (rest + slipped + column(lost, rest)) * (1 + own)
            half, drawn = half + kappa / ALPHA, drawn + column(lost, rest)
        else:
            half = rest + (kappa + LARGEST_NORMAL * slipped) / ALPHA
        half = OUT64.up(half, 12)
        half = OUT64.add(half, 16 * FLOAT64 * LARGEST / ALPHA * half) + DOUBLE.tiny
        shift = line.once([p.shift for p in parts])
        moved = line.magnitude_once([p.moved + slack * p.shift.abs() for p in parts])
        spread, none = OUT64.up(spread + half, 5), torch.zeros_like(half)
        drawn = drawn * (1 + own)
        self.joints[i] = JointClaimed(line, rest, half, spread, drawn)
        return _Flow(
            self.tangents.joined([p.tangents for p in parts], line, half),
            shift, drawn, spread, none, none, moved * (1 + slack),
        )  # fmt: skip

    def _place(
        self, activation: Elementwise, sink: int, before: _Flow, width: Tensor, own: Tensor,
        drawn: Tensor, spread: Tensor, ball: Tensor | None,
    ) -> tuple[Claimed, Layer]:  # fmt: skip
        """Slopes and errors over the claimed box, and the layer that it is."""
        anchor = self.centre.values[sink]
        low, high = around(anchor + before.shift, width)
        layer = layer_of(activation, anchor, (low, high), own)
        lower, upper = layer.lower, layer.upper
        slope = _chord(activation, lower, upper)
        middle, rest = remainder(activation, slope, anchor, lower, upper)
        # Of the proof's own pass, in float64: what its tangents are rounded by up to here.
        steep = slope.abs()
        across = steep * drawn
        kappa = steep * LARGEST * before.rounded
        half = rest + steep * own
        if self.exact:
            # Of the product with the slope, and of the slope itself.
            half = half + steep * before.slipped + 4 * self.own.unit * across
            half = half + torch.where(slope != 0, column(self._lost(drawn, 4), drawn), 0.0)
        else:
            kappa = kappa + LARGEST_NORMAL * (steep * before.slipped + 8 * FLOAT64 * across)
        half = half + kappa / ALPHA
        # Of the product with the slope and the fresh error, and of their sum.
        half = half + 16 * FLOAT64 * LARGEST / ALPHA * (steep * spread + half)
        half = OUT64.up(half, 12)
        place = Claimed(
            slope, middle, rest, half, before.shift, width, _MOST * width, own,
            OUT64.up(steep * spread + half + _FLOOR * width, 4),
            across * (1 + 8 * self.own.unit),
            before.rounded, before.slipped, ball,
        )  # fmt: skip
        return place, layer


def claimed_box(anchor: Tensor, place: Claimed) -> Box:
    """The box of an activation's input that is claimed, and holds the anchor."""
    lower, upper = around(anchor + place.shift, place.width)
    return torch.minimum(lower, anchor), torch.maximum(upper, anchor)


def layer_of(activation: Elementwise, anchor: Tensor, box: Box, drift: Tensor) -> Layer:
    """An activation's layer from its box alone: the ball is the box's half-diagonal."""
    lower, upper = torch.minimum(box[0], anchor), torch.maximum(box[1], anchor)
    flat, steep = activation.secant(lower, upper, anchor)
    varying = (activation.gain(lower, upper) != 0).to(anchor.dtype)
    gain = torch.where(varying != 0, torch.maximum(flat.abs(), steep.abs()), 0)
    way = torch.maximum(upper - anchor, anchor - lower) * varying
    # A difference is rounded.
    radius = OUT64.up(half_diagonal(way, anchor.dtype), 1)
    return Layer(anchor, lower, upper, radius, gain, varying, drift=drift)


def remainder(
    activation: Elementwise, slope: Tensor, anchor: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """``m`` and ``r``: ``|Δσ − c Δz − m| ≤ r`` for every ``z`` of the box."""
    one, small = torch.ones_like(slope), torch.full_like(slope, _NO_MULTIPLIER)
    least = activation.relaxed_minimum(one, slope, small, anchor, lower, upper)
    most = -activation.relaxed_minimum(-one, slope, small, anchor, lower, upper)
    low, high = activation.image(lower, upper)
    here = activation.value(anchor).abs()
    way = torch.maximum(upper - anchor, anchor - lower)
    sizes = low.abs() + high.abs() + here + (slope.abs() + 1) * (way + anchor.abs())
    relative, absolute, scaled = activation.rounding
    charge = FLOAT64 * (64 + 4 * relative) * sizes + FLOAT64 * (4 * absolute + 4 * scaled * sizes)
    half = (most - least) / 2 + charge + _NO_MULTIPLIER * way.square()
    # Where the box is straight nothing remains.
    flat, steep = activation.slopes(lower, upper)
    straight = (flat == steep) & (slope == flat)
    return torch.where(straight, 0.0, (least + most) / 2), torch.where(straight, 0.0, half)


def _chord(activation: Elementwise, lower: Tensor, upper: Tensor) -> Tensor:
    """The slope from end to end, exact where the box is straight."""
    flat, steep = activation.slopes(lower, upper)
    wide = upper - lower
    rise = activation.value(upper) - activation.value(lower)
    chord = rise / torch.where(wide > 0, wide, 1)
    return torch.where(
        (flat == steep) | (wide <= 0), flat, torch.minimum(torch.maximum(chord, flat), steep)
    )
