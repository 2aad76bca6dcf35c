"""What a dual bounds, linear forms of a node's value, and what it is free to choose for them."""

from __future__ import annotations

from dataclasses import dataclass

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
    """What is optimised: for each activation slopes ``(N, *shape)`` and ``log λ`` ``(N,)``."""

    slopes: dict[int, Tensor]
    logs: dict[int, Tensor]

    def select(self, keep: Tensor) -> Multipliers:
        return Multipliers(
            {i: slope[keep] for i, slope in self.slopes.items()},
            {i: log[keep] for i, log in self.logs.items()},
        )

    def replaced(self, rows: Tensor, others: Multipliers) -> Multipliers:
        """With others in these rows."""
        if not len(rows):
            return self
        return Multipliers(
            {i: slope.index_copy(0, rows, others.slopes[i]) for i, slope in self.slopes.items()},
            {i: log.index_copy(0, rows, others.logs[i]) for i, log in self.logs.items()},
        )

    @classmethod
    def joined(cls, parts: list[Multipliers]) -> Multipliers:
        """Of all forms, from those of some at a time."""
        if not parts:
            return cls({}, {})
        return cls(
            {i: torch.cat([part.slopes[i] for part in parts]) for i in parts[0].slopes},
            {i: torch.cat([part.logs[i] for part in parts]) for i in parts[0].logs},
        )

    def to(self, dtype: torch.dtype) -> Multipliers:
        return Multipliers(
            {i: slope.to(dtype) for i, slope in self.slopes.items()},
            {i: log.to(dtype) for i, log in self.logs.items()},
        )
