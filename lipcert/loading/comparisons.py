"""Choices between two values by which of them is larger: a maximum or a minimum.

``Where(a > b, a, b)`` and ``a · [a > b] + b · [a ≤ b]`` jump nowhere, and nothing is rounded: what
is multiplied by 0 and added changes no number. Truth values go along as ``Compared`` until a choice
is made by them; any other use is refused where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from lipcert.loading.assembler import Assembler, Variable
from lipcert.loading.value import Condition, Value

_LARGER = {"Greater": True, "GreaterOrEqual": True, "Less": False, "LessOrEqual": False}


@dataclass(frozen=True)
class Compared(Condition):
    """Whether ``larger > smaller``, or ``≥`` where it is not ``strict``."""

    larger: Variable
    smaller: Variable
    strict: bool

    @property
    def opposite(self) -> Compared:
        return Compared(True, self.smaller, self.larger, not self.strict)


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
    match inputs:
        case Variable() as a, Variable() as b if kind in _LARGER and a.shape == b.shape:
            pair = (a, b) if _LARGER[kind] else (b, a)
            return Compared(True, *pair, strict=not kind.endswith("Equal"))
        case [Compared() as condition] if kind == "Not":
            return condition.opposite
        case [Compared() as condition, *_] if kind in ("Cast", "CastLike", "Identity"):
            return condition
        case one, Compared() as condition if kind == "Sub" and _is_one(one):
            return condition.opposite
        case (Variable() as value, Compared() as condition) if kind == "Mul":
            return GatedValue(True, value, condition)
        case (Compared() as condition, Variable() as value) if kind == "Mul":
            return GatedValue(True, value, condition)
        case (GatedValue() as first, GatedValue() as second) if kind in ("Add", "Sum"):
            if second.where == first.where.opposite:
                return _either(first.where, first.value, second.value, assembler)
        case (Compared() as condition, Variable() as first, Variable() as second):
            if kind == "Where":
                return _either(condition, first, second, assembler)
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


def _is_one(value: Value | None) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1 and bool((value == 1).all())
