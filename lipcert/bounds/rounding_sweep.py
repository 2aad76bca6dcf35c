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

A runtime may also merge a scale into the weights before or behind it, or apply it later, see
``lipcert.bounds.scaled``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lipcert.bounds.ordered import Moves, Summed, in_any_order, in_order
from lipcert.bounds.rounded import grown, holds, of_activation, of_comparison, of_storing, times
from lipcert.bounds.roundoff import Roundoff
from lipcert.bounds.scaled import Scaled
from lipcert.network import Forward
from lipcert.network.activations import Activation, Elementwise, GroupSort, Identity, MaxMin
from lipcert.network.joints import Joint, MatrixProduct, Product
from lipcert.network.lower import comparators
from lipcert.network.operators import Operator
from lipcert.numbers import OUT64, Box, largest, widened
from lipcert.rounding import DOUBLE, SINGLE, Arithmetic, coarsest, column, gamma


@dataclass(frozen=True, eq=False)
class Place:
    """Where the values of a node lie that its operation is to round."""

    box: Box


P = TypeVar("P", bound=Place)


@dataclass(frozen=True, eq=False)
class Rounded(Generic[P]):
    """At one node, ``(B, *shape)`` but where it says otherwise.

    ``fresh``: what its own operation rounds; ``total``: how far its value is off, ``length`` the
    L2 norm of that, ``(B,)``; ``size``: the largest deployed value; ``additions``: how many a
    value has behind it since the last activation, for a bias or another summand that is merged
    into the sum before it; ``chain``: the magnitude that has come together since the last
    activation, and the roundings in it; ``peak``: the largest sum of all values of a node so far,
    ``(B,)``; ``scaled``: of scales that are merged with weights.
    """

    here: P
    fresh: Tensor
    total: Tensor
    length: Tensor
    size: Tensor
    additions: Tensor
    chain: tuple[Tensor, float]
    peak: Tensor
    scaled: Scaled


@dataclass(frozen=True, eq=False)
class _Step:
    """What a node's kind makes of it: as in ``Rounded``, with what is ``passed`` on of earlier
    errors and its ``length``; ``chain`` and ``scaled`` None where they start afresh."""

    passed: Tensor
    length: Tensor
    fresh: Tensor
    additions: Tensor
    chain: tuple[Tensor, float] | None = None
    scaled: Scaled | None = None


