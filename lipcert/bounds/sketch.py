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
M (``ProjectionAssurance``).

The weights must be fixed before the coins are drawn. So a first pass with other coins (``claim``)
claims a box for every layer, and with it slopes, remainders and roundings; the proof (``prove``)
draws fresh coins and checks that each box it finds lies within the claim. By induction over the
layers every box is then right, unless a projection failed.

The rounding of the proof's own pass is an error like the others. Let ``κ_ij`` bound what one
tangent is rounded by at a place; then all of them move what arrives at ``k`` by at most
``Σ |J| κ``. With ``κ/α`` added to the errors that are measured that is at most the share ``α`` of
the measured scale. ``κ`` takes tangents to be no larger than ``_LARGEST`` times their scale; the
few that are larger are counted: they may be anything, so the order statistic is taken as many ranks
further up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipcert.bounds.boxes import Centre
from lipcert.bounds.state import Layer, Noised, State, half_diagonal
from lipcert.network import Forward, Network, forward
from lipcert.network.activations import Activation, Elementwise, Identity
from lipcert.network.joints import Derivative, Joint
from lipcert.network.operators import Operator
from lipcert.numbers import OUT64, Box, around
from lipcert.rounding import DOUBLE, FLOAT64, column, gamma

# What is rounded in front of an activation: of its input's node, the layers before it, and the
# node's box but for that.
Rounding = Callable[[int, State, Box], Noised]

# The share of a measured scale that the pass's own rounding may make of it, and how many times its
# scale a Cauchy and a normal number may be before it is given up.
_ALPHA, _LARGEST, _LARGEST_NORMAL = 2.0**-8, 2.0**22, 16.0
# A claim leaves room for what two passes differ by: more where that costs next to nothing, as of a
# neuron that stays on its side of a kink.
_DEVIATIONS, _ROOM_WHERE_FREE, _LITTLE = 2.5, 1.5, 2.0**-8
# Of a joint's inputs, whose errors go with the square of it; and how many neurons of one batch may
# be found to be wider than claimed.
_ROOM_OF_JOINTS, _MOST_COLUMNS = 1.2, 4096
# Within how many times its claim a neuron must stay, as roundings are found for that; and how large
# an exact column may be, in the largest that a tangent may be.
_MOST, _SMALL_COLUMN = 2.0, 2.0**-14
# Of a neuron's width its output is taken to have as much for its scale: a dead one may wake.
_FLOOR = 2.0**-8
# How many numbers of tangents pass a joint at once.
_AT_ONCE = 2**19
# So small a multiplier that the relaxed minimum is that of the remainder alone.
_NO_MULTIPLIER = 1e-200
# What logarithms and roots are rounded by is far less than this beyond 1.
_RIGHT = 1.000000001
# More than all squares that underflow.
_UNDERFLOW = 2.0**-1000


class RandomNumbers(Protocol):
    """Independent random numbers for the samples of a batch, ``(B, count, *shape)`` in float64;
    never the same twice."""

    def normals(self, count: int, shape: tuple[int, ...]) -> Tensor: ...

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor: ...


