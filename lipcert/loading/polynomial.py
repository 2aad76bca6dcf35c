"""Polynomials in one value ``x`` and in functions of polynomials in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# What is longer, deeper or of a higher power is no activation that is known here.
_TERMS, _NESTED, _POWER = 8, 3, 3


class NoPolynomial(Exception):
    """Nothing that matters."""


@dataclass(frozen=True)
class Function:
    """A named function of polynomials, with constants of its own."""

    name: str
    arguments: tuple[Polynomial, ...]
    constants: tuple[float, ...] = ()


# The powers of x and of functions of it, in one order.
Monomial = tuple[tuple[Function | None, int], ...]


@dataclass(frozen=True)
class Polynomial:
    """``Σ factor · monomial``; None stands for ``x``."""

    terms: tuple[tuple[Monomial, float], ...]
    nested: int = 0

    @classmethod
    def of(cls, terms: Mapping[Monomial, float]) -> Polynomial:
        kept = [(monomial, factor) for monomial, factor in terms.items() if factor]
        inside = [f.arguments for monomial, _ in kept for f, _ in monomial if f]
        nested = max((1 + x.nested for arguments in inside for x in arguments), default=0)
        finite = all(math.isfinite(factor) for _, factor in kept)
        if len(kept) > _TERMS or nested > _NESTED or not finite:
            raise NoPolynomial
        return cls(tuple(sorted(kept, key=lambda term: repr(term[0]))), nested)

    @classmethod
    def constant(cls, value: float) -> Polynomial:
        return cls.of({(): value})

    @classmethod
    def single(cls, function: Function | None) -> Polynomial:
        return cls.of({((function, 1),): 1.0})

    def __add__(self, other: Polynomial) -> Polynomial:
        total = dict(self.terms)
        for monomial, factor in other.terms:
            total[monomial] = total.get(monomial, 0.0) + factor
        return Polynomial.of(total)

    def __mul__(self, other: Polynomial) -> Polynomial:
        total: dict[Monomial, float] = {}
        for one, factor in self.terms:
            for two, share in other.terms:
                powers = dict(one)
                for function, power in two:
                    powers[function] = powers.get(function, 0) + power
                if max(powers.values(), default=0) > _POWER:
                    raise NoPolynomial
                monomial = tuple(sorted(powers.items(), key=lambda item: repr(item[0])))
                total[monomial] = total.get(monomial, 0.0) + factor * share
        return Polynomial.of(total)

    @property
    def value(self) -> float | None:
        """Of a constant."""
        if not self.terms:
            return 0.0
        [(monomial, factor), *rest] = self.terms
        return factor if not monomial and not rest else None

    def at(self, x: Polynomial) -> Polynomial:
        """The polynomial of another one."""
        total = Polynomial.of({})
        for monomial, factor in self.terms:
            product = Polynomial.constant(factor)
            for function, power in monomial:
                part = x
                if function is not None:
                    inside = tuple(argument.at(x) for argument in function.arguments)
                    part = Polynomial.single(Function(function.name, inside, function.constants))
                for _ in range(power):
                    product = product * part
            total = total + product
        return total

    @property
    def alone(self) -> Function | None:
        """The function that the polynomial is."""
        if len(self.terms) == 1:
            [(monomial, factor)] = self.terms
            if factor == 1 and len(monomial) == 1 and monomial[0][1] == 1:
                return monomial[0][0]
        return None

    @property
    def line(self) -> float | None:
        """``k``, where the polynomial is ``k x``."""
        if len(self.terms) == 1 and self.terms[0][0] == ((None, 1),):
            return self.terms[0][1]
        return None


X = Polynomial.single(None)
