"""Upper bounds that carry their own rounding.

A bound is a formula in real numbers, computed in floating point. ``Outward`` computes it so that no
result is below the exact one: every method takes upper bounds that are 0 or more and returns an
upper bound of what they make, so that formulas are written as they stand in a paper. NaN stays NaN,
an overflow is infinite, and 0 stays 0 but where a method says otherwise.

    OUT64, OUT32    for tensors of float64 and float32
    EXACT           charges nothing: for guesses, for the search of an optimiser and for training,
                    where every method can be differentiated

**The one factor.** With ``u`` the unit roundoff a computed number is ``(1 + δ)`` times the exact
one, ``|δ| ≤ u``, for every sum, product, quotient and root that is no subnormal number (Higham,
*Accuracy and Stability of Numerical Algorithms*, §2.2). So a number that is made of others, all 0
or more, with at most ``n`` roundings on the way of each, is at least ``(1 − u)ⁿ`` times the exact
one, and times ``grown(n)`` it is no less. What is lost where a result is subnormal, or flushed to
0, is at most ``tiny``, the smallest normal number; the methods add it where it can occur.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self, overload

import torch
from torch import Tensor

from lipcert.rounding import DOUBLE, Arithmetic, arithmetic_of, rounded_up

# Below this the root of EXACT has no slope, as its slope has no end at 0.
_NO_SLOPE = 1e-12


class Linear(Protocol):
    """What is asked of an affine operator ``v ↦ A v + b``."""

    @property
    def terms(self) -> int:
        """The most products that are summed for one output; 0: values are only moved."""

    def forward(self, v: Tensor, /) -> Tensor: ...

    def magnitude(self, v: Tensor, /) -> Tensor: ...

    def squared(self, v: Tensor, /) -> Tensor: ...

    def bias_magnitude(self) -> Tensor | float: ...


@dataclass(frozen=True)
class Outward:
    """Arithmetic of upper bounds in a format with this ``unit`` roundoff and smallest normal number
    ``tiny``; 0 for both charges nothing.

    Numbers are tensors of that format, or Python's own, which are float64 and taken upwards into a
    narrower format.
    """

    unit: float
    tiny: float

    @classmethod
    def of(cls, arithmetic: Arithmetic) -> Self:
        return cls(arithmetic.unit, arithmetic.tiny)

    @overload
    def gamma(self, terms: float) -> float: ...

    @overload
    def gamma(self, terms: Tensor) -> Tensor: ...

    def gamma(self, terms: float | Tensor) -> float | Tensor:
        """``γ = k u / (1 − 4 k u)``, ``k = terms``, at least ``γ_k (1 + 3 k u)``: of what ``k``
        roundings can change, with room for those of the sum that it is multiplied with; infinite
        where ``4 k u ≥ 1``."""
        product = terms * self.unit
        if isinstance(product, Tensor):
            return torch.where(4 * product < 1, product / (1 - 4 * product), math.inf)
        return product / (1 - 4 * product) if 4 * product < 1 else math.inf

    @overload
    def grown(self, roundings: float) -> float: ...

    @overload
    def grown(self, roundings: Tensor) -> Tensor: ...

    def grown(self, roundings: float | Tensor) -> float | Tensor:
        """What makes up for ``n`` roundings and for that of the product with it.

        ``grown(n) = 1 + k u / (1 − 4 k u)`` with ``k = n + 3``, infinite where ``4 k u ≥ 1``.
        Claim: rounded to the format it is at least ``(1 − u)^−(n+1)``. Proof: that is at most
        ``1 + (n+1) u / (1 − (n+1) u)``, which is smaller by ``2u`` and more, and the rounding of
        ``grown`` itself is ``u`` times it: at most ``2u`` while it is below 2, and beyond that
        ``k u > 1/5``, where the two differ by more.
        """
        return 1 + self.gamma(roundings + 3)

    @overload
    def up(self, value: float, roundings: float) -> float: ...

    @overload
    def up(self, value: Tensor, roundings: float | Tensor) -> Tensor: ...

    def up(self, value: Tensor | float, roundings: float | Tensor) -> Tensor | float:
        """A number that is 0 or more and was made with so many roundings on the way of each of its
        parts, none of which lost anything to underflow."""
        return value * self.grown(roundings) if self.unit else value

    def down(self, value: Tensor, roundings: float | Tensor) -> Tensor:
        """A lower bound of what was made like that: it is at most ``(1 + u)ⁿ`` times as large, and
        ``1 − γ`` of ``n + 3`` is below ``(1 + u)^−(n+1)``. 0 where the result is subnormal."""
        if not self.unit:
            return value
        share = 2 - self.grown(roundings)
        found = value * (share.clamp(min=0) if isinstance(share, Tensor) else max(share, 0.0))
        return found.masked_fill(found < self.tiny, 0.0)

    def error(self, size: Tensor, roundings: float | Tensor) -> Tensor:
        """What so many roundings, of numbers whose magnitudes add up to ``size``, can change: ``γ``
        times that, and ``tiny``, which a product may lose."""
        return self.gamma(roundings) * size + self.tiny

    @overload
    def times(self, first: float, /, *others: float) -> float: ...

    @overload
    def times(self, first: Tensor, /, *others: Tensor | float) -> Tensor: ...

    @overload
    def times(self, first: Tensor | float, /, *others: Tensor | float) -> Tensor | float: ...

    def times(self, first: Tensor | float, /, *others: Tensor | float) -> Tensor | float:
        """The product, 0 only where a factor is 0.

        One rounding each; where a product is below the normal numbers, so is the exact one, and
        ``tiny`` is above both.
        """
        product: Tensor | float = first
        for factor in others:
            product = self._times(product, factor)
        return product

    def _times(self, one: Tensor | float, other: Tensor | float) -> Tensor | float:
        if not self.unit:
            return one * other
        if isinstance(one, Tensor):
            other = self._like(other, one)
            found: Tensor = one * other * self.grown(1)
            # Compared before they are broadcast, which is cheap where one is a number a sample.
            least = torch.minimum(one, other) if isinstance(other, Tensor) else one
            if isinstance(other, float) and not other > 0:
                return found
            return found.masked_fill((found < self.tiny) & (least > 0), self.tiny)
        assert not isinstance(other, Tensor)
        product = one * other * self.grown(1)
        return self.tiny if product < self.tiny and one > 0 and other > 0 else product

    @overload
    def add(self, first: float, /, *others: float) -> float: ...

    @overload
    def add(self, first: Tensor, /, *others: Tensor | float) -> Tensor: ...

    @overload
    def add(self, first: Tensor | float, /, *others: Tensor | float) -> Tensor | float: ...

    def add(self, first: Tensor | float, /, *others: Tensor | float) -> Tensor | float:
        """The sum of ``n`` numbers: ``n − 1`` roundings, in any order. Sums of numbers that are 0
        or more lose nothing to underflow, but where a subnormal one was flushed before."""
        total: Tensor | float = first
        for other in others:
            total = total + (self._like(other, first) if isinstance(first, Tensor) else other)
        return total * self.grown(len(others)) if self.unit else total

    def root(self, value: Tensor) -> Tensor:
        """``√v``: one rounding, and no root is subnormal. EXACT has slope 0 below ``1e-12``."""
        if self.unit:
            return value.sqrt() * self.grown(1)
        return (value.clamp(min=_NO_SLOPE) if value.requires_grad else value).sqrt()

    def quotient(self, above: Tensor, below: Tensor | float) -> Tensor:
        """An upper bound divided by a positive lower bound; like a product."""
        if not self.unit:
            return above / below
        found = above / below * self.grown(1)
        return found.masked_fill((found < self.tiny) & (above > 0), self.tiny)

    def sum(self, values: Tensor) -> Tensor:
        """Of all values of each sample, ``(B, …)`` to ``(B,)``: ``n − 1`` roundings."""
        flat = values.flatten(1)
        return flat.sum(1) * self.grown(flat.shape[1])

    def dot(self, one: Tensor, other: Tensor) -> Tensor:
        """``Σ a b`` of each sample, ``(B,)``: ``n`` roundings and that of the next sum, and
        ``tiny`` that each product may lose, twice; so more than 0."""
        one, other = one.flatten(1), other.flatten(1)
        found: Tensor = torch.linalg.vecdot(one, other)
        size = one.shape[1]
        return found * self.grown(size + 1) + 2 * size * self.tiny

    def length(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``‖v‖₂`` of each sample, ``(B, …)`` of any sign to ``(B,)``, computed in ``dtype``, that
        of the values where None.

        A square takes one rounding, their sum ``n − 1``, and the root halves these and takes one:
        ``n/2 + 1``, with the last sum ``n/2 + 2``. Each square may lose ``tiny``, all together
        ``n tiny``, and ``√(s + n tiny) ≤ √s + √(n tiny)``; so more than 0, unless there is no
        value.
        """
        flat = values.flatten(1)
        size = flat.shape[1]
        found: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
        if not self.unit or not size:
            return found
        own = outward_of(found.dtype)
        return found * own.grown(size / 2 + 2) + math.sqrt(2 * size * own.tiny)

    def magnitude(self, operator: Linear, values: Tensor) -> Tensor:
        """``|A| v`` for ``v ≥ 0``: a product and the sum take at most ``terms`` roundings, one more
        for the next sum, and each product may lose ``tiny``, twice. Values that are only moved stay
        as they are."""
        found = operator.magnitude(values)
        if not self.unit or not operator.terms:
            return found
        return found * self.grown(operator.terms + 1) + 2 * operator.terms * self.tiny

    def squared(self, operator: Linear, values: Tensor) -> Tensor:
        """``(A∘A) v`` for ``v ≥ 0``: one rounding more than ``magnitude`` for the squares, which
        may lose ``tiny`` each themselves, times what they meet."""
        found = operator.squared(values)
        if not self.unit or not operator.terms:
            return found
        most = values.flatten(1).amax(1).reshape(-1, *(1,) * (found.dim() - 1))
        return found * self.grown(operator.terms + 2) + 2 * operator.terms * self.tiny * (1 + most)

    def apply(
        self, operator: Linear, values: Tensor, errors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``A v + b`` for ``v`` of any sign, and how far it is from that of the exact values, which
        are within ``errors``.

        With ``n = terms + 1`` roundings of each product, ``|fl(A v + b) − (A v + b)| ≤ γ_n
        (|A||v| + |b|)`` in any order (Higham, §3.1), and errors that are there go on by ``|A|``:
        together ``γ (|A| (|v| + e/γ) + |b|)``, written so that no ``γ |v|`` is too small a number.
        ``γ`` is taken for three roundings more, for those beside ``|A|``'s own; each product of the
        value may lose ``tiny``.
        """
        found, bias = operator.forward(values), operator.bias_magnitude()
        if not self.unit or not (operator.terms or isinstance(bias, Tensor)):
            if errors is None:
                return found, torch.zeros_like(found)
            return found, operator.magnitude(errors)
        slack, size = self.gamma(operator.terms + 4), values.abs()
        if errors is not None:
            size = self.add(size, errors * (self.grown(2) / slack))
        error = (self.magnitude(operator, size) + bias) * (slack * self.grown(3))
        return found, error + 4 * (operator.terms + 1) * self.tiny

    def total(self, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The sum of values of any sign with their errors, and its error: ``n − 1`` roundings of
        at most the sum of magnitudes (Higham, §4.2)."""
        values = torch.stack([value for value, _ in parts])
        errors = torch.stack([error for _, error in parts])
        if not self.unit:
            return values.sum(0), errors.sum(0)
        made = self.gamma(len(parts) + 1) * values.abs().sum(0)
        return values.sum(0), self.up(errors.sum(0) + made, len(parts) + 2)

    def rounding(self, kind: tuple[float, float, float], value: Tensor, inputs: Tensor) -> Tensor:
        """``u (r |σ(z)| + a + s |z|)``, what an activation's own rounding ``(r, a, s)`` is at most
        (``Activation.rounding``); six roundings."""
        relative, absolute, scaled = kind
        if not self.unit or not any(kind):
            return torch.zeros_like(value)
        made: Tensor = relative * value.abs() + absolute
        if scaled:
            made = made + scaled * inputs.abs()
        return self.up(self.unit * made, 6) + self.tiny

    def below(self, value: Tensor, *less: Tensor) -> Tensor:
        """A lower bound of ``value − Σ less``, ``value`` of any sign and ``less`` upper bounds.

        With ``d`` the computed difference the exact one is at least ``d − 2u|d|``, and ``4u|d|``
        pays for this and for its own difference; ``tiny`` where ``u|d|`` is too small a number.
        """
        charge = self.add(*less)
        found = value - charge
        return found - (4 * self.unit * found.abs() + self.tiny) if self.unit else found

    def _like(self, number: Tensor | float, like: Tensor) -> Tensor | float:
        """A Python number as it is in the format, rounded up."""
        if isinstance(number, Tensor) or like.dtype == torch.float64:
            return number
        wide = torch.tensor(number, dtype=torch.float64)
        return float(rounded_up(wide, like.dtype))


OUT64 = Outward(2.0**-53, 2.0**-1022)
OUT32 = Outward(2.0**-24, 2.0**-126)
EXACT = Outward(0.0, 0.0)


def for_samples(dtype: torch.dtype) -> Outward:
    """For what is one number a sample, a radius or a norm: in float64 where it is proven, whatever
    the type of the rest; in float32 only of a rough copy, which charges nothing."""
    return OUT64 if dtype == torch.float64 else EXACT


def outward_of(dtype: torch.dtype) -> Outward:
    """For tensors of this type, ``torch.float32`` or ``torch.float64``."""
    return OUT64 if arithmetic_of(dtype) == DOUBLE else OUT32
