"""Householder activations: each pair of values stays, or is reflected, by the sign of a selector.

With a unit vector ``n`` for each pair ``z = (a, b)`` of channels,

    h(z) = z where n·z ≤ 0, else z − 2 n (n·z),

as ``Where(s <= 0, a, a')`` or ``a · [s <= 0] + a' · [s > 0]`` for each half. It jumps nowhere, and
moves no two points further apart. With the rotation ``R`` that takes ``n`` to ``(1, −1)/√2`` it is
a comparison: ``h(z) = Rᵀ (min, max)(R z)``, as the reflection then swaps the two.

The file's constants are rounded, so ``s = α a + β b`` and ``a' = c₁ a + c₂ b`` are these only
nearly, and the file's function jumps by a hair where ``s`` changes its sign. With ``u`` the unit of
its format and ``m = max(|a|, |b|)`` let ``o_s``, ``o_t`` bound what ``s`` and ``(a', b')`` are
rounded by, in ``u m`` (``forms``), and ``δ m`` how far ``(a', b')`` and the direction of ``s`` are
from the model's. A run takes the wrong branch only where ``|s| ≤ o_s u m``, and there the branches
differ by ``2 |n·z| ≤ 2 o_s u m / ‖(α, β)‖``. So it is off by at most

    (2 o_s / ‖(α, β)‖ + o_t + δ/u) u m,    m ≤ √2 max|R z|,

of either value, √2 times that in the rotated frame, which is charged as the ``MaxMin.spelling``,
in the file's own format under every deployment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
import torch
from torch import Tensor

from lipcert.loading.affine_form import AffineForm
from lipcert.loading.assembler import Assembler, Variable, places
from lipcert.loading.comparisons import GatedValue
from lipcert.loading.forms import DEEPEST, Forms
from lipcert.loading.formulas import Formula
from lipcert.loading.mirrors import mirror_of
from lipcert.loading.polynomial import Polynomial, X
from lipcert.loading.value import Condition, Value
from lipcert.network import Network
from lipcert.network.activations import MaxMin
from lipcert.rounding import Arithmetic

# Whether the condition holds where the selector is large.
_ABOVE = {"greater": True, "greaterorequal": True, "less": False, "lessorequal": False}


@dataclass(frozen=True)
class Sign:
    """Whether a selector is ``positive``, or whether it is not."""

    selector: Variable
    positive: bool

    @property
    def opposite(self) -> Sign:
        return Sign(self.selector, not self.positive)


@dataclass(frozen=True)
class Side(Condition):
    """A value on one side of a selector, elsewhere 0."""

    value: Variable
    sign: Sign


@dataclass(frozen=True)
class Half(Condition):
    """``kept`` where the selector is not positive, else ``turned``."""

    kept: Variable
    turned: Variable
    selector: Variable


@dataclass(eq=False)
class Reflections:
    """The halves that a graph has so far, and what became of pairs of them."""

    halves: list[Half] = field(default_factory=list)
    built: dict[Half, Variable] = field(default_factory=dict)

    def chosen(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> Condition | None:
        """What a choice by a selector is; None for any other node."""
        kind = node.op_type
        match [_sign(value) or _side(value) or value for value in inputs]:
            case [Variable() as value, Sign() as sign] if kind == "Mul":
                return Side(True, value, sign)
            case [Sign() as sign, Variable() as value] if kind == "Mul":
                return Side(True, value, sign)
            case [Side() as one, Side() as other] if kind in ("Add", "Sum"):
                if other.sign == one.sign.opposite:
                    return self._half(one.sign, one.value, other.value)
            case [Sign() as sign, Variable() as one, Variable() as other] if kind == "Where":
                return self._half(sign, one, other)
        return None

    def _half(self, sign: Sign, here: Variable, elsewhere: Variable) -> Half:
        turned, kept = (here, elsewhere) if sign.positive else (elsewhere, here)
        half = Half(True, kept, turned, sign.selector)
        self.halves.append(half)
        return half

    def value(self, half: Value | None, assembler: Assembler) -> Value | None:
        """A half as a value, where its other half is there; everything else as it is."""
        if not isinstance(half, Half) or half in self.built:
            return self.built.get(half, half) if isinstance(half, Half) else half
        for other in self.halves:
            one, two = (half, other) if half.kept.node < other.kept.node else (other, half)
            if other is half or other.selector != half.selector:
                continue
            parts = _built(one, two, assembler)
            if parts is not None:
                self.built[one], self.built[two] = parts
                return self.built[half]
        return half


def _side(value: Value | None) -> Side | None:
    """A value where one is larger than another, by the sign of a difference that the file has."""
    if not isinstance(value, GatedValue) or value.where.difference is None:
        return None
    return Side(True, value.value, Sign(value.where.difference, not value.where.turned))


def _sign(value: Value | None) -> Sign | None:
    """What a truth value says of the selector that it is the sign of."""
    alone = value.polynomial.alone if isinstance(value, Formula) else None
    if alone is None or alone.name not in _ABOVE:
        return None
    assert isinstance(value, Formula)
    first, second = alone.arguments
    if {first, second} != {X, Polynomial.constant(0.0)}:
        return None
    return Sign(value.base, _ABOVE[alone.name] == (first == X))


def _built(one: Half, other: Half, assembler: Assembler) -> tuple[Variable, Variable] | None:
    """Both halves of a reflection, or None where they are none."""
    forms, own = Forms(Network(tuple(assembler.builder.nodes))), assembler.own
    # What is turned where the selector is positive is turned where its negative is not.
    sides = (one, other), tuple(Half(True, h.turned, h.kept, h.selector) for h in (one, other))
    for turned, halves in enumerate(sides):
        if all(_is_value(forms.of(half.kept.node)) for half in halves):
            one, other = halves
            return _reflected(forms, one, other, -1.0 if turned else 1.0, assembler, own)
    return None


def _reflected(
    forms: Forms, one: Half, other: Half, sign: float, assembler: Assembler, own: Arithmetic
) -> tuple[Variable, Variable] | None:
    """Both halves, kept where ``sign`` times the selector is not positive."""
    a, b = forms.of(one.kept.node), forms.of(other.kept.node)
    shape = one.kept.shape
    if other.kept.shape != shape:
        return None
    pair = torch.cat([a.terms, b.terms], 1)
    selector = forms.of(one.selector.node)
    turned = [forms.of(half.turned.node) for half in (one, other)]
    parts = (selector, *turned)
    if any(len(part.terms) != len(pair) or part.depth > DEEPEST for part in parts):
        return None
    if any(part.within < math.inf for part in parts):
        return None
    found = [_by(part, pair) for part in parts]
    by, first, second = found[0], found[1], found[2]
    if by is None or first is None or second is None:
        return None
    length = by.square().sum(1).sqrt()
    mirror = mirror_of(sign * by, torch.stack([first, second], 1))
    if mirror is None:
        return None
    rounded = 2 * selector.off / length + torch.maximum(turned[0].off, turned[1].off)
    spelling = mirror.spelling(rounded, own)
    if not math.isfinite(spelling):
        return None
    z, (p, q) = assembler.stack([one.kept, other.kept], 0), (mirror.p, mirror.q)
    z = z if mirror.straight else _rotated(z, p, -q, assembler)
    # The smaller one first.
    swapped = places((2, *shape))[::-1].copy()
    behind = max(part.behind for part in turned)
    found_ = assembler.activation(MaxMin(0, spelling, behind), z, own)
    y = assembler.select(found_, swapped)
    y = y if mirror.straight else _rotated(y, p, q, assembler)
    both = places((2, *shape))
    return assembler.select(y, both[0]), assembler.select(y, both[1])


def _rotated(z: Variable, p: Tensor, q: Tensor, assembler: Assembler) -> Variable:
    """``(p z₁ + q z₂, −q z₁ + p z₂)``, the two along the first axis."""
    shape = z.shape[1:]
    scale = torch.stack([p, p]).reshape(2, *shape)
    turn = torch.stack([q, -q]).reshape(2, *shape)
    swapped = assembler.select(z, places(z.shape)[::-1].copy())
    return assembler.sum(
        [assembler.diagonal(z, scale, None), assembler.diagonal(swapped, turn, None)]
    )


def _is_value(form: AffineForm) -> bool:
    """Whether each value is one that was there before, as it is."""
    one = form.terms.shape[1] == 1 and bool(form.live.all())
    return one and bool((form.coefficients == 1).all()) and not bool((form.off > 0).any())


def _by(form: AffineForm, pair: Tensor) -> Tensor | None:
    """The coefficients of the two values of each row's pair, ``(n, 2)``; None where it has
    others."""
    same = (form.terms[:, :, None] == pair[:, None, :]) & form.live[:, :, None]
    if not bool((same.any(2) | ~form.live).all()):
        return None
    return torch.where(same, form.coefficients[:, :, None], 0.0).sum(1)
