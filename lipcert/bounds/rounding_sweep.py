"""What floating point adds on one way through a network, node by node.

One sum ``z = Σ t_i`` of ``n`` products and a bias, in any order and any tree, with or without
fused multiply-add: write ``T = Σ |t_i|``. Every partial sum is the sum of a part of the terms, so
it is at most ``Q = max(Σ positive, Σ negative) = (T + |z|)/2``, and each of the ``m`` additions
rounds its own result. With ``K`` roundings of a term's constants, ``L`` of the product and what it
is made of, ``u`` the unit of the format and ``a`` that of the sums,

    |fl(z) − z| ≤ e^{(K+2)u + (m+L)a} ((K u + L a) T + m a Q + u |z|) + underflow,

because an error that is made is passed on by every later addition times ``1 + a`` at most, and the
result is rounded once more when it is stored. Terms that are exactly 0 round nothing and do not
count.

Over the ball ``T`` is at most ``|A| max|a|``, and at most ``|A||a0| + ‖row‖ ρ`` for ``‖Δa‖ ≤ ρ``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipcert.bounds.boxes import Box, widened
from lipcert.network import Input, Sum
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.joints import Joint
from lipcert.network.operators import Diagonal, Operator, Select
from lipcert.rounding import DOUBLE, FLOAT64, Arithmetic, coarsest, column, gamma

if TYPE_CHECKING:
    from lipcert.bounds.roundoff import Roundoff

# Roundings (K, L) of one term of a sum: its weight; the product and a factor of the weight. Then of
# what is shifted or scaled by constants; the root and quotients of a batch norm, in either form,
# ``(x − μ) s + β`` or ``x s + (β − μ s)``.
_WEIGHT, _SHIFT = (1.0, 3.0), (3.0, 5.0)
# Gates are multiplied out with at most so many times their input.
_MULTIPLES = 8.0


class ForwardSweep(ABC):
    """One pass from the input to the logits; for each quantity an entry a node.

    ``boxes`` hold what the operations of a run are to round; ``total`` is how far a value is off.
    ``size``: the largest deployed value; ``length``: ``‖total‖₂``;
    ``additions``: how many a value has behind it since the last activation, for a bias or another
    summand that is merged into the sum before it; ``chain``: the magnitude that has come together
    since the last activation, and the roundings in it.
    """

    def __init__(self, tools: Roundoff, eps: Tensor, arithmetic: Arithmetic | None) -> None:
        self.tools, self.eps, self.deployed = tools, eps, arithmetic
        # Of the node at hand.
        self.arithmetic: Arithmetic | None = None
        self.boxes: dict[int, Box] = {}
        self.fresh: dict[int, Tensor] = {}
        self.total: dict[int, Tensor] = {}
        self.size: dict[int, Tensor] = {}
        self.length: dict[int, Tensor] = {}
        self.additions: dict[int, Tensor] = {}
        self.chain: dict[int, tuple[Tensor, float]] = {}
        # The largest sum of all values of a node so far.
        self.peak = torch.zeros_like(eps)

    @abstractmethod
    def past(self, i: int, activation: Activation) -> tuple[Tensor, Tensor]:
        """Past an activation: how far its value is off but for its own rounding, and the length of
        that."""

    @abstractmethod
    def past_joint(self, i: int, joint: Joint) -> tuple[Tensor, Tensor]:
        """The same past a joint."""

    @abstractmethod
    def near(self, i: int, operator: Operator, slack: float) -> Tensor:
        """``|A| |v|`` of an operator, from the values at the sample."""

    def format(self, i: int) -> Arithmetic | None:
        """What a node is computed in: the deployed format, or the file's own where that is coarser.
        A value that is only stored, in the file's own alone: in the deployed one it is already."""
        node = self.tools.network.nodes[i]
        stored = isinstance(node.kind, Diagonal) and node.kind.is_identity
        return node.format if stored else coarsest(self.deployed, node.format)

    def step(self, i: int) -> None:
        self.arithmetic = self.format(i)
        node, box = self.tools.network.nodes[i], self.boxes[i]
        largest = torch.maximum(box[0].abs(), box[1].abs())
        none, norm = torch.zeros_like(largest), self.tools.norms[i]
        lengths = [self.length[j] for j in node.inputs]
        chain: tuple[Tensor, float] | None = None
        match node.kind:
            case Input():
                passed, fresh, additions = none, none, none
                length = torch.zeros_like(self.eps)
                if self.arithmetic is not None:
                    fresh = self.arithmetic.unit * largest + self.arithmetic.tiny
            case Activation() as activation:
                (passed, length), additions = self.past(i, activation), none
                fresh = self._activation(activation, largest + passed, self._spread(i))
                if not isinstance(activation, Elementwise):
                    fresh = fresh + self._lowered(activation, node.inputs[0])
            case Joint() as joint:
                (passed, length), additions = self.past_joint(i, joint), none
                fresh = self._joint(joint, node.inputs, none)
            case Sum():
                passed = torch.stack([self.total[j] for j in node.inputs]).sum(0)
                length = torch.stack(lengths).sum(0)
                fresh, additions = self._sum(node.inputs)
                chain = (
                    torch.stack([self.chain[j][0] for j in node.inputs]).sum(0),
                    max(self.chain[j][1] for j in node.inputs) + len(node.inputs),
                )
            case Operator() as operator:
                passed, fresh, additions, chain = self._operator(i, operator, largest)
                length = times(lengths[0], norm)
        if self.tools.unit:
            fresh = fresh + self._analysed(i, largest + passed)
        terms = getattr(node.kind, "terms", 0) + len(node.inputs)
        total = (passed + fresh) * (1 + gamma(terms + 32))
        self.fresh[i] = fresh * (1 + gamma(terms + 32))
        self.total[i] = total
        self.size[i] = (largest + total) * (1 + 4 * FLOAT64)
        everything = self.size[i].flatten(1).sum(1)
        self.peak = torch.maximum(self.peak, everything)
        length = (length + length_of(fresh)) * (1 + 32 * FLOAT64)
        self.length[i] = torch.fmin(length, length_of(total))
        self.additions[i] = additions
        self.chain[i] = (self.size[i], 0.0) if chain is None else chain

    def _analysed(self, i: int, size: Tensor) -> Tensor:
        """What is rounded in an analysis in a narrower type, beside weights: the values at the
        sample that activations read, and an activation's own limits and slopes."""
        kind, unit = self.tools.network.nodes[i].kind, self.tools.unit
        rounded = 1.0 if i in self.tools.network.sinks else 0.0
        if isinstance(kind, Activation):
            held = [getattr(kind, field.name) for field in fields(kind)]
            own = self.tools.analysis
            if not all(_represented(value, own) for value in held if isinstance(value, Tensor)):
                rounded += 1
        # What is exactly 0 is kept, and counts nowhere.
        tiny = torch.where(size == 0, 0.0, self.tools.analysis.tiny)
        return rounded * (unit * size + tiny) * (1 + 4 * unit)

    def _spread(self, i: int) -> Tensor | float:
        """The largest input of an element-wise activation; others only move or compare."""
        node = self.tools.network.nodes[i]
        return self.size[node.inputs[0]] if isinstance(node.kind, Elementwise) else 0.0

    def _activation(self, activation: Activation, size: Tensor, inputs: Tensor | float) -> Tensor:
        """Its own rounding, and that of its limits and slopes where the format has others; infinite
        where its value, or a few of its input, could overflow."""
        relative, absolute, scaled = activation.rounding
        own = self.arithmetic
        if own is None:
            return torch.zeros_like(size)
        held = [getattr(activation, field.name) for field in fields(activation)]
        lost: Tensor | float = own.tiny
        if not all(_represented(value, own) for value in held if isinstance(value, Tensor)):
            relative += 1
            # A slope that is too small for the format is lost, whatever it multiplies.
            lost = own.tiny * (1 + inputs)
        if not (relative or absolute or scaled):
            return torch.zeros_like(size)
        rounded: Tensor = relative * size + absolute + scaled * inputs
        fresh = own.unit * (1 + 4 * own.unit) * rounded + lost
        reach = size + (_MULTIPLES * inputs if scaled else 0.0)
        return torch.where(reach <= own.largest / 2, fresh, torch.inf)

    def _joint(self, joint: Joint, inputs: tuple[int, ...], none: Tensor) -> Tensor:
        """Its own rounding, of inputs as they are deployed."""
        if self.arithmetic is None:
            return none
        return joint.rounding(
            [widened(self.boxes[j], self.total[j]) for j in inputs], self.arithmetic
        )

    def _lowered(self, activation: Activation, source: int) -> Tensor:
        """Where neurons are compared, the analysis works with their sums and differences."""
        box, (magnitude, roundings) = self.boxes[source], self.chain[source]
        largest = activation.perturbation(*box, magnitude)
        group = math.prod(magnitude.shape[1:]) / math.prod(largest.shape[1:]) + 1
        # In rounds of two; the numbers of each are rounded in a narrower analysis.
        rounds = 16 * math.log2(group) + 16
        rounded = gamma(roundings + 16 * group + 16) * group
        return (rounded + 2 * gamma(rounds, self.tools.unit)) * largest

    def _sum(self, inputs: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        sizes = torch.stack([self.size[j] for j in inputs])
        behind = torch.stack([self.additions[j] for j in inputs])
        whole = sizes.sum(0)
        live = (sizes != 0).to(whole.dtype).sum(0)
        # A lone summand is moved, not added. An operation before it may start from the others.
        additions = torch.where(live > 1, live, 0)
        merged = (behind * (whole - sizes)).sum(0)
        fresh = torch.zeros_like(whole)
        if self.arithmetic is not None:
            unit, sums = self.arithmetic.unit, self.arithmetic.accumulator.unit
            made = unit * additions * whole + sums * merged
            fresh = self._grown(made, additions, behind.sum(0), whole, whole)
        return fresh, behind.sum(0) + additions

    def _operator(
        self, i: int, operator: Operator, largest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, float]]:
        """What is passed on, the fresh rounding, the additions and the chain."""
        j = self.tools.network.nodes[i].inputs[0]
        slack = 1 + gamma(operator.terms + 8)
        passed, rows = operator.magnitude(self.total[j]) * slack, self.tools.rows[i]
        magnitude, roundings = self.chain[j]
        if isinstance(operator, Select):
            chain = operator.magnitude(magnitude), roundings
            return passed, torch.zeros_like(largest), operator.apply(self.additions[j]), chain
        if isinstance(operator, Diagonal) and operator.is_identity:
            passed = self.total[j]
            return passed, self._stored(largest + passed), self.additions[j], self.chain[j]
        assert rows is not None
        passed = torch.fmin(passed, rows * column(self.length[j], rows) * (1 + 4 * FLOAT64))
        bias = operator.bias_magnitude()
        whole = operator.magnitude(self.size[j]) * slack
        whole = torch.fmin(whole, self.near(i, operator, slack))
        meets = whole if roundings == 0 else operator.magnitude(magnitude) * slack
        # Fusing sums a bias through the operator, and rounds each entry.
        chain = (meets + bias) * (1 + 4 * FLOAT64), roundings + operator.terms + 6
        fused = gamma(chain[1] + 16) * chain[0] + DOUBLE.tiny * (operator.terms + 2)
        if self.tools.unit:
            # And once more to a narrower type, where those too small for it are lost.
            lost = column(self.peak + 2, fused) * self.tools.analysis.tiny
            lost = torch.where(chain[0] == 0, 0.0, lost)
            fused = fused + self.tools.unit * (1 + self.tools.unit) * chain[0] + lost
        additions = operator.count((self.size[j] != 0).to(whole.dtype))
        behind = torch.zeros_like(largest)
        if isinstance(operator, Diagonal):
            behind = self.additions[j]
        if self.arithmetic is None:
            return passed, fused, behind + additions, chain
        whole = (whole + bias) * (1 + 8 * FLOAT64)
        result = torch.fmin(whole, largest + passed + fused)
        constants, factors = _SHIFT if isinstance(operator, Diagonal) else _WEIGHT
        unit, sums = self.arithmetic.unit, self.arithmetic.accumulator.unit
        made = (constants * unit + factors * sums) * whole + unit * result
        made = made + sums * (additions * (whole + result) / 2 + behind * bias)
        # Factors of a product that are too small for the format, and products that are.
        heaviest = 1.0 if (entries := operator.entries()) is None else float(entries.abs().max())
        most = column(self.size[j].flatten(1).amax(1) + heaviest, largest) + additions + 8
        lost = self.arithmetic.tiny * (operator.terms + 1) * most
        rounded = behind + additions + factors
        fresh = self._grown(made + lost, constants + 2, rounded, result, whole)
        return passed, fresh + fused, behind + additions, chain

    def _stored(self, size: Tensor) -> Tensor:
        """A value rounded to the file's own format; infinite where it could overflow there."""
        if self.arithmetic is None:
            return torch.zeros_like(size)
        fresh = self.arithmetic.unit * size + self.arithmetic.tiny
        return torch.where(size <= self.arithmetic.largest / 2, fresh, torch.inf)

    def _grown(
        self, made: Tensor, stored: Tensor | float, added: Tensor, result: Tensor, whole: Tensor
    ) -> Tensor:
        """Errors that are made, with what later roundings add to them: so many of the format, and
        of its sums. Infinite where a partial sum, at most ``whole``, or the result could overflow.
        """
        assert self.arithmetic is not None
        own, sums = self.arithmetic, self.arithmetic.accumulator
        growth = torch.exp(stored * own.unit + added * sums.unit) * (1 + 16 * FLOAT64)
        fresh = growth * (made + own.tiny * (stored + added))
        safe = (whole * growth <= sums.largest / 2) & (result * growth <= own.largest / 2)
        return torch.where(safe, fresh, torch.inf)


def _represented(values: Tensor, own: Arithmetic) -> bool:
    """Whether a format has these numbers; infinite ones it has."""
    size = values.abs()
    kept = (size == 0) | size.isinf() | ((size >= own.tiny) & (size <= own.largest))
    return bool((kept & ((torch.frexp(values).mantissa / own.unit) % 1 == 0)).all())


def times(values: Tensor, factor: Tensor | float) -> Tensor:
    """A product in which ``∞ · 0`` is unknown, so infinite."""
    product = values * factor * (1 + 4 * FLOAT64)
    return torch.nan_to_num(product, nan=torch.inf, posinf=torch.inf)


def length_of(values: Tensor) -> Tensor:
    """Euclidean lengths, rounded up: ``(B,)``."""
    flat = values.flatten(1)
    length: Tensor = flat.norm(dim=1)
    return length * (1 + gamma(flat.shape[1] + 8))
