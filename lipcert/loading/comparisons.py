"""Choices between two values by which of them is larger: a maximum or a minimum.

``Where(a > b, a, b)`` and ``a · [a > b] + b · [a ≤ b]`` jump nowhere, and nothing is rounded: what
is multiplied by 0 and added changes no number. Truth values go along as ``Compared`` until a choice
is made by them; any other use is refused where it stands.

A difference ``d = a − b`` says as much: rounded to nearest it has the sign of the exact one, with
subnormal numbers too. So ``Where(d > 0, a, b)`` is a maximum, and ``d · [a > b]`` is ``relu(d)``,
in floating point as well. Where subnormal numbers are flushed a choice may go the other way between
two normal numbers that are nearer than the smallest of them: what is charged at each for underflow,
which has not happened to it then, is as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from lipcert.loading.assembler import Assembler, Variable, number
from lipcert.loading.formulas import Formula
from lipcert.loading.polynomial import Polynomial, X
from lipcert.loading.value import Condition, Value
from lipcert.network.activations import Clip
from lipcert.network.nodes import Sum
from lipcert.network.operators import Diagonal

_LARGER = {"Greater": True, "GreaterOrEqual": True, "Less": False, "LessOrEqual": False}
_COMPARED = {kind.lower(): larger for kind, larger in _LARGER.items()}


@dataclass(frozen=True)
class Compared(Condition):
    """Whether ``larger > smaller``, or ``≥`` where it is not ``strict``; maybe known by the sign of
    their ``difference``, which is ``larger − smaller``, or the other way round where ``turned``."""

    larger: Variable
    smaller: Variable
    strict: bool
    difference: Variable | None = field(default=None, compare=False)
    turned: bool = field(default=False, compare=False)

    @property
    def opposite(self) -> Compared:
        return Compared(
            True, self.smaller, self.larger, not self.strict, self.difference, not self.turned
        )


@dataclass(frozen=True)
class GatedValue(Condition):
    """A value where something holds, elsewhere 0."""

    value: Variable
    where: Compared


def chosen(
    node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
) -> Variable | Condition | None:
    """What a comparison of two values, or a choice by one, is; None for any other node."""
    if node.domain not in ("", "ai.onnx"):
        return None
    kind = node.op_type
    inputs = [_by_difference(value, assembler) for value in inputs]
    match inputs:
        case Variable() as a, Variable() as b if kind in _LARGER and a.shape == b.shape:
            pair = (a, b) if _LARGER[kind] else (b, a)
            return Compared(True, *pair, strict=not kind.endswith("Equal"))
        case [Compared() as condition] if kind == "Not":
            return condition.opposite
        case [Compared() as condition, *_] if kind in ("Cast", "CastLike", "Identity"):
            return condition
        case one, Compared() as condition if kind == "Sub" and _is_number(one, 1):
            return condition.opposite
        case (Variable() as value, Compared() as condition) if kind == "Mul":
            return _gated(value, condition, assembler)
        case (Compared() as condition, Variable() as value) if kind == "Mul":
            return _gated(value, condition, assembler)
        case (Compared() as condition, Variable() as value, other) if kind == "Where":
            if _is_nothing(other, value):
                return _gated(value, condition, assembler)
            if isinstance(other, Variable):
                return _either(condition, value, other, assembler)
        case (Compared() as condition, other, Variable() as value) if kind == "Where":
            if _is_nothing(other, value):
                return _gated(value, condition.opposite, assembler)
        case (GatedValue() as first, GatedValue() as second) if kind in ("Add", "Sum"):
            if second.where == first.where.opposite:
                return _either(first.where, first.value, second.value, assembler)
    return None


def _either(
    condition: Compared, first: Variable, second: Variable, assembler: Assembler
) -> Variable | None:
    """``first`` where the condition holds, else ``second``, where these are what was compared."""
    pair = condition.larger, condition.smaller
    if pair not in ((first, second), (second, first)):
        return None
    both = assembler.max_and_min(*pair)
    return both[0] if pair == (first, second) else both[1]


def _gated(value: Variable, where: Compared, assembler: Assembler) -> Variable | GatedValue:
    """A value where something holds, elsewhere 0: a kink where the value is what was compared."""
    found = _operands(value, assembler)
    if found == (where.larger, where.smaller):
        return assembler.activation(Clip(number(0.0), None), value)
    if found == (where.smaller, where.larger):
        return assembler.activation(Clip(None, number(0.0)), value)
    return GatedValue(True, value, where)


def _by_difference(value: Value | None, assembler: Assembler) -> Value | None:
    """A comparison of a difference with 0 as one of the values that it is the difference of."""
    alone = value.polynomial.alone if isinstance(value, Formula) else None
    if alone is None or alone.name not in _COMPARED:
        return value
    assert isinstance(value, Formula)
    first, second = (part for part in alone.arguments)
    found = _operands(value.base, assembler)
    if found is None or {first, second} != {X, Polynomial.constant(0.0)}:
        return value
    above = (first == X) == _COMPARED[alone.name]
    a, b = found if above else found[::-1]
    strict = not alone.name.endswith("equal")
    return Compared(True, a, b, strict, value.base, turned=not above)


def _operands(value: Variable, assembler: Assembler) -> tuple[Variable, Variable] | None:
    """``(a, b)`` of a value that is computed as ``a − b``, and as nothing else."""
    nodes = assembler.builder.nodes
    node = nodes[value.node]
    if not isinstance(node.kind, Sum) or len(node.inputs) != 2:
        return None
    for a, other in (node.inputs, node.inputs[::-1]):
        kind = nodes[other].kind
        if not isinstance(kind, Diagonal) or kind.bias is not None or kind.scale is None:
            continue
        if bool((kind.scale == -1).all()):
            b = nodes[other].inputs[0]
            return Variable(a, nodes[a].shape), Variable(b, nodes[b].shape)
    return None


def _is_nothing(value: Value | None, beside: Variable) -> bool:
    """Whether all of it is 0, and no more of it than there is beside it."""
    if not isinstance(value, np.ndarray) or bool((value != 0).any()):
        return False
    return np.broadcast_shapes(value.shape, beside.shape) == beside.shape


def _is_number(value: Value | None, wanted: float) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1 and bool((value == wanted).all())
