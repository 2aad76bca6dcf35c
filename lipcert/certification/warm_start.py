"""Where searches for multipliers start: what earlier ones of the same samples have found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import DualVariables, Objectives
from lipcert.bounds.state import State, select


@dataclass(frozen=True, eq=False)
class WarmStart:
    """DualVariables of some margins. ``place`` ``(B, K)`` says where in ``found`` those of a margin
    lie, −1 where there are none yet; ``eps`` ``(N,)`` at which radius they were found."""

    place: Tensor
    found: DualVariables
    eps: Tensor

    @classmethod
    def none(cls, margins: Tensor) -> WarmStart:
        """Begins with margins ``(B, K)`` of which nothing is known."""
        place = torch.full(margins.shape, -1, dtype=torch.int64, device=margins.device)
        return cls(place, DualVariables({}, {}), margins.new_zeros(0, dtype=torch.float32))

    def select(self, rows: Tensor) -> WarmStart:
        """Takes those of some samples."""
        return WarmStart(self.place[rows], self.found, self.eps)

    def spread(self, rows: Tensor, batch: int) -> WarmStart:
        """Puts these samples into the ``rows`` of a ``batch``, of whose others nothing is known."""
        place = self.place.new_full((batch, self.place.shape[1]), -1)
        return WarmStart(place.index_copy(0, rows, self.place), self.found, self.eps)

    def renewed(
        self, objectives: Objectives, others: Tensor, found: DualVariables, eps: Tensor
    ) -> WarmStart:
        """Takes what was found for these objectives at ``eps`` ``(B,)`` in place of the old."""
        if not len(objectives):
            return self
        kept = self.place.clone()
        kept[objectives.rows, others] = -1
        left = (kept >= 0).nonzero().unbind(1)
        old = kept[left]
        kept[left] = torch.arange(len(old), device=old.device)
        kept[objectives.rows, others] = len(old) + torch.arange(len(objectives), device=old.device)
        joined = [self.found.select(old), found] if len(old) else [found]
        return WarmStart(
            kept,
            DualVariables.joined(joined),
            torch.cat([self.eps[old], eps[objectives.rows].float()]),
        )

    def start(
        self, guide: DualBound, state: State, objectives: Objectives, others: Tensor
    ) -> DualVariables:
        """Says where to start in a state of one row for each objective; multipliers go with 1/ρ."""
        place = self.place[objectives.rows, others]
        fresh = place < 0
        # Those that are known first.
        order, count = fresh.byte().argsort(stable=True), len(fresh) - int(fresh.sum())
        if not count:
            return guide.start(state, objectives)
        known, unknown = order[:count], order[count:]
        shift = (self.eps[place[known]] / state[0].radius[known]).log()
        old = self.found.select(place[known])
        old = DualVariables(old.slopes, {i: log + shift for i, log in old.logs.items()})
        if not len(unknown):
            return old
        new = guide.start(select(state, unknown), objectives.select(unknown))
        return DualVariables.joined([old, new]).select(order.argsort())
