"""What a dual bounds, linear objectives of a node's value, and what it is free to choose for
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.network import Network


@dataclass(frozen=True, eq=False)
class Objectives:
    """N linear objectives to bound from below: ``coefficients[n] · Δ(value of node)`` of sample
    ``rows[n]``; ``(N, *shape of the node)`` and ``(N,)``."""

    node: int
    rows: Tensor
    coefficients: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: Tensor | slice) -> Objectives:
        return Objectives(self.node, self.rows[keep], self.coefficients[keep])

    def moved(self, place: Tensor) -> Objectives:
        """Gives them the rows that ``place`` ``(B,)`` has for theirs."""
        return Objectives(self.node, place[self.rows], self.coefficients)

    def to(self, dtype: torch.dtype) -> Objectives:
        return Objectives(self.node, self.rows, self.coefficients.to(dtype))


def margin_objectives(network: Network, rows: Tensor, labels: Tensor, others: Tensor) -> Objectives:
    """``f_label − f_other``, one for each of the three ``(N,)`` tensors' places."""
    objective = network.anchor.new_zeros(len(rows), network.classes)
    objective.scatter_(1, labels[:, None], 1.0)
    objective.scatter_add_(1, others[:, None], objective.new_full((len(rows), 1), -1.0))
    return Objectives(network.output, rows, objective.reshape(len(rows), *network.nodes[-1].shape))


@dataclass(frozen=True, eq=False)
class DualVariables:
    """What is optimised: for each activation slopes ``(N, *shape)`` and ``log λ`` ``(N,)``, and
    ``log μ`` where its ball is coupled."""

    slopes: dict[int, Tensor]
    logs: dict[int, Tensor]
    couplings: dict[int, Tensor] = field(default_factory=dict)

    @property
    def numbers(self) -> list[Tensor]:
        """All numbers that are optimised, slopes first."""
        return [*self.slopes.values(), *self.logs.values(), *self.couplings.values()]

    def of(self, numbers: Iterable[Tensor]) -> DualVariables:
        """Puts others in their places."""
        left = iter(numbers)
        parts = (self.slopes, self.logs, self.couplings)
        return DualVariables(*({i: next(left) for i in part} for part in parts))

    def map(self, change: Callable[[Tensor], Tensor]) -> DualVariables:
        return self.of(change(number) for number in self.numbers)

    def select(self, keep: Tensor | slice) -> DualVariables:
        return self.map(lambda t: t[keep])

    def replaced(self, rows: Tensor, others: DualVariables) -> DualVariables:
        """Puts others into these rows."""
        if not len(rows):
            return self
        pairs = zip(self.numbers, others.numbers, strict=True)
        return self.of(old.index_copy(0, rows, new) for old, new in pairs)

    @classmethod
    def joined(cls, parts: list[DualVariables]) -> DualVariables:
        """Joins those of some objectives at a time."""
        if not parts:
            return cls({}, {})
        columns = zip(*(part.numbers for part in parts), strict=True)
        return parts[0].of(torch.cat(column) for column in columns)

    def to(self, dtype: torch.dtype) -> DualVariables:
        return self.map(lambda t: t.to(dtype))
