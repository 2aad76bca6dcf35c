"""Sums in an order that is known: what all additions of an operator add up, over a whole ball.

By ``lipcert.numbers.summation`` an operator errs by ``u Σ_v |s_v|`` and what its products round.
Every partial sum is linear in the input, so that with ``w_v`` the part of a row that it has,

    |s_v(x)| ≤ |s_v(x0)| + |w_v|·|x − x0|,      Σ_v |w_v|·d = Σ_k depth_k |w_k| d_k,
                                                Σ_v |w_v|·d ≤ ‖d‖₂ Σ_v ‖w_v‖₂.

The first term goes along the tree at the values ``x0``, where the terms' signs cancel; the second
is one more product with magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.rounded import represented
from lipcert.errors import InternalError
from lipcert.network.operators import Convolution, Dense, Operator
from lipcert.numbers import OUT64, SumOrder
from lipcert.rounding import Arithmetic, column


@dataclass(frozen=True, eq=False)
class Moves:
    """Where the values are that an operator is given: within ``spread + width`` of ``reference``,
    all but ``spread`` of that a vector no longer than ``radius``, ``(B,)``; not ``live`` where they
    are 0 for sure. ``(B, *shape)``."""

    reference: Tensor
    spread: Tensor
    width: Tensor
    radius: Tensor
    live: Tensor


@dataclass(eq=False)
class Ordered:
    """A dense operator or convolution in float64 whose products are added in this order."""

    operator: Dense | Convolution
    order: SumOrder
    _last: tuple[Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, operator: Operator, order: SumOrder) -> Ordered:
        known = isinstance(operator, Dense | Convolution) and order.terms == operator.terms
        if not known or not (order.bias or operator.bias is None):
            raise InternalError(f"{operator}: an order of other sums; please report this")
        assert isinstance(operator, Dense | Convolution)
        return cls(operator, order)

    def exact(self, own: Arithmetic) -> bool:
        """Whether the format has its constants as they are."""
        bias = self.operator.bias
        numbers = [self.operator.weight, *([] if bias is None else [bias])]
        return all(represented(values, own) for values in numbers)

    @property
    def later(self) -> float:
        """How many additions a bias passes through that is another node's here, and one of the
        terms of the sum in the file."""
        elsewhere = self.order.bias and self.operator.bias is None
        return float(self.order.depths[-1]) if elsewhere else 0.0

    def additions(self, moves: Moves) -> Tensor:
        """``Σ_v |s_v|`` at most, ``(B, *out_shape)``."""
        slack = OUT64.gamma(2 * self.order.terms + 16)
        spread = OUT64.add(moves.spread, slack * moves.reference.abs())
        moved = torch.fmin(
            OUT64.magnitude(self._deep, moves.width),
            OUT64.times(self._lengths, column(moves.radius, moves.width)),
        )
        bias = slack * self._deep.bias_magnitude()
        sums = OUT64.up(self._sums(moves.reference, moves.live), 2 * self.order.terms)
        return OUT64.add(sums, OUT64.magnitude(self._deep, spread), moved, bias)

    def _sums(self, reference: Tensor, live: Tensor) -> Tensor:
        """At the reference, as computed. What was found last for the same values holds where fewer
        of them are live."""
        if self._last is not None:
            before, more, found = self._last
            if torch.equal(before, reference) and not bool((live & ~more).any()):
                return found
        read, alive = self.operator.reader(reference), self.operator.reader(live.to(reference))
        bias = self._own_bias

        def term(k: int) -> tuple[Tensor, Tensor]:
            if k < self.operator.terms:
                return read(k) * self.operator.column(k), alive(k) > 0
            return bias, torch.ones_like(bias) > 0

        found = self.order.partial_sums(term).expand(len(reference), *self.operator.out_shape)
        self._last = reference, live, found
        return found

    @property
    def _own_bias(self) -> Tensor:
        """0 where it is another node's, which charges it wherever it is in: what is added to it
        here is a partial sum all the same, and rounded."""
        bias, weight = self.operator.bias, self.operator.weight
        return (
            weight.new_zeros(1, *(1,) * len(self.operator.out_shape))
            if bias is None
            else bias[None]
        )

    @cached_property
    def _deep(self) -> Dense | Convolution:
        """The operator with each magnitude times the additions that it passes through."""
        weight, bias = self.operator.weight, self.operator.bias
        depths = torch.tensor(self.order.depths, dtype=weight.dtype, device=weight.device)
        own = depths[: self.operator.terms].reshape(weight.shape[1:])
        return replace(
            self.operator, weight=weight.abs() * own,
            bias=None if bias is None else bias.abs() * depths[-1],
        )  # fmt: skip

    @cached_property
    def _lengths(self) -> Tensor:
        """``Σ_v ‖w_v‖₂``, ``(1, …)`` that broadcasts to the outputs."""

        def term(k: int) -> tuple[Tensor, Tensor]:
            own = k < self.operator.terms
            row = self.operator.column(k if own else 0)[None]
            squares = row.square() if own else torch.zeros_like(row)
            return squares, squares >= 0

        found = self.order.partial_sums(term, torch.sqrt)
        return OUT64.up(found, 2 * self.order.terms) + 2 * self.order.terms * 2.0**-500


@dataclass(frozen=True, eq=False)
class Summed:
    """Of an operator: the magnitudes of its terms together, and that of its result; how many
    additions it makes, and a value has behind it, which a ``bias`` may pass through."""

    whole: Tensor
    result: Tensor
    additions: Tensor
    behind: Tensor
    bias: Tensor | float


@dataclass(frozen=True, eq=False)
class Made:
    """What its sum rounds. An error may grow by so many roundings that are ``stored``, and by those
    that are ``added``; ``later``: the additions that a bias to come may pass through."""

    error: Tensor
    stored: float
    added: Tensor
    later: Tensor


def in_any_order(own: Arithmetic, operator: Operator, summed: Summed) -> Made:
    """As ``lipcert.bounds.rounding_sweep`` derives it."""
    constants, factors = operator.roundings
    whole, result, additions, behind = summed.whole, summed.result, summed.additions, summed.behind
    sums = own.accumulator.unit
    error = (constants * own.unit + factors * sums) * whole + own.unit * result
    error = error + sums * (additions * (whole + result) / 2 + behind * summed.bias)
    return Made(error, constants, behind + additions + factors, behind + additions)


def in_order(own: Arithmetic, ordered: Ordered, moves: Moves, summed: Summed) -> Made:
    """In a runtime that merges nothing and adds in a known order: weights as they are in the file,
    a product rounded at most once, and every partial sum by its own size. An error below additions
    counts for ``1 / (1 − u d) ≤ e^{2 u d}``."""
    whole, additions = summed.whole, summed.additions
    sizes = torch.fmin(additions * (whole + summed.result) / 2, ordered.additions(moves))
    constants = 0.0 if ordered.exact(own) else 1.0
    error = own.unit * ((constants + 1) * whole + sizes)
    later = torch.full_like(whole, ordered.later)
    added = torch.full_like(whole, 2.0 * ordered.order.depth + 1)
    return Made(error, constants, added, later)
