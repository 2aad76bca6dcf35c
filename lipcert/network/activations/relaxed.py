"""The relaxed term of a smooth activation, bounded by parabolas."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from lipcert.network.activations.pieces import FAR, Jet, Piece, search
from lipcert.numbers import OUT32

# Of Newton's method and bisection for the place of a minimum, whose value is bounded from below
# wherever they end: one more costs a pass over all neurons.
_STEPS = 4

# How far from the anchor the least value lies, and the bound of Δσ there.
Least = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Term:
    """``A (Δσ − c Δz) + λ Δz²`` for each neuron; ``value`` is ``σ`` at the
    anchor."""

    coefficient: Tensor
    slope: Tensor
    multiplier: Tensor
    anchor: Tensor
    lower: Tensor
    upper: Tensor
    value: Tensor

    def at(self, mask: Tensor) -> Term:
        return Term(*(getattr(self, field.name)[mask] for field in fields(self)))

    def descent(self, place: Tensor, jet: Jet) -> tuple[Tensor, Tensor]:
        """The term's derivative and second derivative."""
        _, steep, bend = jet
        tilt = self.coefficient * (steep - self.slope) + 2 * self.multiplier * (place - self.anchor)
        return tilt, self.coefficient * bend + 2 * self.multiplier

    def least(
        self,
        left: Tensor,
        right: Tensor,
        place: Tensor,
        value: Tensor,
        steep: Tensor,
        bend: Tensor | float = 0.0,
    ) -> Least:
        """Between two places, with ``σ(z) = value + steep (z − place) + bend (z − place)² / 2``."""
        low, high, way = left - self.anchor, right - self.anchor, place - self.anchor
        flat = steep - bend * way
        shift = value - self.value - way * (steep - bend * way / 2)
        tilt = self.coefficient * (flat - self.slope)
        curve = self.multiplier + self.coefficient * bend / 2
        convex = curve > 0
        vertex = torch.minimum(torch.maximum(-tilt / (2 * curve), low), high)
        downhill = tilt + curve * (low + high) > 0
        change = torch.where(convex, vertex, torch.where(downhill, low, high))
        rise = shift + change * (flat + bend * change / 2)
        return change, rise

    def total(self, bound: Least) -> Tensor:
        """The least value itself; −∞ where it cannot be told."""
        change, rise = bound
        total = self.coefficient * (rise - self.slope * change) + self.multiplier * change.square()
        return torch.where(total.isnan(), -torch.inf, total)


def lowest(piece: Piece, term: Term, left: Tensor, right: Tensor) -> Least:
    """A bound over one piece's part ``[left, right]``.

    Where ``Aσ`` is convex, its tangent at the vertex is exact. Where it is concave, the larger of
    two bounds: that tangent bent by the most that ``σ''`` bends there, and chords, from end to end
    by way of the anchor and of the vertex over the whole chord.
    """
    at_left, at_right = piece.jet(left), piece.jet(right)
    if piece.linear:
        return term.least(left, right, left.clamp(-FAR, FAR), *piece.jet(left.clamp(-FAR, FAR)))
    low, high = left.clamp(-FAR, FAR), right.clamp(-FAR, FAR)
    start = torch.minimum(torch.maximum(term.anchor, low), high)
    place = search(lambda z: term.descent(z, piece.jet(z)), start, low, high, _STEPS)
    rises, falls = term.descent(left, at_left)[0] >= 0, term.descent(right, at_right)[0] <= 0
    place = torch.where(rises, low, torch.where(falls, high, place))
    value, steep, _ = piece.jet(place)
    peak = torch.minimum(left.clamp(min=piece.peak), right)
    bends = (term.coefficient < 0) == piece.convex
    # The second derivative has a few roundings, of float32 where the analysis does.
    bend = torch.where(bends, OUT32.up(piece.jet(peak)[2], 12), 0.0)
    tangent = term.least(left, right, place, value, steep, bend)
    chord = _chord(left, at_left[0], right, at_right[0])
    corner = term.anchor + term.least(left, right, left, at_left[0], chord)[0]
    inner = [torch.minimum(torch.maximum(z, left), right) for z in (corner, term.anchor)]
    ends = (left, torch.minimum(*inner), torch.maximum(*inner), right)
    values = (at_left[0], *(piece.jet(z)[0] for z in ends[1:3]), at_right[0])
    parts = [
        term.least(start, end, start, value, _chord(start, value, end, at_end))
        for (start, value), (end, at_end) in pairwise(zip(ends, values, strict=True))
    ]
    chords = reduce(lambda a, b: choose(term.total(a) <= term.total(b), a, b), parts)
    return choose(bends & (term.total(chords) > term.total(tangent)), chords, tangent)


def choose(first: Tensor, one: Least, other: Least) -> Least:
    return torch.where(first, one[0], other[0]), torch.where(first, one[1], other[1])


def _chord(left: Tensor, at_left: Tensor, right: Tensor, at_right: Tensor) -> Tensor:
    """The chord's slope."""
    apart = right > left
    return torch.where(apart, (at_right - at_left) / torch.where(apart, right - left, 1), 0)
