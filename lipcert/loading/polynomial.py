"""Polynomials in one value ``x`` and in functions of polynomials in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# What is longer, deeper or of a higher power is no activation that is known here; nor is what takes
# more roundings to compute, each of which ``Activation.rounding`` has to cover.
_TERMS, _NESTED, _POWER, _ROUNDINGS = 8, 3, 3, 10
# Factors beyond this could overflow, or be lost, before others undo them.
_SMALLEST, LARGEST = 2.0**-20, 2.0**7


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
    # How many roundings it takes a run to compute it.
    roundings: int = field(default=0, compare=False)

    @classmethod
    def of(cls, terms: Mapping[Monomial, float], roundings: int = 0) -> Polynomial:
        kept = [(monomial, factor) for monomial, factor in terms.items() if factor]
        inside = [f.arguments for monomial, _ in kept for f, _ in monomial if f]
        nested = max((1 + x.nested for arguments in inside for x in arguments), default=0)
        moderate = all(_SMALLEST <= abs(factor) <= LARGEST for _, factor in kept)
        if len(kept) > _TERMS or nested > _NESTED or not moderate or roundings > _ROUNDINGS:
            raise NoPolynomial
        return cls(tuple(sorted(kept, key=lambda term: repr(term[0]))), nested, roundings)

    @classmethod
    def constant(cls, value: float) -> Polynomial:
        return cls.of({(): value})

    @classmethod
    def single(cls, function: Function | None) -> Polynomial:
        arguments = () if function is None else function.arguments
        roundings = 1 + sum(x.roundings for x in arguments) if function else 0
        return cls.of({((function, 1),): 1.0}, roundings)

    def __add__(self, other: Polynomial) -> Polynomial:
        return Polynomial.of(_sum((*self.terms, *other.terms)), self._after(other))

    def __mul__(self, other: Polynomial) -> Polynomial:
        return Polynomial.of(self._times(other), self._after(other))

    def _times(self, other: Polynomial) -> dict[Monomial, float]:
        total: list[tuple[Monomial, float]] = []
        for one, factor in self.terms:
            for two, share in other.terms:
                powers = dict(one)
                for function, power in two:
                    powers[function] = powers.get(function, 0) + power
                if max(powers.values(), default=0) > _POWER:
                    raise NoPolynomial
                monomial = tuple(sorted(powers.items(), key=lambda item: repr(item[0])))
                total.append((monomial, factor * share))
        return _sum(total)

    def _after(self, other: Polynomial) -> int:
        """The roundings of both, and one of what joins them."""
        return self.roundings + other.roundings + 1

    @property
    def value(self) -> float | None:
        """Of a constant."""
        if not self.terms:
            return 0.0
        [(monomial, factor), *rest] = self.terms
        return factor if not monomial and not rest else None

    def at(self, x: Polynomial) -> Polynomial:
        """The polynomial of another one."""
        if x == X:
            return self
        total: list[tuple[Monomial, float]] = []
        for monomial, factor in self.terms:
            product = Polynomial.constant(factor)
            for function, power in monomial:
                part = x
                if function is not None:
                    inside = tuple(argument.at(x) for argument in function.arguments)
                    part = Polynomial.single(Function(function.name, inside, function.constants))
                for _ in range(power):
                    product = Polynomial.of(product._times(part))
            total += product.terms
        return Polynomial.of(_sum(total), self.roundings + x.roundings)

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


def _sum(terms: Iterable[tuple[Monomial, float]]) -> dict[Monomial, float]:
    """Of like terms; not of some that cancel each other: what they round does not cancel."""
    total: dict[Monomial, float] = {}
    for monomial, factor in terms:
        before = total.get(monomial, 0.0)
        if before * factor < 0:
            raise NoPolynomial
        total[monomial] = before + factor
    return total


X = Polynomial.single(None)
