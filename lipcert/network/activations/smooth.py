"""Smooth activations, as curved pieces: one implementation of all their enclosures.

A smooth activation is known by its value, its first two derivatives, and the places where it bends
over: its inflections and kinks cut the line into pieces, convex or concave each. That says it all:

    slopes over a box      ``σ'`` is monotone on a piece: its extremes are at the pieces' ends
    secants from z0        an extreme is at a piece's end, or where a tangent passes through z0
    the relaxed minimum    a piece lies above its tangents and below its chord, or the reverse

Tangent points and vertices are searched for by Newton's method. Any tangent of a piece bounds it,
so that no bound rests on how good the search was. Roundings are charged outwards: of the value by
``Activation.rounding``, which holds for torch's functions as for others; of ``σ'`` by
``slope_rounding``. Inflections are rounded numbers; what ``σ'`` changes over an ulp beside a place
where ``σ'' = 0`` is of second order, far below what is charged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.activations.base import Elementwise

Jet = tuple[Tensor, Tensor, Tensor]

# Further out every slope has its limit to the last bit.
_FAR = 1000.0
_VERTEX_STEPS, _TANGENT_STEPS = 4, 10


@dataclass(frozen=True)
class Piece:
    """``σ`` between ``start`` and ``end``, where ``σ''`` keeps its sign; ``|σ''|`` rises up to
    ``peak`` and falls after it. ``jet`` is ``(σ, σ', σ'')``, of this side at the piece's ends."""

    start: float
    end: float
    convex: bool
    peak: float
    jet: Callable[[Tensor], Jet]
    linear: bool = False

    def within(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The piece's part of a box; its ends cross where it has none."""
        return lower.clamp(min=self.start), upper.clamp(max=self.end)


def identity(z: Tensor) -> Jet:
    """The jet of a piece that is ``z`` itself."""
    return z, torch.ones_like(z), torch.zeros_like(z)


class Smooth(Elementwise):
    """A function of curved pieces."""

    @abstractmethod
    def jet(self, z: Tensor) -> Jet:
        """``σ``, ``σ'`` and ``σ''``, without cancellation; of either side at a kink."""

    @abstractmethod
    def pieces(self) -> Sequence[Piece]:
        """Left to right, the whole line."""

    @property
    def turns(self) -> Sequence[float]:
        """Where ``σ`` stops to rise or fall."""
        return ()

    @property
    def slope_rounding(self) -> tuple[float, float]:
        """``(r, a)``: a computed ``σ'(z)`` errs by at most ``u (r |σ'(z)| + a)``."""
        return 0.0, 16.0

    def value(self, z: Tensor) -> Tensor:
        return self.jet(z)[0]

    def derivative(self, z: Tensor) -> Tensor:
        return self.jet(z)[1]

    @property
    def curvature(self) -> float:
        """The largest ``|σ''|`` on any piece."""
        peaks = [(piece, torch.tensor(piece.peak, dtype=torch.float64)) for piece in self.pieces()]
        return max(float(piece.jet(peak)[2].abs()) for piece, peak in peaks) * (1 + 1e-12)

    @property
    def lipschitz(self) -> float:
        everywhere = torch.tensor(torch.inf, dtype=torch.float64)
        return float(self.gain(-everywhere, everywhere))

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        places = [lower, upper]
        places += [torch.minimum(torch.maximum(lower.new_tensor(t), lower), upper)
                   for t in self.turns]  # fmt: skip
        place = torch.stack(places)
        value = self.value(place)
        slack = torch.where(value.isinf(), 0.0, self._fuzz(value, place))
        return (value - slack).amin(0), (value + slack).amax(0)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """``σ'_min ≤ σ' ≤ σ'_max`` over the box, of both sides at a kink: between any two points."""
        lower = torch.where(lower.isnan(), -_FAR, lower).clamp(-_FAR, _FAR)
        upper = torch.where(upper.isnan(), _FAR, upper).clamp(-_FAR, _FAR)
        low, high = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
        for piece in self.pieces():
            left, right = piece.within(lower, upper)
            here = left <= right
            for end in (left, right):
                slope = piece.jet(end)[1]
                slack = 0.0 if piece.linear else self._slope_fuzz(slope)
                low = torch.where(here, torch.minimum(low, slope - slack), low)
                high = torch.where(here, torch.maximum(high, slope + slack), high)
        return low, high

    def gain(self, lower: Tensor, upper: Tensor) -> Tensor:
        low, high = self.slopes(lower, upper)
        return torch.maximum(low.abs(), high.abs())

    def secant(self, lower: Tensor, upper: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """Of each piece, on each side of the anchor: the secants to its two ends on one hand, on
        the other its tangent that comes closest to passing through the anchor's point."""
        end = torch.stack([lower, upper])
        left, right = torch.minimum(end, anchor), torch.maximum(end, anchor)
        rightwards = torch.tensor([False, True], device=end.device)
        rightwards = rightwards.reshape(2, *(1,) * anchor.dim())
        at_anchor = self.value(anchor)
        low, high = torch.full_like(end, torch.inf), torch.full_like(end, -torch.inf)
        for piece in self.pieces():
            first, last = piece.within(left, right)
            near = torch.where(rightwards, first, last)
            far = torch.where(rightwards, last, first)
            touch = self._tangent(piece, anchor, at_anchor, near, far)
            at_touch, slope, _ = piece.jet(touch)
            chords, lines = [], []
            for place in (near, far):
                way = place - anchor
                apart = way != 0
                at_place, own, _ = piece.jet(place)
                line = at_touch + slope * (place - touch)
                fuzz = self._fuzz(at_place, place) + self._fuzz(at_anchor, anchor)
                fuzz = fuzz + self._slope_fuzz(slope) * (place - touch).abs()
                fuzz = fuzz + 4 * torch.finfo(way.dtype).eps * (line.abs() + at_touch.abs())
                fuzz = fuzz + self._fuzz(at_touch, touch)
                steepness = torch.where(apart, way, 1)
                slack = torch.where(apart, fuzz / steepness.abs(), self._slope_fuzz(own))
                chord = torch.where(apart, (at_place - at_anchor) / steepness, own)
                line = torch.where(apart, (line - at_anchor) / steepness, own)
                chords.append((chord - slack, chord + slack))
                lines.append((line - slack, line + slack))
            # Where the piece lies above its tangents as seen from the anchor.
            below, above = (lines, chords) if piece.convex else (chords, lines)
            flat, steep = _least(below), _most(above)
            other_flat, other_steep = _least(above), _most(below)
            flat = torch.where(rightwards, flat, other_flat)
            steep = torch.where(rightwards, steep, other_steep)
            # A NaN excludes nothing.
            here = ~(first > last)
            flat = torch.where(flat.isnan(), -torch.inf, flat)
            steep = torch.where(steep.isnan(), torch.inf, steep)
            low = torch.where(here, torch.minimum(low, flat), low)
            high = torch.where(here, torch.maximum(high, steep), high)
        least, most = self.slopes(left, right)
        return torch.maximum(low, least).amin(0), torch.minimum(high, most).amax(0)

    def _tangent(
        self, piece: Piece, anchor: Tensor, at_anchor: Tensor, near: Tensor, far: Tensor
    ) -> Tensor:
        """The place of the piece whose tangent passes closest to the anchor's point."""
        sign = 1.0 if piece.convex else -1.0

        def miss(place: Tensor) -> tuple[Tensor, Tensor]:
            """Rises on the way from the near end to the far one."""
            value, slope, bend = piece.jet(place)
            way = place - anchor
            return sign * (slope * way - value + at_anchor), sign * bend * way

        low, high = near.clamp(-_FAR, _FAR), far.clamp(-_FAR, _FAR)
        found = _search(miss, (low + high) / 2, low, high, _TANGENT_STEPS)
        found = torch.where(miss(high)[0] <= 0, high, found)
        return torch.where((miss(low)[0] >= 0) | (near == anchor), low, found)

    def relaxed_minimum(
        self,
        coefficient: Tensor,
        slope: Tensor,
        multiplier: Tensor,
        anchor: Tensor,
        lower: Tensor,
        upper: Tensor,
    ) -> Tensor:
        """The least over all pieces. Where ``Aσ`` is convex, its tangent at the vertex is exact;
        where it is concave, the larger of two bounds: that tangent bent by the most that ``σ''``
        bends on this part of the piece, and the chords of its two parts on both sides of a vertex.
        """
        # At a minimum the value's derivative by the place is 0 or the place is fixed: the gradient
        # by all else needs no path through it.
        with torch.no_grad():
            at_anchor = self.value(anchor)
            shape = torch.broadcast_shapes(coefficient.shape, slope.shape, anchor.shape)
            size, line = coefficient.expand(shape), slope.expand(shape)
            best = torch.full_like(size, torch.inf)
            change, rise = torch.zeros_like(size), torch.full_like(size, torch.nan)
            for piece in self.pieces():
                left, right = piece.within(lower, upper)
                here = left <= right
                term = _Term(size, line, multiplier, left - anchor, right - anchor)
                found = self._below(piece, term, anchor, at_anchor, left, right)
                chosen = here & (found.value < best)
                best = torch.where(chosen, found.value, best)
                change = torch.where(chosen, found.change, change)
                rise = torch.where(chosen, found.rise, rise)
        return coefficient * (rise - slope * change) + multiplier * change.square()

    def _below(
        self,
        piece: Piece,
        term: _Term,
        anchor: Tensor,
        at_anchor: Tensor,
        left: Tensor,
        right: Tensor,
    ) -> _Bound:
        """A bound of one piece's part ``[left, right]``."""
        size = term.coefficient
        at_left, at_right = piece.jet(left), piece.jet(right)

        def descent(place: Tensor) -> tuple[Tensor, Tensor]:
            _, steep, bend = piece.jet(place)
            way = place - anchor
            return (
                size * (steep - term.slope) + 2 * term.multiplier * way,
                size * bend + 2 * term.multiplier,
            )

        low, high = left.clamp(-_FAR, _FAR), right.clamp(-_FAR, _FAR)
        start = torch.minimum(torch.maximum(anchor, low), high)
        place = _search(descent, start.expand_as(size), low, high, _VERTEX_STEPS)
        rises = size * (at_left[1] - term.slope) + 2 * term.multiplier * term.low >= 0
        falls = size * (at_right[1] - term.slope) + 2 * term.multiplier * term.high <= 0
        place = torch.where(rises, low, torch.where(falls, high, place))

        value, steep, _ = piece.jet(place)
        eps = torch.finfo(left.dtype).eps
        fuzz = self._fuzz(value, place) + self._fuzz(at_anchor, anchor)
        fuzz = fuzz + self._fuzz(at_left[0], left) + self._fuzz(at_right[0], right)
        fuzz = fuzz + (8 * eps * steep.abs() + self._slope_fuzz(steep)) * (right - left)
        base = -at_anchor - torch.sign(size) * fuzz
        way = place - anchor
        if piece.linear:
            return term.least(base + value - steep * way, steep, torch.zeros_like(steep))
        peak = torch.minimum(torch.maximum(left.new_tensor(piece.peak), left), right)
        bends = (size < 0) == piece.convex
        bend = torch.where(bends, piece.jet(peak)[2] * (1 + 1e-6), 0.0)
        tangent = term.least(
            base + value - steep * way + bend * way.square() / 2, steep - bend * way, bend
        )
        chord = _chord(left, at_left[0], right, at_right[0])
        corner = anchor + term.least(base + at_left[0] - chord * term.low, chord).change
        corner = torch.minimum(torch.maximum(corner, left), right)
        at_corner = piece.jet(corner)[0]
        parts = []
        for start, at_start, end, at_end in (
            (left, at_left[0], corner, at_corner),
            (corner, at_corner, right, at_right[0]),
        ):
            chord = _chord(start, at_start, end, at_end)
            part = _Term(size, term.slope, term.multiplier, start - anchor, end - anchor)
            parts.append(part.least(base + at_start - chord * part.low, chord))
        chords = _choose(parts[0].value <= parts[1].value, parts[0], parts[1])
        return _choose(bends & (chords.value > tangent.value), chords, tangent)

    def _fuzz(self, value: Tensor, place: Tensor) -> Tensor:
        """By how much a computed ``σ(z)`` may be off, twice over."""
        relative, absolute, scaled = self.rounding
        eps = torch.finfo(value.dtype).eps
        fuzz = relative * value.abs() + absolute
        return eps * (fuzz + scaled * place.abs() if scaled else fuzz)

    def _slope_fuzz(self, slope: Tensor) -> Tensor:
        relative, absolute = self.slope_rounding
        kind = torch.finfo(slope.dtype)
        # Far out a slope underflows; the smallest normal number is still above it.
        return kind.eps * (relative * slope.abs() + absolute) + kind.tiny


@dataclass(frozen=True)
class _Bound:
    """A least value, where it is taken, and what the bound of ``Δσ`` is there."""

    value: Tensor
    change: Tensor
    rise: Tensor


@dataclass(frozen=True)
class _Term:
    """``A (Δσ − c Δz) + λ Δz²`` over ``low ≤ Δz ≤ high``."""

    coefficient: Tensor
    slope: Tensor
    multiplier: Tensor
    low: Tensor
    high: Tensor

    def least(self, shift: Tensor, steep: Tensor, bend: Tensor | float = 0.0) -> _Bound:
        """With ``Δσ = shift + steep Δz + bend Δz² / 2``. What cannot be told is −∞."""
        tilt = self.coefficient * (steep - self.slope)
        curve = self.multiplier + self.coefficient * bend / 2
        convex = curve > 0
        vertex = -tilt / (2 * torch.where(convex, curve, 1))
        vertex = torch.minimum(torch.maximum(vertex, self.low), self.high)
        downhill = tilt * self.low + curve * self.low.square()
        uphill = tilt * self.high + curve * self.high.square()
        place = torch.where(convex, vertex, torch.where(downhill < uphill, self.low, self.high))
        rise = shift + place * (steep + bend * place / 2)
        value = self.coefficient * (rise - self.slope * place) + self.multiplier * place.square()
        return _Bound(torch.where(value.isnan(), -torch.inf, value), place, rise)


def _choose(first: Tensor, one: _Bound, other: _Bound) -> _Bound:
    return _Bound(
        torch.where(first, one.value, other.value),
        torch.where(first, one.change, other.change),
        torch.where(first, one.rise, other.rise),
    )


def _chord(left: Tensor, at_left: Tensor, right: Tensor, at_right: Tensor) -> Tensor:
    apart = right > left
    return torch.where(apart, (at_right - at_left) / torch.where(apart, right - left, 1), 0)


def _least(ranges: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.minimum(ranges[0][0], ranges[1][0])


def _most(ranges: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.maximum(ranges[0][1], ranges[1][1])


def _search(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    low: Tensor,
    high: Tensor,
    steps: int,
) -> Tensor:
    """Near a zero of a function that rises from ``low`` to ``high``, given with its derivative:
    Newton's steps as long as they stay between the ends, which close in, else halves."""
    place = start
    for _ in range(steps):
        value, steep = function(place)
        low = torch.where(value < 0, place, low)
        high = torch.where(value > 0, place, high)
        step = place - value / steep
        inside = (step - low) * (step - high) <= 0
        place = torch.where(inside, step, (low + high) / 2)
    return place
