"""Branch and bound of the margins that the rung before has left open."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lipcert.certification.duals import Duals
from lipcert.certification.findings import Findings, Step
from lipcert.certification.rungs.base import SMALLEST_BALL
from lipcert.certification.samples import Samples


@dataclass(frozen=True)
class SplitAt:
    """Splits each margin into so many ``leaves``, on the boxes that were prepared for ``eps``."""

    duals: Duals
    eps: float
    leaves: int
    name: str = "split"

    def climb(self, samples: Samples, known: Findings) -> Step:
        open_, rows = known.open, torch.arange(0, device=known.label.device)
        if open_ is None:
            return Step(self.name, rows)
        if (left := known.seconds_left) <= 0:
            return Step(self.name, rows, late=open_.rows)
        some = samples.anchored.select(open_.rows)
        proven = self.duals.prover.split(some, open_, self.leaves, left)
        at = torch.full_like(known.radius[open_.rows], self.eps).clamp(min=SMALLEST_BALL)
        return Step(
            self.name, open_.rows, radius=torch.where(proven, at, -1.0),
            deployed=open_.region.deployed,
        )  # fmt: skip