@dataclass(frozen=True)
class ProjectionAssurance:
    """What M projections assure, each but for a probability of ``risk``.

    A root mean square of M normals is below ``√t`` of the norm with probability at most
    ``(t e^{1−t})^{M/2}``: the norm is at most ``factor`` times it, ``factor = 1/√t``.
    The ``rank``-th smallest of M absolute Cauchy numbers is below ``divisor`` times the scale with
    probability at most ``exp(−M KL(rank/M ‖ (2/π) atan divisor))``.
    """

    count: int
    factor: float
    rank: int
    divisor: float

    def room(self, count: int) -> tuple[float, float]:
        """How much larger what M projections find may be than what ``count`` others have found, by
        a few standard deviations: of root mean squares, and of order statistics."""
        together = math.sqrt(1 / self.count + 1 / count)
        q = self.rank / self.count
        at = math.tan(math.pi / 2 * q)
        single = math.sqrt(q * (1 - q)) * math.pi / 2 * (1 + at * at) / at
        return 1 + _DEVIATIONS * together / math.sqrt(2), 1 + _DEVIATIONS * together * single

    @classmethod
    def of(cls, count: int, risk: float) -> ProjectionAssurance:
        """Raises ``ValueError`` where so few projections assure nothing."""
        nothing = ValueError(f"{count} projections assure nothing at a risk of {risk:g}")
        if count < 8 or risk <= 0:
            raise nothing
        log = math.log(risk)
        low, high = 0.0, 1.0
        for _ in range(80):
            t = (low + high) / 2
            small = count / 2 * (math.log(t) + 1 - t) <= log if t > 0 else True
            low, high = (t, high) if small else (low, t)
        best = max(
            ((_divisor(rank, count, log), rank) for rank in range(count // 4, count)),
            key=lambda found: found[0] / math.tan(math.pi / 2 * found[1] / count),
        )
        # The pass's own rounding takes a share of the divisor (``_ALPHA``): most must be left.
        if low < 1e-6 or best[0] < 4 * _ALPHA:
            raise nothing
        # Both bisections end on the safe side, but for what logarithms are rounded by.
        factor, divisor = (_RIGHT / math.sqrt(low), best[0] / _RIGHT)
        return cls(count, factor, best[1], divisor)


def _divisor(rank: int, count: int, log: float) -> float:
    q, low, high = rank / count, 0.0, rank / count
    for _ in range(80):
        p = (low + high) / 2
        distance = (
            math.inf if p <= 0 else q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        )
        low, high = (p, high) if -count * distance <= log else (low, p)
    return math.tan(low * math.pi / 2)


@dataclass(frozen=True, eq=False)
class Claimed:
    """What is claimed at one activation, ``(B, *shape)`` each in float64.

    ``slope``, ``middle`` and ``rest``: of its remainder; ``half``: all errors that enter at its
    output;
    ``shift`` and ``width``: its input lies in ``anchor + shift ± width``, and at most ``most`` from
    there; ``own``: what of the width is no projection's, the noise in front of it. ``spread``,
    ``drawn``: the scale that Cauchy numbers and ``eps`` times normal ones are claimed to have at
    its output; ``rounded``, ``slipped``: what either is rounded by in front of it.
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
    """A tube that is to be proven: its places by activations and by joints, and the state that it
    would give."""

    eps: Tensor
    places: dict[int, Claimed]
    state: State
    joints: dict[int, JointClaimed]


@dataclass(frozen=True, eq=False)
class TubeProof:
    """``state``: with the boxes that were proven; of the samples that ``held``, ``(B,)``, it is
    right. ``missed``: how many neurons of each were found to be wider than claimed."""

    state: State
    held: Tensor
    missed: Tensor


@dataclass(frozen=True, eq=False)
class _Flow:
    """At one node: the ``tangents``, M normal ones and M Cauchy ones for each sample,
    ``(B · 2M, *shape)``; the ``shift``; bounds of what a normal and a Cauchy tangent are in
    absolute value, per unit of their largest, ``drawn`` and ``spread``; and by how much these and
    the shift were rounded since the last activations: ``slipped``, ``rounded``, ``moved``."""

    tangents: Tensor
    shift: Tensor
    drawn: Tensor
    spread: Tensor
    slipped: Tensor
    rounded: Tensor
    moved: Tensor


@dataclass(frozen=True, eq=False)
class Tube:
    """Tubes over one network, in float64, with element-wise activations only, around the
    ``anchors`` of a ``Propagation``; ``rough`` is its copy in float32, for claims."""

    network: Network
    rough: Network

    def claim(
        self, centre: Centre, eps: Tensor, assurance: ProjectionAssurance, coins: RandomNumbers,
        count: int, rounding: Rounding | None,
    ) -> Claim:  # fmt: skip
        """What a proof of this assurance should find at ``eps``, ``(B,)``, from ``count``
        projections."""
        rules = _Claiming(self, centre, eps, assurance, coins, count, rounding)
        forward(self.network, rules, release=True)
        return Claim(eps, rules.places, rules.state, rules.joints)

    def prove(
        self, centre: Centre, claim: Claim, assurance: ProjectionAssurance, coins: RandomNumbers
    ) -> TubeProof:
        """Fresh coins against the claim."""
        rules = _Proving(self, centre, claim, assurance, coins)
        forward(self.network, rules, release=True)
        return TubeProof(rules.state, rules.held, rules.missed)


class _Tangents:
    """What both passes do with tangents: ``M`` normal ones, then ``M`` Cauchy ones a sample."""

    def __init__(self, batch: int, count: int, coins: RandomNumbers, dtype: torch.dtype) -> None:
        self.batch, self.count, self.coins, self.dtype = batch, count, coins, dtype

    def start(self, shape: tuple[int, ...]) -> Tensor:
        normals = self.coins.normals(self.count, shape).to(self.dtype)
        return torch.cat([normals, torch.zeros_like(normals)], 1).flatten(0, 1)

    def split(self, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, M, n)`` each."""
        both = tangents.reshape(self.batch, 2 * self.count, -1)
        return both[:, : self.count], both[:, self.count :]

    def scales(self, tangents: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """The root mean square of the normal ones, and of the Cauchy ones the order statistic of
        these ``ranks``, ``(B,)``: ``(B, *shape)`` in float64."""
        normals, cauchy = self.split(tangents)
        mean = normals.square().sum(1).double() / self.count + _UNDERFLOW
        # Neurons one beside the other: a selection in each row.
        sizes = cauchy.abs().mT.contiguous()
        nothing = sizes.new_full((sizes.shape[1],), math.inf)
        kept = [
            part.kthvalue(rank, dim=1).values if rank <= self.count else nothing
            for part, rank in zip(sizes, ranks.tolist(), strict=True)
        ]
        middle = torch.stack(kept).double()
        shape = tangents.shape[1:]
        return mean.sqrt().reshape(-1, *shape), middle.reshape(-1, *shape)

    def joined(self, parts: list[Tensor], line: Derivative, half: Tensor) -> Tensor:
        """Past a joint, with a fresh error at every value of its output."""
        kept = line.map(lambda t: t.to(self.dtype))
        both = [part.reshape(self.batch, 2 * self.count, *part.shape[1:]) for part in parts]
        out = both[0].new_empty(self.batch, 2 * self.count, *half.shape[1:])
        # Some at a time: what lies between need not leave the cache.
        sizes = [math.prod(part.shape[2:]) for part in (*both, out)]
        step = max(1, _AT_ONCE // (self.batch * max(sizes)))
        for first in range(0, 2 * self.count, step):
            out[:, first : first + step] = kept.apply([p[:, first : first + step] for p in both])
        fresh = self.coins.cauchy(self.count, half.shape[1:])
        out[:, self.count :].add_(fresh.mul_(half[:, None]).to(self.dtype))
        return out.flatten(0, 1)

    def through(self, tangents: Tensor, slope: Tensor, half: Tensor) -> Tensor:
        """Past an activation, with a fresh error at every neuron."""
        shape = tangents.shape
        normals, cauchy = self.split(tangents)
        slope, half = slope.flatten(1)[:, None].to(self.dtype), half.flatten(1)[:, None]
        out = torch.empty_like(tangents.reshape(self.batch, 2 * self.count, -1))
        torch.mul(normals, slope, out=out[:, : self.count])
        fresh = self.coins.cauchy(self.count, shape[1:]).flatten(2)
        torch.mul(cauchy, slope, out=out[:, self.count :])
        out[:, self.count :].add_(fresh.mul_(half).to(self.dtype))
        return out.reshape(shape)


class _Claiming(Forward[_Flow]):
    """The rules of ``Tube.claim``; places and state grow layer by layer."""

    def __init__(
        self, tube: Tube, centre: Centre, eps: Tensor, assurance: ProjectionAssurance,
        coins: RandomNumbers, count: int, rounding: Rounding | None,
    ) -> None:  # fmt: skip
        self.room = assurance.room(count)
        self.network, self.rough = tube.network, tube.rough
        self.centre, self.eps, self.assurance, self.rounding = centre, eps, assurance, rounding
        self.tangents = _Tangents(len(eps), count, coins, tube.rough.anchor.dtype)
        self.ranks = torch.full_like(eps, round(count * assurance.rank / assurance.count)).long()
        self.places: dict[int, Claimed] = {}
        self.joints: dict[int, JointClaimed] = {}
        self.state: State = {}

    def input(self, i: int) -> _Flow:
        x, error = self.centre.values[i], self.centre.errors[i]
        radius, ones, none = column(self.eps, x), torch.ones_like(x), torch.zeros_like(x)
        self.state[i] = Layer(x, *around(x, radius.expand_as(x)), self.eps, ones, ones)
        start = self.tangents.start(x.shape[1:])
        return _Flow(start, none, radius.expand_as(x), none, none, none, error)

    def sum(self, i: int, parts: list[_Flow]) -> _Flow:
        slack = gamma(len(parts) + 4)

        def total(values: list[Tensor]) -> Tensor:
            return torch.stack(values).sum(0)

        tangents = parts[0].tangents
        for part in parts[1:]:
            tangents = tangents + part.tangents
        drawn, spread = total([p.drawn for p in parts]), total([p.spread for p in parts])
        sizes = total([p.shift.abs() for p in parts])
        return _Flow(
            tangents,
            total([p.shift for p in parts]),
            drawn * (1 + slack),
            spread * (1 + slack),
            (total([p.slipped for p in parts]) + slack * drawn) * (1 + slack),
            (total([p.rounded for p in parts]) + slack * spread) * (1 + slack),
            (total([p.moved for p in parts]) + slack * sizes) * (1 + slack),
        )

    def affine(self, i: int, operator: Operator, before: _Flow) -> _Flow:
        slack = gamma(operator.terms + 8)
        lost = (operator.terms + 1) * DOUBLE.tiny

        def error(passed: Tensor, size: Tensor) -> Tensor:
            return (operator.magnitude(passed + slack * size) + lost) * (1 + slack)

        rough = self.rough.nodes[i].kind
        assert isinstance(rough, Operator)
        return _Flow(
            rough.apply(before.tangents),
            operator.apply(before.shift),
            operator.magnitude(before.drawn) * (1 + slack),
            operator.magnitude(before.spread) * (1 + slack),
            error(before.slipped, before.drawn),
            error(before.rounded, before.spread),
            error(before.moved, before.shift.abs()),
        )

    def activation(self, i: int, activation: Activation, before: _Flow) -> _Flow:
        assert isinstance(activation, Elementwise)
        sink = self.network.nodes[i].inputs[0]
        anchor, off = self.centre.values[sink], self.centre.errors[sink]
        eps = column(self.eps, anchor)
        mean, middle = self.tangents.scales(before.tangents, self.ranks)
        drawn = eps * mean * self.assurance.factor * self.room[0]
        spread = middle / self.assurance.divisor * self.room[1]
        # What the proof's pass is rounded by counts where nothing else moves a neuron.
        drawn = drawn + 2 * _LARGEST_NORMAL * self.assurance.factor * before.slipped
        spread = spread + 2 * _LARGEST / self.assurance.divisor * before.rounded
        width = (2 * _ALPHA + 1) * (drawn + spread) + _ALPHA * spread
        width = width * self._room(activation, sink, before.shift, width)
        # What is rounded in front of it, in the deployed network and by the anchors here.
        own = off + before.moved
        box = around(anchor + before.shift, _MOST * width + own)
        if self.rounding is not None:
            noise = self.rounding(sink, self.state, box).each
            own = OUT64.add(own, noise)
        width = OUT64.add(width, own)
        place = self._place(activation, sink, before, width, own, drawn, spread)
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
        passed = line.magnitude_once(
            [_LARGEST * p.rounded + _LARGEST_NORMAL * p.slipped for p in parts]
        ) * (1 + slack)  # fmt: skip
        kappa = passed + slack * (_LARGEST * spread + _LARGEST_NORMAL * drawn)
        half = (rest + kappa / _ALPHA) * (1 + 16 * FLOAT64)
        half = half * (1 + 16 * FLOAT64 * _LARGEST / _ALPHA) + DOUBLE.tiny
        shift = line.once([p.shift for p in parts])
        moved = line.magnitude_once([p.moved + slack * p.shift.abs() for p in parts])
        spread, none = (spread + half) * (1 + 8 * FLOAT64), torch.zeros_like(half)
        self.joints[i] = JointClaimed(line, rest, half, spread, drawn * (1 + 8 * FLOAT64))
        return _Flow(
            self.tangents.joined([p.tangents for p in parts], line, half),
            shift, drawn * (1 + 8 * FLOAT64), spread, none, none, moved * (1 + slack),
        )  # fmt: skip

    def _place(
        self, activation: Elementwise, sink: int, before: _Flow, width: Tensor, own: Tensor,
        drawn: Tensor, spread: Tensor,
    ) -> Claimed:  # fmt: skip
        """Slopes and errors over the claimed box."""
        anchor = self.centre.values[sink]
        low, high = around(anchor + before.shift, width)
        layer = layer_of(activation, anchor, (low, high), own)
        lower, upper = layer.lower, layer.upper
        slope = _chord(activation, lower, upper)
        middle, rest = remainder(activation, slope, anchor, lower, upper)
        # Of the proof's own pass, in float64: what its tangents are rounded by up to here.
        steep = slope.abs()
        across = steep * drawn
        passed = _LARGEST * before.rounded + _LARGEST_NORMAL * before.slipped
        kappa = steep * passed + 8 * FLOAT64 * _LARGEST_NORMAL * across
        half = rest + steep * own + kappa / _ALPHA
        # Of the product with the slope and the fresh error, and of their sum.
        half = half + 16 * FLOAT64 * _LARGEST / _ALPHA * (steep * spread + half)
        half = OUT64.up(half, 12)
        return Claimed(
            slope, middle, rest, half, before.shift, width, _MOST * width, own,
            OUT64.up(steep * spread + half + _FLOOR * width, 4),
            OUT64.up(across, 4),
            before.rounded, before.slipped,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Proven:
    """At one node: the ``tangents`` as in ``_Flow``, and exact ``columns`` ``(C, *shape)``, one for
    each neuron that was found to be wider than claimed, of the samples ``_Proving.owners``; a
    branch that begins before the last of these has fewer."""

    tangents: Tensor
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
        self.tangents = _Tangents(len(eps), assurance.count, coins, torch.float64)
        self.held = torch.isfinite(eps)
        # Of each sample, which Cauchy tangents were larger than they may be.
        self.bad = torch.zeros(len(eps), assurance.count, dtype=torch.bool, device=eps.device)
        self.owners = torch.zeros(0, dtype=torch.int64, device=eps.device)
        self.state: State = {0: claim.state[0]}

    @property
    def missed(self) -> Tensor:
        return torch.bincount(self.owners, minlength=len(self.held))

    def input(self, i: int) -> _Proven:
        start = self.tangents.start(self.network.in_shape)
        normals, _ = self.tangents.split(start)
        self.held &= (normals.abs() <= _LARGEST_NORMAL).flatten(1).all(1)
        return _Proven(start, start[:0])

    def sum(self, i: int, parts: list[_Proven]) -> _Proven:
        total, columns = parts[0].tangents, parts[0].columns
        for part in parts[1:]:
            total = total + part.tangents
            few, many = sorted((columns, part.columns), key=len)
            columns = torch.cat([many[: len(few)] + few, many[len(few) :]])
        return _Proven(total, columns)

    def affine(self, i: int, operator: Operator, before: _Proven) -> _Proven:
        columns = before.columns
        if len(columns):
            columns = operator.apply(columns)
        else:
            columns = columns.new_zeros(0, *operator.out_shape)
        return _Proven(operator.apply(before.tangents), columns)

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
        rest = joint.remainder(anchors, [(layer.lower, layer.upper) for layer in layers])
        # Where all boxes are within the claim this is nothing but for rounding.
        sure = self.held
        for j, layer in zip(inputs, layers, strict=True):
            low, high = claimed_box(layer.anchor, self.claim.places[j])
            inside = (layer.lower >= low) & (layer.upper <= high)
            sure = sure & inside.flatten(1).all(1)
        beyond = torch.where(rest <= place.rest, 0.0, (rest - place.rest) * (1 + 8 * FLOAT64))
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
        mean, order = self.tangents.scales(before.tangents, sure.rank + self.bad.sum(1))
        scale = (order + _LARGEST * place.rounded) / (sure.divisor - _ALPHA) * slack
        ball = column(self.claim.eps, mean) * mean + _LARGEST_NORMAL * place.slipped
        ball = (ball + _ALPHA * scale) * sure.factor * slack
        sizes, count = before.columns.abs(), len(before.columns)
        exact = torch.zeros_like(mean).index_add(0, self.owners[:count], sizes)
        rounded = count * _SMALL_COLUMN * (_ALPHA * scale + _LARGEST * place.rounded)
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
        hopeless = (flat != 0).sum(1) > _MOST_COLUMNS
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

    def _check(self, after: Tensor, columns: Tensor, place: Claimed | JointClaimed) -> None:
        """That tangents and columns are no larger than what their rounding was bounded for."""
        normals, cauchy = self.tangents.split(after)
        spread, drawn = place.spread.flatten(1)[:, None], place.drawn.flatten(1)[:, None]
        self.bad |= ~(cauchy.abs() <= _LARGEST * spread).all(2)
        eps = self.claim.eps.reshape(-1, 1, 1)
        self.held &= (eps * normals.abs() <= _LARGEST_NORMAL * drawn).flatten(1).all(1)
        large = ~(columns.abs() <= _LARGEST * _SMALL_COLUMN * place.spread[self.owners])
        self.held[self.owners[large.flatten(1).any(1)]] = False


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
