"""The sketched tube: boxes of every layer, at any depth, from one forward pass of random tangents.

Fix a slope ``c`` for every activation, and write what is not linear as errors: the remainder
``e = Δσ − c Δz`` of an activation lies in ``m ± r`` over its box, and what is rounded in front of
it is at most ``δ``. With ``J`` the linearised network, the change of every neuron ``k`` is

    |Δz_k − shift_k| ≤ eps ‖row_k(J)‖₂ + Σ_i Σ_j |(J_{i→k})_j| r_ij,

``shift`` what the middles ``m`` come to. Both are norms of one row of one linear map, and random
vectors that are sent through it measure the norms of all rows at once (stable projections, Indyk,
J. ACM 2006): of M independent normal inputs the mean square at ``k`` estimates the first, and where
every error is a Cauchy number of its size, what arrives at ``k`` is Cauchy, of the second as its
scale. Either estimate is too small by a factor only with a probability that falls exponentially in
M (``lipcert.bounds.projections``).

The weights must be fixed before the coins are drawn. So a first pass with other coins (``claim``,
in ``lipcert.bounds.claims``) claims a box for every layer, and with it slopes, remainders and
roundings; the proof (``prove``) draws fresh coins and checks that each box it finds lies within the
claim. By induction over the layers every box is then right, unless a projection failed.

The rounding of the proof's own pass is an error like the others. Let ``κ_ij`` bound what one
tangent is rounded by at a place; then all of them move what arrives at ``k`` by at most
``Σ |J| κ``. With ``κ/α`` added to the errors that are measured that is at most the share ``α`` of
the measured scale. ``κ`` takes tangents to be no larger than ``LARGEST`` times their scale; the
few that are larger are counted: they may be anything, so the order statistic is taken as many ranks
further up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.boxes import Centre
from lipcert.bounds.claiming import Claiming, Rounding
from lipcert.bounds.claims import (
    Claim,
    Claimed,
    JointClaimed,
    Rows,
    claimed_box,
    layer_of,
    remainder,
)
from lipcert.bounds.projections import (
    ALPHA,
    LARGEST,
    LARGEST_NORMAL,
    ProjectionAssurance,
    RandomNumbers,
)
from lipcert.bounds.state import State
from lipcert.bounds.tangents import Bundle, Tangents
from lipcert.errors import InternalError
from lipcert.network import Forward, Network, forward, held
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.numbers import OUT64, around
from lipcert.rounding import column, gamma

# How many neurons of one layer of a sample may be found to be wider than claimed, and how large an
# exact column may be, in the largest that a tangent may be.
_MOST_COLUMNS, _SMALL_COLUMN = 4096, 2.0**-14
# How many bytes the columns of all of them may take, at all nodes that are held at the same time
# and as they are copied.
COLUMN_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class TubeProof:
    """``state``: with the boxes that were proven; of the samples that ``held``, ``(B,)``, it is
    right. ``missed``: how many neurons of each were found to be wider than claimed."""

    state: State
    held: Tensor
    missed: Tensor


@dataclass(frozen=True, eq=False)
class Tube:
    """Tubes over one network, in float64, with element-wise activations only, around the
    ``anchors`` of a ``Propagation``; ``rough`` is its copy in float32, for claims."""

    network: Network
    rough: Network

    def claim(
        self, centre: Centre, eps: Tensor, assurance: ProjectionAssurance, coins: RandomNumbers,
        count: int, rounding: Rounding | None, rows: Rows = Rows(),  # noqa: B008
    ) -> Claim:  # fmt: skip
        """What a proof of this assurance should find at ``eps``, ``(B,)``, from ``count``
        projections, and ``rows`` that are measured as this says."""
        rules = Claiming(
            self.network, self.rough, centre, eps, assurance, coins, count, rounding, rows
        )
        forward(self.network, rules, release=True)
        guessed = rows.guessed > 0
        return Claim(eps, rules.places, rules.state, rules.expected, rules.joints, guessed)

    def prove(
        self, centre: Centre, claim: Claim, assurance: ProjectionAssurance, coins: RandomNumbers
    ) -> TubeProof:
        """Fresh coins against the claim."""
        if claim.guessed:
            raise InternalError("a claim that was only guessed is to be proven")
        rules = _Proving(self, centre, claim, assurance, coins)
        forward(self.network, rules, release=True)
        return TubeProof(rules.state, rules.held, rules.missed)


@dataclass(frozen=True, eq=False)
class _Proven:
    """At one node: the ``tangents``, and exact ``columns`` ``(C, *shape)``, one for
    each neuron that was found to be wider than claimed, of the samples ``_Proving.owners``; a
    branch that begins before the last of these has fewer."""

    tangents: Bundle
    columns: Tensor


class _Proving(Forward[_Proven]):
    """The rules of ``Tube.prove``: tangents in float64 through the claimed slopes and errors.

    A neuron that is found to be wider than claimed may have a remainder larger than its ``half``.
    What is beyond that is one more error; no coin knows it, so it is followed by itself.
    """

    def __init__(
        self,
        tube: Tube,
        centre: Centre,
        claim: Claim,
        assurance: ProjectionAssurance,
        coins: RandomNumbers,
    ) -> None:
        self.network, self.centre, eps = tube.network, centre, claim.eps
        self.claim, self.assurance = claim, assurance
        self.exact = all(place.ball is not None for place in claim.places.values())
        rows = 0 if self.exact else assurance.count
        self.tangents = Tangents(
            len(eps), rows, assurance.count, coins, torch.float64, largest=self.network.largest,
            device=eps.device,
        )  # fmt: skip
        self.held = torch.isfinite(eps)
        # Of each sample, which Cauchy tangents were larger than they may be.
        self.bad = torch.zeros(len(eps), assurance.count, dtype=torch.bool, device=eps.device)
        self.owners = torch.zeros(0, dtype=torch.int64, device=eps.device)
        self.state: State = {0: claim.state[0]}
        self.room = COLUMN_BYTES / (8 * held(tube.network))

    @property
    def missed(self) -> Tensor:
        return torch.bincount(self.owners, minlength=len(self.held))

    def input(self, i: int) -> _Proven:
        start = self.tangents.start(self.network.in_shape)
        for part in start.rows:
            small = (part.abs() <= LARGEST_NORMAL).reshape(len(self.held), -1)
            self.held &= small.all(1)
        return _Proven(start, start.cauchy[0][:0])

    def sum(self, i: int, parts: list[_Proven]) -> _Proven:
        columns = parts[0].columns
        for part in parts[1:]:
            few, many = sorted((columns, part.columns), key=len)
            columns = torch.cat([many[: len(few)] + few, many[len(few) :]])
        return _Proven(Bundle.total([part.tangents for part in parts]), columns)

    def affine(self, i: int, operator: Operator, before: _Proven) -> _Proven:
        columns = before.columns
        if len(columns):
            columns = operator.apply(columns)
        else:
            columns = columns.new_zeros(0, *operator.out_shape)
        return _Proven(before.tangents.map(operator.apply), columns)

    def activation(self, i: int, activation: Activation, before: _Proven) -> _Proven:
        assert isinstance(activation, Elementwise)
        sink, place = self.network.nodes[i].inputs[0], self.claim.places[i]
        width = self._width(before, place)
        self.held &= (width <= place.most).flatten(1).all(1)
        anchor = self.centre.values[sink]
        # NaN stays, and is no number's neighbour.
        box = around(anchor + place.shift, torch.where(width <= place.most, width, place.most))
        self.state[i] = layer_of(activation, anchor, box, place.own)
        beyond = self._beyond(activation, anchor, place, width)
        columns = before.columns * place.slope[self.owners[: len(before.columns)]]
        columns = self._with_misses(columns, beyond)
        after = self.tangents.through(before.tangents, place.slope, place.half)
        self._check(after, columns, place)
        return _Proven(after, columns)

    def joint(self, i: int, joint: Joint, parts: list[_Proven]) -> _Proven:
        inputs, place = self.network.nodes[i].inputs, self.claim.joints[i]
        layers = [self.state[j] for j in inputs]
        anchors = [layer.anchor for layer in layers]
        below, above = joint.remainders(anchors, [(layer.lower, layer.upper) for layer in layers])
        rest = OUT64.up(torch.maximum(above - place.middle, below + place.middle), 2)
        # Where all boxes are within the claim this is nothing but for rounding.
        sure = self.held
        for j, layer in zip(inputs, layers, strict=True):
            low, high = claimed_box(layer.anchor, self.claim.places[j])
            inside = (layer.lower >= low) & (layer.upper <= high)
            sure = sure & inside.flatten(1).all(1)
        beyond = torch.where(rest <= place.rest, 0.0, OUT64.up(rest - place.rest, 5))
        beyond = torch.where(sure.reshape(-1, *(1,) * (rest.dim() - 1)), 0.0, beyond)
        count = max(len(part.columns) for part in parts)
        line = place.line.map(lambda t: t[self.owners[:count]])
        several = []
        for columns in (part.columns for part in parts):
            missing = columns.new_zeros(count - len(columns), *columns.shape[1:])
            several.append(torch.cat([columns, missing]))
        columns = line.once(several) if count else beyond[:0]
        columns = self._with_misses(columns, beyond)
        after = self.tangents.joined([p.tangents for p in parts], place.line, place.half)
        self._check(after, columns, place)
        return _Proven(after, columns)

    def _width(self, before: _Proven, place: Claimed) -> Tensor:
        """How far the activation's input may be from ``anchor + shift``."""
        sure, slack = self.assurance, 1 + gamma(self.assurance.count + 16)
        order = self.tangents.ordered(before.tangents, sure.rank + self.bad.sum(1))
        scale = (order + LARGEST * place.rounded) / (sure.divisor - ALPHA) * slack
        if place.ball is not None:
            ball = place.ball
        else:
            mean = self.tangents.lengths(before.tangents)
            ball = column(self.claim.eps, mean) * mean + LARGEST_NORMAL * place.slipped
            ball = (ball + ALPHA * scale) * sure.factor * slack
        sizes, count = before.columns.abs(), len(before.columns)
        exact = torch.zeros_like(order).index_add(0, self.owners[:count], sizes)
        rounded = count * _SMALL_COLUMN * (ALPHA * scale + LARGEST * place.rounded)
        exact = (exact + rounded) * slack
        return OUT64.add(ball, scale, exact, place.own)

    def _beyond(
        self, activation: Elementwise, anchor: Tensor, place: Claimed, width: Tensor
    ) -> Tensor:
        """How much larger a remainder may be than claimed: 0 where a width is within the claim."""
        inside = width <= place.width
        wide = torch.where(inside, place.width, width)
        lower, upper = around(anchor + place.shift, wide)
        lower, upper = torch.minimum(lower, anchor), torch.maximum(upper, anchor)
        middle, rest = remainder(activation, place.slope, anchor, lower, upper)
        more = OUT64.up(rest + (middle - place.middle).abs(), 2)
        more = OUT64.up(more - place.rest, 1)
        return torch.where(inside | (more <= 0), 0.0, more)

    def _with_misses(self, columns: Tensor, beyond: Tensor) -> Tensor:
        """One more column for each neuron whose remainder is beyond its claim."""
        flat = beyond.flatten(1)
        # A sample that misses so much is not worth the memory; a NaN is no number of any column.
        fresh_ones = (flat != 0).sum(1)
        hopeless = fresh_ones > _MOST_COLUMNS
        hopeless |= (self.missed + fresh_ones) * len(flat) > self.room
        hopeless |= ~flat.isfinite().all(1)
        self.held &= ~hopeless
        beyond = torch.where(hopeless.reshape(-1, *(1,) * (beyond.dim() - 1)), 0.0, beyond)
        owners, places = beyond.flatten(1).nonzero().unbind(1)
        known = columns.new_zeros(len(self.owners) - len(columns), *columns.shape[1:])
        fresh = beyond.new_zeros(len(owners), beyond[0].numel())
        fresh[torch.arange(len(owners), device=fresh.device), places] = beyond.flatten(1)[
            owners, places
        ]
        self.owners = torch.cat([self.owners, owners])
        return torch.cat([columns, known, fresh.reshape(-1, *columns.shape[1:])])

    def _check(self, after: Bundle, columns: Tensor, place: Claimed | JointClaimed) -> None:
        """That tangents and columns are no larger than what their rounding was bounded for."""
        batch, first = len(self.held), 0
        limit = LARGEST * place.spread.flatten(1)[:, None]
        for part in after.cauchy:
            sizes = part.reshape(batch, -1, limit.shape[2])
            last = first + sizes.shape[1]
            self.bad[:, first:last] |= ~((sizes <= limit) & (sizes >= -limit)).all(2)
            first = last
        eps, limit = self.claim.eps.reshape(-1, 1, 1), LARGEST_NORMAL * place.drawn.flatten(1)
        for part in after.rows:
            sizes = eps * part.reshape(batch, -1, limit.shape[1]).abs()
            self.held &= (sizes <= limit[:, None]).flatten(1).all(1)
        large = ~(columns.abs() <= LARGEST * _SMALL_COLUMN * place.spread[self.owners])
        self.held[self.owners[large.flatten(1).any(1)]] = False
