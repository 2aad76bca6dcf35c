"""The polynomials that are activations: GELU, SiLU and others as exporters write them out.

The constants of a pattern are those of the activation within 4 roundings of the file's type (hard
swish: 2), and it takes at most 10 roundings to compute (hard swish: 5). Together that is within
``Activation.rounding`` in the file's type, which is charged for it whatever is deployed:

    an argument of the S-curve that is off by u moves ``z S`` by at most u |z| / 2; so does a factor
    or a summand of the S-curve, or it moves it by u |z S|; erf and tanh err by 8 u, halved.
"""

from __future__ import annotations

import math

from lipcert.loading.polynomial import Function, Polynomial, X
from lipcert.loading.value import Unsupported
from lipcert.network.activations import (
    Activation,
    Gelu,
    GeluTanh,
    HardSwish,
    Mish,
    Silu,
    Softplus,
)

# An activation, the factor of its argument, the factor of its value; of hard swish fewer roundings.
Found = tuple[Activation, float, float]
_FEW = 5


def known(polynomial: Polynomial, unit: float) -> Found | None:
    """``outer · σ(inner · x)`` of the same value."""

    def close(one: float, other: float, roundings: int = 4) -> bool:
        return abs(one - other) <= roundings * unit * abs(other)

    def scaled(
        activation: Activation, inner: float, factor: float, roundings: int = 4
    ) -> Found | None:
        """``factor · x S(inner x)``, where ``activation`` is ``z S(z)``."""
        if not inner or not math.isfinite(1 / inner):
            return None
        inner = 1.0 if close(inner, 1.0, roundings) else inner
        return activation, inner, factor / inner

    gate, factor, rest = _gate(polynomial)
    if gate is None:
        return None
    line = gate.arguments[0].line
    match gate.name:
        case "sigmoid" if line and rest == 0:
            return scaled(Silu(), line, factor)
        case "erf" if line and close(abs(factor), abs(rest)):
            inner = math.copysign(line, factor * rest * line) * math.sqrt(2)
            return scaled(Gelu(), inner, 2 * rest)
        case "tanh" if close(abs(factor), abs(rest)):
            terms = dict(gate.arguments[0].terms)
            first, third = terms.pop(((None, 1),), 0.0), terms.pop(((None, 3),), 0.0)
            inner = first / math.sqrt(2 / math.pi)
            if terms or not first or not close(third / first / inner**2, 0.044715):
                return None
            return scaled(GeluTanh(), math.copysign(inner, factor * rest * inner), 2 * rest)
        case "tanh" if rest == 0:
            inside = gate.arguments[0].alone
            if inside is None or inside.name != "softplus":
                return None
            return scaled(Mish(), inside.arguments[0].line or 0.0, factor)
        case "clip" if rest == 0 and gate.constants[0] == 0:
            most = gate.constants[1]
            if not 0 < most < math.inf:
                return None
            terms = dict(gate.arguments[0].terms)
            slope, shift = terms.pop(((None, 1),), 0.0), terms.pop((), 0.0)
            if terms or not close(shift / most, 0.5, 2) or polynomial.roundings > _FEW:
                return None
            return scaled(HardSwish(), 6 * slope / most, factor * most, 2)
        case "where":
            return _thresholded(gate, unit) if factor == 1 and rest == 0 else None
        case _:
            return None


def _gate(polynomial: Polynomial) -> tuple[Function | None, float, float]:
    """``(S, f, r)`` of a polynomial ``f x S + r x``, or of a function alone."""
    alone = polynomial.alone
    if alone is not None:
        return (alone, 1.0, 0.0) if alone.name == "where" else (None, 0.0, 0.0)
    terms = dict(polynomial.terms)
    rest = terms.pop(((None, 1),), 0.0)
    if len(terms) == 1:
        [(monomial, factor)] = terms.items()
        functions = [function for function, power in monomial if function and power == 1]
        if len(monomial) == 2 and len(functions) == 1 and (None, 1) in monomial:
            return functions[0], factor, rest
    return None, 0.0, 0.0


def _thresholded(gate: Function, unit: float) -> Found | None:
    """Torch's softplus: ``x`` where ``βx`` passes a threshold, else ``log(1 + exp(βx)) / β``."""
    condition, above, below = gate.arguments
    passed = condition.alone
    if passed is None or passed.name != "greater" or above != X or len(below.terms) != 1:
        return None
    beta, threshold = passed.arguments[0].line, passed.arguments[1].value
    [(monomial, factor)] = below.terms
    inside = monomial[0][0] if len(monomial) == 1 and monomial[0][1] == 1 else None
    if beta is None or threshold is None or inside is None or inside.name != "softplus":
        return None
    if inside.arguments[0].line != beta or abs(factor * beta - 1) > 4 * unit or beta <= 0:
        return None
    least = math.ceil(-math.log(unit / 8))
    if threshold < least:
        raise Unsupported(
            f"softplus with a threshold of {threshold:g} jumps there by more than a rounding; "
            f"export it with a threshold of {least} or more"
        )
    return Softplus(), beta, 1 / beta
