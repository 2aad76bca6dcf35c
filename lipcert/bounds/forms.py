"""What a dual bounds, linear forms of a node's value, and what it is free to choose for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.network import Network


@dataclass(frozen=True, eq=False)
class Forms:
    """N linear forms to bound from below: ``coefficients[n] · Δ(value of node)`` of sample
    ``rows[n]``; ``(N, *shape of the node)`` and ``(N,)``."""

    node: int
    rows: Tensor
    coefficients: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: Tensor) -> Forms:
        return Forms(self.node, self.rows[keep], self.coefficients[keep])

    def moved(self, place: Tensor) -> Forms:
        """With the rows that ``place`` ``(B,)`` has for them."""
        return Forms(self.node, place[self.rows], self.coefficients)

    def to(self, dtype: torch.dtype) -> Forms:
        return Forms(self.node, self.rows, self.coefficients.to(dtype))


def margin_forms(network: Network, rows: Tensor, labels: Tensor, others: Tensor) -> Forms:
    """``f_label − f_other``, one for each of the three ``(N,)`` tensors' places."""
    form = network.anchor.new_zeros(len(rows), network.classes)
    form.scatter_(1, labels[:, None], 1.0)
    form.scatter_add_(1, others[:, None], form.new_full((len(rows), 1), -1.0))
    return Forms(network.output, rows, form.reshape(len(rows), *network.nodes[-1].shape))


@dataclass(frozen=True, eq=False)
class Multipliers:
    """What is optimised: for each activation slopes ``(N, *shape)`` and ``log λ`` ``(N,)``, and
    ``log μ`` where its ball is coupled."""

    slopes: dict[int, Tensor]
    logs: dict[int, Tensor]
    couplings: dict[int, Tensor] = field(default_factory=dict)

    @property
    def numbers(self) -> list[Tensor]:
        """All of them, slopes first."""
        return [*self.slopes.values(), *self.logs.values(), *self.couplings.values()]

    def of(self, numbers: Iterable[Tensor]) -> Multipliers:
        """Others in their places."""
        left = iter(numbers)
        parts = (self.slopes, self.logs, self.couplings)
        return Multipliers(*({i: next(left) for i in part} for part in parts))

    def map(self, change: Callable[[Tensor], Tensor]) -> Multipliers:
        return self.of(change(number) for number in self.numbers)

    def select(self, keep: Tensor) -> Multipliers:
        return self.map(lambda t: t[keep])

    def replaced(self, rows: Tensor, others: Multipliers) -> Multipliers:
        """With others in these rows."""
        if not len(rows):
            return self
        pairs = zip(self.numbers, others.numbers, strict=True)
        return self.of(old.index_copy(0, rows, new) for old, new in pairs)

    @classmethod
    def joined(cls, parts: list[Multipliers]) -> Multipliers:
        """Of all forms, from those of some at a time."""
        if not parts:
            return cls({}, {})
        columns = zip(*(part.numbers for part in parts), strict=True)
        return parts[0].of(torch.cat(column) for column in columns)

    def to(self, dtype: torch.dtype) -> Multipliers:
        return self.map(lambda t: t.to(dtype))
