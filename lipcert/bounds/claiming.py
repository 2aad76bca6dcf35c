"""The pass that makes a claim: how a tube's tangents, and bounds of what they are rounded by, go
through a network.

See ``lipcert.bounds.claims`` for what it claims, and ``lipcert.bounds.sketch`` for the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.boxes import Centre
from lipcert.bounds.claims import (
    Claimed,
    JointClaimed,
    Rows,
    alone_of,
    chord,
    claimed_box,
    layer_of,
    remainder,
    room_of,
)
from lipcert.bounds.projections import (
    ALPHA,
    LARGEST,
    LARGEST_NORMAL,
    ProjectionAssurance,
    RandomNumbers,
)
from lipcert.bounds.state import Layer, Noised, State
from lipcert.bounds.tangents import Bundle, Tangents
from lipcert.network import Forward, Network
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.numbers import OUT32, OUT64, Box, around
from lipcert.rounding import FLOAT64, column

# What is rounded in front of an activation: of its input's node, the layers before it, and the
# node's box but for that.
Rounding = Callable[[int, State, Box], Noised]

# What two passes may round otherwise.
_ROUNDING = 2.0**-30
# Within how many times its claim a neuron must stay, as roundings are found for that.
_MOST = 2.0
# Of a neuron's width its output is taken to have as much for its scale: a dead one may wake.
_FLOOR = 2.0**-8
# What float32 does not see of a scale, and of the root of its mean square, where a proof in float64
# does: the share of a score that a mask makes small, the slope of a gate that is shut.
_UNSEEN, _UNSEEN_MEAN = 2.0**-100, 2.0**-56


@dataclass(frozen=True, eq=False)
class _Flow:
    """At one node: the ``tangents``; the ``shift``; bounds of what ``eps`` times a row's length (of
    normal tangents: per unit of their largest; of exact ones with all columns) and a Cauchy tangent
    are in absolute value, ``drawn`` and ``spread``; and by how much these and the shift were
    rounded since the last activations: ``slipped``, ``rounded``, ``moved``."""

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
    sum that Cauchy tangents measure. ``γ`` is that of products summed in any order.

    **Columns.** An error ``e``, ``|e| ≤ r``, that enters at one neuron moves ``k`` by ``J_k e``, at
    most ``|V_k|`` if ``V`` is ``r`` times the unit vector there, sent through the same slopes; and
    all of them by at most ``Σ |V_k|`` over the columns, exactly what the 1-norm asks for. They are
    computed like the rows: with ``V = A V' + E`` for each column, ``Σ |E| ≤ γ |A| Σ |V'|``, so that
    what they are rounded by is that of a row of length ``Σ |V'|``, and goes with it: ``drawn`` is
    ``eps`` times the length of the row and this sum together.
    """

    def __init__(
        self, network: Network, rough: Network, centre: Centre, eps: Tensor,
        assurance: ProjectionAssurance, coins: RandomNumbers, count: int,
        rounding: Rounding | None, rows: Rows,
    ) -> None:  # fmt: skip
        room = assurance.room(rows.guessed or count)
        self.room, self.factor = (room[0] * rows.wider, room[1] * rows.wider), assurance.factor
        if rows.exact:
            self.room, self.factor = (1.0, self.room[1]), 1.0
        self.network, self.rough, self.exact = network, rough, rows.exact
        self.centre, self.eps, self.assurance, self.rounding = centre, eps, assurance, rounding
        units = rows.exact and not rows.guessed
        self.columns, self.used = rows.columns if rows.exact else 0, 0
        self.imagined = self.columns > 0 and not units
        self.tangents = Tangents(
            len(eps), math.prod(network.in_shape) if units else count, count, coins,
            rough.anchor.dtype, largest=network.largest, device=eps.device,
            exact=units, twice=self.imagined,
        )  # fmt: skip
        # What tangents that measure rows are computed in where anything is proven by them.
        self.own = OUT32 if rows.exact else OUT64
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
        own, roundings = self.own, len(parts) + 4

        def total(values: list[Tensor]) -> Tensor:
            return torch.stack(values).sum(0)

        drawn, spread = total([p.drawn for p in parts]), total([p.spread for p in parts])
        sizes = total([p.shift.abs() for p in parts])
        return _Flow(
            Bundle.total([p.tangents for p in parts]),
            total([p.shift for p in parts]),
            own.up(drawn, roundings),
            OUT64.up(spread, roundings),
            own.up(total([p.slipped for p in parts]) + own.gamma(roundings) * drawn, roundings),
            OUT64.up(
                total([p.rounded for p in parts]) + OUT64.gamma(roundings) * spread, roundings
            ),
            OUT64.up(total([p.moved for p in parts]) + OUT64.gamma(roundings) * sizes, roundings),
        )

    def affine(self, i: int, operator: Operator, before: _Flow) -> _Flow:
        own, roundings = self.own, operator.terms + 8
        lost = (operator.terms + 1) * OUT64.tiny
        slipped = before.slipped + own.gamma(roundings) * before.drawn
        passed, drawn = operator.magnitude(slipped), operator.magnitude(before.drawn)
        underflow = column(self._lost(before.drawn, operator.terms + 1), drawn)

        def error(passed: Tensor, size: Tensor) -> Tensor:
            made = passed + OUT64.gamma(roundings) * size
            return OUT64.up(operator.magnitude(made) + lost, roundings)

        rough = self.rough.nodes[i].kind
        assert isinstance(rough, Operator)
        return _Flow(
            before.tangents.map(rough.apply),
            operator.apply(before.shift),
            own.up(drawn, roundings) + underflow,
            OUT64.up(operator.magnitude(before.spread), roundings),
            own.up(passed + underflow, roundings),
            error(before.rounded, before.spread),
            error(before.moved, before.shift.abs()),
        )

    def _lost(self, drawn: Tensor, terms: float) -> Tensor:
        """What underflows in so many products with tangents that measure rows: of each product, and
        of a number times the largest tangent; in exact ones of as many vectors as there are values
        of the input, and of all columns: ``(B,)``."""
        lost = self.own.up(terms * self.own.tiny, 1)
        if not self.exact:
            return torch.full_like(self.eps, lost)
        largest = drawn.flatten(1).amax(1) + self.eps
        return lost * (math.sqrt(math.prod(self.network.in_shape)) * largest + self.used)

    def activation(self, i: int, activation: Activation, before: _Flow) -> _Flow:
        assert isinstance(activation, Elementwise)
        sink = self.network.nodes[i].inputs[0]
        anchor, off = self.centre.values[sink], self.centre.errors[sink]
        eps = column(self.eps, anchor)
        middle = self.tangents.ordered(before.tangents, self.ranks)
        length = self.tangents.lengths(before.tangents)
        if not self.exact:
            length = length + _UNSEEN_MEAN
        drawn = eps * length * self.factor * self.room[0] + self._sizes(before.tangents)
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
        width = width * (1 + _ROUNDING) * room_of(activation, anchor, before.shift, width)
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
            self._through(i, before.tangents, place),
            place.slope * before.shift + place.middle,
            place.drawn,
            place.spread,
            torch.zeros_like(width),
            torch.zeros_like(width),
            8 * FLOAT64 * moved,
        )

    def _sizes(self, tangents: Bundle) -> Tensor | float:
        """What all columns come to, or about that where there are none yet."""
        if not self.imagined:
            return self.tangents.sizes(tangents)
        sure = self.assurance
        scale = math.tan(math.pi / 2 * sure.rank / sure.count)
        return self.tangents.ordered(tangents, self.ranks, again=True) / scale

    def _through(self, i: int, tangents: Bundle, place: Claimed) -> Bundle:
        """Past an activation, with all errors that enter there."""
        count = int((place.alone != 0).flatten(1).sum(1).max())
        self.used += count
        if self.imagined:
            return self.tangents.through(tangents, place.slope, place.half, place.alone)
        after = self.tangents.through(tangents, place.slope, place.half)
        return self.tangents.enter(after, i, place.alone, count) if count else after

    def joint(self, i: int, joint: Joint, parts: list[_Flow]) -> _Flow:
        inputs = self.network.nodes[i].inputs
        anchors = [self.state[j].anchor for j in inputs]
        places = [self.places[j] for j in inputs]
        boxes = [claimed_box(anchor, place) for anchor, place in zip(anchors, places, strict=True)]
        line, (below, above) = joint.derivative(anchors), joint.remainders(anchors, boxes)
        middle = ((above - below) / 2).nan_to_num(0.0, 0.0, 0.0)
        rest = OUT64.up(torch.maximum(above - middle, below + middle), 1)
        roundings, slack, own = line.terms + 8, OUT64.gamma(line.terms + 8), self.own

        def passed_on(sizes: list[Tensor]) -> Tensor:
            return OUT64.up(line.magnitude_once(sizes), roundings)

        drawn, spread = passed_on([p.drawn for p in parts]), passed_on([p.spread for p in parts])
        # What the proof's own pass rounds here, and at the fresh errors.
        kappa = passed_on([LARGEST * p.rounded for p in parts]) + slack * LARGEST * spread
        slipped = own.up(line.magnitude_once([p.slipped for p in parts]), 2 * roundings)
        slipped = slipped + own.gamma(2 * roundings) * drawn
        if self.exact:
            lost = self._lost(torch.cat([p.drawn.flatten(1) for p in parts], 1), roundings)
            half = own.up(rest + slipped + column(lost, rest), 2 * roundings)
            half, drawn = half + kappa / ALPHA, drawn + column(lost, rest)
        else:
            half = rest + (kappa + LARGEST_NORMAL * slipped) / ALPHA
        half = OUT64.up(half, 12)
        half = OUT64.add(half, 16 * FLOAT64 * LARGEST / ALPHA * half) + OUT64.tiny
        passed = line.once([p.shift for p in parts])
        moved = passed_on([p.moved + slack * p.shift.abs() for p in parts])
        moved = moved + 8 * FLOAT64 * (passed.abs() + middle.abs())
        spread, none = OUT64.up(spread + half, 5), torch.zeros_like(half)
        drawn = own.up(drawn, 2 * roundings)
        self.joints[i] = JointClaimed(line, middle, rest, half, spread, drawn)
        return _Flow(
            self.tangents.joined([p.tangents for p in parts], line, half),
            passed + middle, drawn, spread, none, none, moved,
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
        slope = chord(activation, lower, upper)
        middle, rest = remainder(activation, slope, anchor, lower, upper)
        # Of the proof's own pass, in float64: what its tangents are rounded by up to here.
        steep = slope.abs()
        across = steep * drawn
        kappa = steep * LARGEST * before.rounded
        alone = alone_of(rest, self.columns - self.used, self.rough.anchor.dtype)
        half = torch.where(alone > 0, 0.0, rest) + steep * own
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
            slope, middle, rest, half, alone, before.shift, width, _MOST * width, own,
            OUT64.up(steep * spread + half + _FLOOR * width, 4),
            OUT64.up(self.own.up(across, 5) + alone, 2),
            before.rounded, before.slipped, ball,
        )  # fmt: skip
        return place, layer