class RoundingSweep(Forward[Rounded[P]], ABC):
    """The rules of one pass from the input to the logits, over the balls of radius ``eps``."""

    def __init__(self, tools: Roundoff, eps: Tensor, deployed: Arithmetic | None) -> None:
        self.tools, self.eps, self.deployed = tools, eps, deployed

    @abstractmethod
    def place(self, i: int, parts: list[Rounded[P]]) -> P:
        """Where a node's values lie, from what was found at its inputs."""

    @abstractmethod
    def past(self, activation: Activation, before: Rounded[P]) -> tuple[Tensor, Tensor]:
        """Past an activation: how far its value is off but for its own rounding, and the length of
        that."""

    @abstractmethod
    def near(self, operator: Operator, rows: Tensor, before: Rounded[P], here: P) -> Tensor:
        """``|A| |v|`` of an operator, from the values at the sample; ``rows`` its rows' norms."""

    @abstractmethod
    def moves(self, before: Rounded[P]) -> Moves:
        """Where the values of a deployed run are."""

    def format(self, i: int) -> Arithmetic | None:
        """What a node is computed in: the deployed format, or the file's own where that is coarser.
        A value that is only stored, in the file's own alone: in the deployed one it is already."""
        node = self.tools.network.nodes[i]
        stored = isinstance(node.kind, Operator) and node.kind.is_identity
        return node.format if stored else coarsest(self.deployed, node.format)

    def input(self, i: int) -> Rounded[P]:
        here, own = self.place(i, []), self.format(i)
        fresh = none = torch.zeros_like(here.box[0])
        if own is not None:
            fresh = own.unit * largest(here.box) + own.tiny
        step = _Step(none, torch.zeros_like(self.eps), fresh, none)
        return self._rounded(i, here, [], step)

    def activation(self, i: int, activation: Activation, before: Rounded[P]) -> Rounded[P]:
        here, own = self.place(i, [before]), self.format(i)
        passed, length = self.past(activation, before)
        if isinstance(activation, Identity):
            # The file has none: what runtimes merge, they merge across it.
            still, behind = torch.zeros_like(passed), before.additions
            step = _Step(passed, length, still, behind, before.chain, before.scaled)
            return self._rounded(i, here, [before], step)
        alone = isinstance(activation, Elementwise)
        # Others only move or compare.
        inputs = before.size if alone else torch.zeros_like(passed)
        fresh = of_activation(own, activation, OUT64.add(largest(here.box), passed), inputs)
        if not alone:
            fresh = fresh + self._lowered(activation, before)
        additions = torch.zeros_like(passed)
        if isinstance(activation, MaxMin) and activation.spelling:
            fresh = fresh + of_comparison(
                own, activation, activation.perturbation(*before.here.box, before.size)
            )
            additions = additions + activation.additions
        if isinstance(activation, MaxMin) and activation.passing:
            # What passes is still the sum that it was.
            *both, _ = activation.parts(additions, activation.axis + 1)
            rest = activation.parts(before.additions, activation.axis + 1)[2]
            additions = torch.cat([*both, rest + activation.additions], activation.axis + 1)
        step = _Step(passed, length, fresh, additions)
        return self._rounded(i, here, [before], step)

    @abstractmethod
    def past_joint(self, joint: Joint, parts: list[Rounded[P]]) -> tuple[Tensor, Tensor]:
        """The same past a joint."""

    def joint(self, i: int, joint: Joint, parts: list[Rounded[P]]) -> Rounded[P]:
        """Its own rounding is that of inputs as they are deployed."""
        here, own = self.place(i, parts), self.format(i)
        passed, length = self.past_joint(joint, parts)
        fresh, scaled = torch.zeros_like(passed), None
        if isinstance(joint, MatrixProduct | Product):
            one, other = (part.scaled for part in parts)
            scaled = one.times(other, max(1, joint.additions))
        if own is not None:
            fresh = joint.rounding([widened(part.here.box, part.total) for part in parts], own)
            if scaled is not None and scaled.merges:
                fresh = fresh + column(scaled.lost(own), fresh)
        additions = torch.full_like(passed, joint.additions)
        step = _Step(passed, length, fresh, additions, scaled=scaled)
        return self._rounded(i, here, parts, step)

    def sum(self, i: int, parts: list[Rounded[P]]) -> Rounded[P]:
        here, own = self.place(i, parts), self.format(i)
        sizes = torch.stack([part.size for part in parts])
        behind = torch.stack([part.additions for part in parts])
        whole = sizes.sum(0)
        live = (sizes != 0).to(whole.dtype).sum(0)
        # A lone summand is moved, not added. An operation before it may start from the others.
        additions = torch.where(live > 1, live, 0)
        merged = (behind * (whole - sizes)).sum(0)
        fresh = torch.zeros_like(whole)
        if own is not None:
            made = own.unit * additions * whole + own.accumulator.unit * merged
            fresh = grown(own, made, additions, behind.sum(0), whole, whole)
        chain = (
            torch.stack([part.chain[0] for part in parts]).sum(0),
            max(part.chain[1] for part in parts) + len(parts),
        )
        passed = torch.stack([part.total for part in parts]).sum(0)
        length = torch.stack([part.length for part in parts]).sum(0)
        step = _Step(passed, length, fresh, behind.sum(0) + additions, chain)
        return self._rounded(i, here, parts, step)

    def affine(self, i: int, operator: Operator, before: Rounded[P]) -> Rounded[P]:
        here, own = self.place(i, [before]), self.format(i)
        length = times(before.length, self.tools.norms[i])
        passed = OUT64.magnitude(operator, before.total)
        if operator.is_move:
            chain = operator.magnitude(before.chain[0]), before.chain[1]
            moved = operator.apply(before.additions)
            step = _Step(passed, length, torch.zeros_like(passed), moved, chain, before.scaled)
        elif operator.is_identity:
            fresh = of_storing(own, OUT64.add(largest(here.box), before.total))
            step = _Step(before.total, length, fresh, before.additions, before.chain, before.scaled)
        else:
            step = self._operator(i, operator, before, here, passed, length)
        return self._rounded(i, here, [before], step)

    def _operator(
        self, i: int, operator: Operator, before: Rounded[P], here: P, passed: Tensor,
        length: Tensor,
    ) -> _Step:  # fmt: skip
        own, rows, unit = self.format(i), self.tools.rows[i], self.tools.unit
        assert rows is not None
        passed = torch.fmin(passed, OUT64.times(rows, column(before.length, rows)))
        bias, (magnitude, roundings) = operator.bias_magnitude(), before.chain
        whole = OUT64.magnitude(operator, before.size)
        whole = torch.fmin(whole, self.near(operator, rows, before, here))
        meets = whole if roundings == 0 else OUT64.magnitude(operator, magnitude)
        # Fusing sums a bias through the operator, and rounds each entry.
        chain = OUT64.add(meets, bias), roundings + operator.terms + 6
        fused = gamma(chain[1] + 16) * chain[0] + DOUBLE.tiny * (operator.terms + 2)
        if unit:
            # And once more to a narrower type, where those too small for it are lost.
            lost = column(before.peak + 2, fused) * self.tools.analysis.tiny
            lost = torch.where(chain[0] == 0, 0.0, lost)
            fused = fused + (unit + unit**2) * chain[0] + lost
        additions = operator.count((before.size != 0).to(whole.dtype))
        behind = before.additions if operator.is_elementwise else torch.zeros_like(passed)
        if own is None:
            return _Step(passed, length, fused, behind + additions, chain)
        whole = OUT64.add(whole, bias)
        result = torch.fmin(whole, OUT64.add(largest(here.box), passed, fused))
        summed = Summed(whole, result, additions, behind, bias)
        ordered = self.tools.orders.get(i) if own == SINGLE else None
        if ordered is None:
            made = in_any_order(own, operator, summed)
        else:
            made = in_order(own, ordered, self.moves(before), summed)
        # Factors of a product that are too small for the format, and products that are.
        most = column(before.size.flatten(1).amax(1) + operator.heaviest, passed) + additions + 8
        lost = own.tiny * (operator.terms + 1) * most
        scaled = before.scaled.through(operator, rows, before.size)
        if scaled.merges:
            lost = lost + column(scaled.lost(own), lost)
        fresh = grown(own, made.error + lost, made.stored + 2, made.added, result, whole)
        return _Step(passed, length, fresh + fused, made.later, chain, scaled)

    def _rounded(self, i: int, here: P, parts: list[Rounded[P]], step: _Step) -> Rounded[P]:
        """All of a node. What is made by hand above, sums of numbers that are 0 or more, has fewer
        than 32 roundings beside those of its operator's terms."""
        fresh, most = step.fresh, largest(here.box)
        if self.tools.unit:
            fresh = fresh + self._analysed(i, OUT64.add(most, step.passed))
        terms = getattr(self.tools.network.nodes[i].kind, "terms", 0) + len(parts) + 32
        total = OUT64.up(step.passed + fresh, terms)
        fresh, size = OUT64.up(fresh, terms), OUT64.add(most, total)
        length = OUT64.up(step.length, len(parts) + 2) + OUT64.length(fresh)
        peaks = [OUT64.sum(size), *(part.peak for part in parts)]
        return Rounded(
            here, fresh, total, torch.fmin(OUT64.up(length, 1), OUT64.length(total)), size,
            step.additions, (size, 0.0) if step.chain is None else step.chain,
            torch.stack(peaks).amax(0),
            Scaled.start(size) if step.scaled is None else step.scaled,
        )  # fmt: skip

    def _analysed(self, i: int, size: Tensor) -> Tensor:
        """What is rounded in an analysis in a narrower type, beside weights: the values at the
        sample that activations read, and an activation's own limits and slopes."""
        kind, unit = self.tools.network.nodes[i].kind, self.tools.unit
        rounded = 1.0 if i in self.tools.network.sinks else 0.0
        if isinstance(kind, Activation) and not holds(self.tools.analysis, kind):
            rounded += 1
        # What is exactly 0 is kept, and counts nowhere.
        tiny = torch.where(size == 0, 0.0, self.tools.analysis.tiny)
        return rounded * ((unit + 4 * unit**2) * size + 2 * tiny)

    def _lowered(self, activation: Activation, before: Rounded[P]) -> Tensor:
        """Where neurons are compared, the analysis works with their sums and differences."""
        magnitude, roundings = before.chain
        most = activation.perturbation(*before.here.box, magnitude)
        group = math.prod(magnitude.shape[1:]) / math.prod(most.shape[1:]) + 1
        # In rounds of two; the numbers of each are rounded in a narrower analysis.
        rounds = 16 * math.log2(group) + 16
        if isinstance(activation, GroupSort):
            # As many sums and products as it takes rounds to sort, of all numbers each.
            group = magnitude.shape[-1]
            rounds = 16 * len(comparators(group)) + 16
            roundings = roundings + group * rounds
        rounded = gamma(roundings + 16 * group + 16) * group
        return (rounded + 2 * gamma(rounds, self.tools.unit)) * most
