"""What a sweep through a segment rounds, in lengths.

Entry by entry a sweep errs by ``γ |A_n| ⋯ |A_1| |v|`` at most, and ``‖ |A_n| ⋯ |A_1| ‖₂`` is far
above ``‖A_n ⋯ A_1‖₂`` where a segment is long: for the terms of an exponential series of
convolutions it is hundreds of times as large. In lengths, one operator errs by
``γ ‖ |A| ‖₂ ‖v‖₂``, and what was rounded before grows by ``‖A‖₂`` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipcert.network import Backward, Forward, Segment, backward, forward
from lipcert.network.operators import Operator
from lipcert.norms.structure import largest_sums, operator_norm
from lipcert.numbers import OUT64


@dataclass(frozen=True)
class Length:
    """Of a value that a sweep makes of a unit vector: at most so long, and off by so much."""

    size: float
    error: float

    def mapped(self, operator: Operator, terms: int) -> Length:
        """Past an operator or its transpose, which sums so many products."""
        rows, columns = largest_sums(operator)
        absolute = OUT64.up(math.sqrt(rows) * math.sqrt(columns), 3)
        norm = min(operator_norm(operator), absolute)
        made = OUT64.times(OUT64.gamma(terms), absolute, OUT64.add(self.size, self.error))
        return Length(OUT64.times(norm, self.size), OUT64.add(OUT64.times(norm, self.error), made))

    def gathered(self, other: Length) -> Length:
        """The sum of two, as it is rounded once."""
        size, error = OUT64.add(self.size, other.size), OUT64.add(self.error, other.error)
        made = OUT64.times(OUT64.gamma(1), OUT64.add(size, error))
        return Length(size, OUT64.add(error, made))


@dataclass(frozen=True)
class Sweeps:
    """Of ``A v`` and of ``Aᵀ v`` for one segment ``A`` and ``‖v‖₂ = 1``; what underflows is not in
    it."""

    forth: Length
    back: Length

    @classmethod
    def of(cls, segment: Segment) -> Sweeps:
        if not segment.exists:
            return cls(Length(0.0, 0.0), Length(0.0, 0.0))
        start = {segment.source: Length(1.0, 0.0)}
        forth = forward(segment.network, _Forth(), known=start, along=segment.path)
        back = backward(
            segment.network, segment.sink, Length(1.0, 0.0), _Back(), to=segment.source,
            along=segment.path,
        )  # fmt: skip
        assert back is not None
        return cls(forth[segment.sink], back)

    @property
    def gram(self) -> float:
        """How far a computed ``AᵀA v`` or ``AAᵀ v`` is off at most, weights of up to 1 included."""
        forth, back = self.forth, self.back
        went, came = OUT64.add(forth.size, forth.error), OUT64.add(back.size, back.error)
        lost = OUT64.add(OUT64.times(forth.error, back.size), OUT64.times(back.error, went))
        # The weights, and what is multiplied with them on either way.
        return OUT64.add(lost, OUT64.times(OUT64.gamma(32), went, came))


class _Forth(Forward[Length]):
    def sum(self, i: int, parts: list[Length]) -> Length:
        total = parts[0]
        for part in parts[1:]:
            total = total.gathered(part)
        return total

    def affine(self, i: int, operator: Operator, before: Length) -> Length:
        return before.mapped(operator, operator.terms)


class _Back(Backward[Length]):
    def affine(self, i: int, operator: Operator, value: Length) -> Length:
        return value.mapped(operator, operator.transposed_terms)

    def add(self, one: Length, other: Length) -> Length:
        return one.gathered(other)
