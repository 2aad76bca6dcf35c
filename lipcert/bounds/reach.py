"""How far nodes move, from balls alone: row by row behind a ball, and as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network.operators import Operator
from lipcert.numbers import Outward, for_samples
from lipcert.rounding import column


@dataclass(frozen=True, eq=False)
class Reach:
    """How far a node moves, from balls alone: ``|Δv| ≤ width`` and ``Δv = diag(√squares) r`` with
    ``‖r‖₂ ≤ radius``; ``squares`` None for ones."""

    width: Tensor
    radius: Tensor
    squares: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """``‖Δv‖₂``."""
        if self.squares is None:
            return self.radius
        own = for_samples(self.radius.dtype)
        steepest = self.squares.flatten(1).amax(1).to(self.radius.dtype)
        return own.times(self.radius, own.root(steepest))


def through(operator: Operator, before: Reach, rows: Tensor, norm: float, own: Outward) -> Reach:
    """Row by row, ``rows`` the norms of all rows; and whole, by the operator's own norm, where it
    is more than one value of one that is read once."""
    squares, ball = None, rows
    if before.squares is not None:
        squares = own.squared(operator, before.squares)
        ball = own.root(squares)
    ball = own.times(ball, column(before.radius, ball))
    width = torch.minimum(ball, own.magnitude(operator, before.width))
    if max(operator.terms, operator.transposed_terms) <= 1:
        return Reach(width, before.radius, own.times(rows, rows) if squares is None else squares)
    return Reach(width, for_samples(before.radius.dtype).times(before.whole, norm))


def joined(parts: list[Reach], own: Outward) -> Reach:
    """Of a sum."""
    radius = for_samples(parts[0].radius.dtype).add(*(part.whole for part in parts))
    return Reach(own.add(*(part.width for part in parts)), radius)
