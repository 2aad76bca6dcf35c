"""Activations that an exporter wrote as several operators, put together again.

GELU arrives as ``x · (1 + Erf(x/√2)) · ½``, SiLU as ``x · Sigmoid(x)``, in any order of the factors
and with constants as float32 numbers. What no operator of a network can be, such as a product of
two values, is kept as a polynomial in one value ``x`` and in functions of polynomials in it; when
the polynomial is that of a known activation (``patterns``), it becomes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx
from torch import Tensor

from lipcert.loading.assembler import Assembler, Variable, number
from lipcert.loading.patterns import known
from lipcert.loading.polynomial import LARGEST, Function, NoPolynomial, Polynomial, X
from lipcert.loading.value import Unknown, Value
from lipcert.network.activations import (
    Clip,
    Erf,
    PReLU,
    Sigmoid,
    Softplus,
    Tanh,
)
from lipcert.network.nodes import Kind, Sum
from lipcert.network.operators import Diagonal
from lipcert.rounding import Arithmetic, coarsest

# How many nodes of a network lie between a value and what it is a function of, at most.
_STEPS = 12
# Factors up to this are within what an activation's own rounding leaves of a format's range.
_MODERATE = 8.0

_NAMES: dict[type, str] = {
    Sigmoid: "sigmoid", Tanh: "tanh", Erf: "erf", Softplus: "softplus",
}  # fmt: skip


@dataclass(frozen=True)
class Formula(Unknown):
    """The result of a refused node, known to be a polynomial in ``base``; ``rows`` are the nodes
    that it comes from, by their place in the reader's list, ``formats`` those that they are in.

    ``node`` and ``operands``: what it is made of, for where no activation comes of it.
    """

    base: Variable
    polynomial: Polynomial
    rows: frozenset[int] = frozenset()
    formats: frozenset[Arithmetic] = frozenset()
    node: onnx.NodeProto | None = None
    operands: tuple[Value | None, ...] = ()

    @property
    def compares(self) -> bool:
        """Whether it is the result of a comparison."""
        alone = self.polynomial.alone
        return alone is not None and alone.name in TRUTHS


def combined(
    node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
) -> Variable | Formula | None:
    """What a node makes of its inputs: a known activation, a formula, or None.

    The activation is charged for its rounding in the coarsest type of its parts, whatever is
    deployed: that covers its constants, which are rounded there, and what it leaves out.
    """
    arity, rule = _RULES.get(node.op_type, (-1, None))
    if node.op_type == "Cast":
        return _cast(node, inputs)
    formulas = [value for value in inputs if isinstance(value, Formula)]
    variables = [value for value in inputs if isinstance(value, Variable)]
    if rule is None or len(inputs) != arity or node.domain not in ("", "ai.onnx"):
        return None
    if not formulas and not variables:
        return None
    try:
        base = _common([*variables, *(formula.base for formula in formulas)], assembler)
        passed: dict[int, Polynomial] = {base.node: X}
        operands = [_operand(value, base, assembler, passed) for value in inputs]
        polynomial = rule(operands)
        rows = frozenset().union(*(formula.rows for formula in formulas))
        formats = frozenset({assembler.own, *(assembler.formats[i] for i in passed)})
        formats = formats.union(*(formula.formats for formula in formulas))
        own = coarsest(*formats)
        assert own is not None
        found = known(polynomial, own.unit)
    except (NoPolynomial, RecursionError):
        return None
    if found is None:
        return Formula(True, base, polynomial, rows, formats)
    activation, inner, outer = found
    x = base if inner == 1 else assembler.diagonal(base, number(inner), None)
    if max(abs(inner), abs(outer)) > _MODERATE:
        x = assembler.within(x, own.largest / LARGEST**2)
    y = assembler.activation(activation, x, format=own)
    return y if outer == 1 else assembler.diagonal(y, number(outer), None)


def _cast(node: onnx.NodeProto, inputs: Sequence[Value | None]) -> Formula | None:
    """Of a truth value, which is 0 or 1 in every type."""
    (value,) = inputs
    alone = value.polynomial.alone if isinstance(value, Formula) else None
    return value if isinstance(value, Formula) and alone and alone.name in TRUTHS else None


def _operand(
    value: Value | None, base: Variable, assembler: Assembler, passed: dict[int, Polynomial]
) -> Polynomial:
    """``passed``: the nodes of the network that it leads through, and what is known of them."""
    if isinstance(value, Formula):
        return value.polynomial.at(_operand(value.base, base, assembler, passed))
    if isinstance(value, Variable):
        if value.shape != base.shape:
            raise NoPolynomial
        return _expressed(value.node, base, assembler, passed, _STEPS)
    if not isinstance(value, np.ndarray) or not value.size or value.ndim > len(base.shape):
        raise NoPolynomial
    # One number for all, written once or for each.
    first = value.reshape(-1)[0]
    if np.broadcast_shapes(value.shape, base.shape) != base.shape or not (value == first).all():
        raise NoPolynomial
    return Polynomial.constant(float(first))


def _expressed(
    node: int, base: Variable, assembler: Assembler, found: dict[int, Polynomial], steps: int
) -> Polynomial:
    """A node of the network as a polynomial in ``base``, through scalars and functions."""
    if node in found:
        return found[node]
    if steps == 0 or node < base.node:
        raise NoPolynomial
    kind, sources = assembler.builder.nodes[node].kind, assembler.builder.nodes[node].inputs
    if not _transparent(kind):
        raise NoPolynomial
    parts = [_expressed(source, base, assembler, found, steps - 1) for source in sources]
    found[node] = _applied(kind, parts)
    return found[node]


def _applied(kind: Kind, parts: list[Polynomial]) -> Polynomial:
    if isinstance(kind, Sum):
        return reduce(Polynomial.__add__, parts)
    [x] = parts
    if isinstance(kind, Diagonal):
        if kind.scale is not None:
            x = x * Polynomial.constant(float(kind.scale))
        return x if kind.bias is None else x + Polynomial.constant(float(kind.bias))
    if isinstance(kind, Clip):
        low, high = _number(kind.lower, -math.inf), _number(kind.upper, math.inf)
        before = x.alone
        if before is not None and before.name == "clip" and low <= high:
            # Clipped on either side by an operator of its own.
            x, limits = before.arguments[0], before.constants
            low, high = (min(max(limit, low), high) for limit in limits)
        return Polynomial.single(Function("clip", (x,), (low, high)))
    if isinstance(kind, PReLU):
        return Polynomial.single(Function("prelu", (x,), (float(kind.slope),)))
    return Polynomial.single(Function(_NAMES[type(kind)], (x,)))


def _transparent(kind: Kind) -> bool:
    """Whether ``_expressed`` looks through it: the same function of every number."""
    if isinstance(kind, Diagonal):
        return not kind.is_identity and all(
            part is None or part.numel() == 1 for part in (kind.scale, kind.bias)
        )
    if isinstance(kind, Clip):
        return all(part is None or part.numel() == 1 for part in (kind.lower, kind.upper))
    if isinstance(kind, PReLU):
        return kind.slope.numel() == 1
    return isinstance(kind, Sum) or type(kind) in _NAMES


def _number(tensor: Tensor | None, missing: float) -> float:
    return missing if tensor is None else float(tensor)


def _common(variables: Sequence[Variable], assembler: Assembler) -> Variable:
    """The last value that all of these are functions of."""
    reached = [_ancestors(variable.node, assembler) for variable in variables]
    shared = set.intersection(*reached)
    if not shared:
        raise NoPolynomial
    node = max(shared)
    return Variable(node, assembler.builder.shape(node))


def _ancestors(node: int, assembler: Assembler) -> set[int]:
    found, front = {node}, {node}
    for _ in range(_STEPS):
        nodes = [assembler.builder.nodes[i] for i in front]
        front = {i for n in nodes if _transparent(n.kind) for i in n.inputs} - found
        found |= front
    return found


def _power(operands: list[Polynomial]) -> Polynomial:
    x, exponent = operands
    if exponent.value not in (2, 3):
        raise NoPolynomial
    return x * x if exponent.value == 2 else x * x * x


def _quotient(operands: list[Polynomial]) -> Polynomial:
    x, divisor = operands
    if not divisor.value:
        raise NoPolynomial
    return x * Polynomial.constant(1 / divisor.value)


def _function(name: str) -> Callable[[list[Polynomial]], Polynomial]:
    return lambda operands: Polynomial.single(Function(name, tuple(operands)))


TRUTHS = (
    "and", "equal", "greater", "greaterorequal", "less", "lessorequal", "not", "or",
)  # fmt: skip
_MINUS = Polynomial.constant(-1.0)

# By operator: its number of inputs, and what it makes of them.
_RULES: dict[str, tuple[int, Callable[[list[Polynomial]], Polynomial]]] = {
    "Add": (2, lambda operands: operands[0] + operands[1]),
    "And": (2, _function("and")),
    "Div": (2, _quotient),
    "Equal": (2, _function("equal")),
    "Erf": (1, _function("erf")),
    "Greater": (2, _function("greater")),
    "GreaterOrEqual": (2, _function("greaterorequal")),
    "Less": (2, _function("less")),
    "LessOrEqual": (2, _function("lessorequal")),
    "Mul": (2, lambda operands: operands[0] * operands[1]),
    "Neg": (1, lambda operands: operands[0] * _MINUS),
    "Not": (1, _function("not")),
    "Or": (2, _function("or")),
    "Pow": (2, _power),
    "Sign": (1, _function("sign")),
    "Sigmoid": (1, _function("sigmoid")),
    "Sub": (2, lambda operands: operands[0] + operands[1] * _MINUS),
    "Tanh": (1, _function("tanh")),
    "Where": (3, _function("where")),
}
