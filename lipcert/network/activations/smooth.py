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
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lipcert.network.activations.base import Elementwise, Relaxation
from lipcert.network.activations.pieces import FAR, Jet, Piece, search
from lipcert.network.activations.relaxed import Term, choose, lowest
from lipcert.numbers import OUT32

# Of Newton's method.
_TANGENTS, _STEPS = 2, 8
# Where a search looks, over a box.
_PLACES = 13
# One tangent serves where it misses no more than this share of the term's least value.
_NEAR = 0.005


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
    def kinks(self) -> Sequence[float]:
        """Where ``σ'`` jumps."""
        return ()

    @property
    def slope_rounding(self) -> tuple[float, float]:
        """``(r, a)``: a computed ``σ'(z)`` errs by at most ``u (r |σ'(z)| + a)``."""
        return 0.0, 16.0

    def value(self, z: Tensor) -> Tensor:
        return self.jet(z)[0]

    def derivative(self, z: Tensor) -> Tensor:
        return self.jet(z)[1]

    @cached_property
    def bending(self) -> tuple[float, float]:
        """The least and the largest ``σ''``, or 0, but for kinks; with a dozen roundings of
        float32, in which it may be compared."""
        peaks = [(piece, torch.tensor(piece.peak, dtype=torch.float64)) for piece in self.pieces()]
        bends = [0.0, *(float(piece.jet(peak)[2]) for piece, peak in peaks)]
        return OUT32.up(min(bends), 12), OUT32.up(max(bends), 12)

    @cached_property
    def lipschitz(self) -> float:
        everywhere = torch.tensor(torch.inf, dtype=torch.float64)
        return float(self.gain(-everywhere, everywhere))

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        places = [lower, upper]
        places += [torch.minimum(lower.clamp(min=turn), upper) for turn in self.turns]
        place = torch.stack(places)
        value = self.value(place)
        slack = torch.where(value.isinf(), 0.0, self._fuzz(value, place))
        return (value - slack).amin(0), (value + slack).amax(0)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """``σ'_min ≤ σ' ≤ σ'_max`` over the box, at a kink of both sides: between any points."""
        lower = torch.where(lower.isnan(), -FAR, lower).clamp(-FAR, FAR)
        upper = torch.where(upper.isnan(), FAR, upper).clamp(-FAR, FAR)
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
        # A piece that the anchor lies on touches there; others are rarely met.
        away = (near != anchor) & ((far - near) * (near - anchor) >= 0)
        anchor, at_anchor = anchor.expand(near.shape)[away], at_anchor.expand(near.shape)[away]

        def miss(place: Tensor) -> tuple[Tensor, Tensor]:
            """Rises on the way from the near end to the far one."""
            value, slope, bend = piece.jet(place)
            way = place - anchor
            return sign * (slope * way - value + at_anchor), sign * bend * way

        touch = near.clamp(-FAR, FAR)
        low, high = touch[away], far.clamp(-FAR, FAR)[away]
        found = search(miss, (low + high) / 2, low, high, _STEPS)
        found = torch.where(miss(high)[0] <= 0, high, found)
        touch[away] = torch.where(miss(low)[0] >= 0, low, found)
        return touch

    def relaxed_minimum(
        self,
        coefficient: Tensor,
        slope: Tensor,
        multiplier: Tensor,
        anchor: Tensor,
        lower: Tensor,
        upper: Tensor,
    ) -> Tensor:
        """Where ``λ`` outweighs all that ``Aσ`` bends down, from one tangent, else by pieces."""
        # At a minimum the value's derivative by the place is 0 or the place is fixed: the gradient
        # by all else needs no path through it.
        with torch.no_grad():
            shape = np.broadcast_shapes(coefficient.shape, slope.shape, anchor.shape)
            term = Term(
                coefficient.expand(shape),
                slope.expand(shape),
                multiplier.expand(shape),
                anchor.expand(shape),
                lower.expand(shape),
                upper.expand(shape),
                self.value(anchor).expand(shape),
            )
            change, rise, bent = self._one_tangent(term)
            for kink in self.kinks:
                bent |= (lower <= kink) & (upper >= kink)
            if bool(bent.any()):
                change[bent], rise[bent] = self._by_pieces(term.at(bent))
            way = torch.maximum(upper - anchor, anchor - lower)
            rise = rise - torch.sign(coefficient) * self._rise_fuzz(term.value, anchor, way)
        return coefficient * (rise - slope * change) + multiplier * change.square()

    @property
    def rough(self) -> bool:
        return True

    def rough_relaxation(
        self, anchor: Tensor, lower: Tensor, upper: Tensor, varying: Tensor
    ) -> Relaxation:
        """The least of the term at a few places of the box, from above."""
        share = torch.linspace(0, 1, _PLACES).to(anchor).reshape(-1, *(1,) * anchor.dim())
        place = torch.cat([lower + share * (upper - lower), anchor[None]])
        change = (place - anchor) * varying
        rise = (self.value(place) - self.value(anchor)) * varying
        square = change.square()

        def relax(coefficient: Tensor, slope: Tensor, multiplier: Tensor) -> tuple[Tensor, Tensor]:
            passed = coefficient * slope
            with torch.no_grad():
                total = torch.addcmul(multiplier * square, coefficient, rise)
                total = total.addcmul_(passed, change, value=-1)
                # Several times as fast as argmin; places that tie are one place, or as good.
                best = total == total.amin(0)
                way, up = (torch.where(best, of, -torch.inf).amax(0) for of in (change, rise))
            least = coefficient * up - passed * way + multiplier * way.square()
            return passed, least.flatten(1).sum(1)

        return relax

    def _one_tangent(self, term: Term) -> tuple[Tensor, Tensor, Tensor]:
        """Two of Newton's steps to the vertex; the tangent there, bent by the most that ``σ''``
        bends anywhere, is below ``Aσ``. And where this bound is far below the term's value at
        that place, or unbounded."""
        place, jet = term.anchor, self.jet(term.anchor)
        for _ in range(_TANGENTS):
            tilt, turn = term.descent(place, jet)
            place = torch.minimum(torch.maximum(place - tilt / turn, term.lower), term.upper)
            jet = self.jet(place)
        bend = torch.where(term.coefficient > 0, *self.bending)
        bound = term.least(term.lower, term.upper, place, jet[0], jet[1], bend)
        total, met = term.total(bound), term.total((place - term.anchor, jet[0] - term.value))
        gap = met - total - _NEAR * total.abs() - 1e-9 * term.coefficient.abs()
        return *bound, ~((gap <= 0) & (2 * term.multiplier + term.coefficient * bend > 0))

    def _by_pieces(self, term: Term) -> tuple[Tensor, Tensor]:
        """The least over all pieces."""
        best = torch.full_like(term.anchor, torch.inf)
        change, rise = torch.zeros_like(best), torch.full_like(best, torch.nan)
        for piece in self.pieces():
            left, right = piece.within(term.lower, term.upper)
            found = lowest(piece, term, left, right)
            total = term.total(found)
            chosen = (left <= right) & (total < best)
            best = torch.where(chosen, total, best)
            change, rise = choose(chosen, found, (change, rise))
        return change, rise

    def _rise_fuzz(self, value: Tensor, anchor: Tensor, way: Tensor) -> Tensor:
        """By how much a bound of ``Δσ`` may be off that is put together from values and slopes."""
        relative, absolute, scaled = self.rounding
        share, floor = self.slope_rounding
        eps = torch.finfo(value.dtype).eps
        fuzz = (2 * relative + 8) * value.abs() + 4 * absolute
        fuzz = fuzz + ((relative + share + 16) * self.lipschitz + floor + 2 * scaled) * way
        return eps * (fuzz + 2 * scaled * anchor.abs() if scaled else fuzz)

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


def _least(ranges: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.minimum(ranges[0][0], ranges[1][0])


def _most(ranges: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.maximum(ranges[0][1], ranges[1][1])
