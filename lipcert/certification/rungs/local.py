"""The published bounds: the verdict at the largest eps asked for, and the largest radius."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.certification.findings import Findings, Step
from lipcert.certification.published import Published
from lipcert.certification.rungs.base import SMALLEST_BALL
from lipcert.certification.samples import Samples

# What a search can miss of the largest radius, and how far above it norms that are prepared for an
# eps itself may still prove that.
_FURTHER, _NEAR = 1.001, 1.1


@dataclass(frozen=True)
class Largest:
    """Decides every sample at the largest eps, and bounds its local Lipschitz constant; where a
    ``share`` is given, only of those that estimates lead there, or so far of the distance to the
    attack: of others no norms are found."""

    published: Published
    name: str = "local"
    share: float | None = None

    def climb(self, samples: Samples, known: Findings) -> Step:
        rows = torch.arange(len(samples), device=known.margin.device)
        top = torch.full_like(known.margin, known.options.largest.rounded_up)
        if self.share is not None:
            nearer = (self.share * known.attacked).minimum(top).clamp(min=SMALLEST_BALL)
            slack = self.published.estimated_slack(samples, nearer, rough=True)
            rows = (known.correct & (slack > 0)).nonzero().flatten()
        if not len(rows):
            return Step(self.name, rows)
        return self._decided(samples.select(rows), rows, known, top[rows])

    def _decided(self, samples: Samples, rows: Tensor, known: Findings, top: Tensor) -> Step:
        published, ball = self.published, top.clamp(min=SMALLEST_BALL)
        facts = published.first(samples, ball)
        slack, deployed = published.slack(samples, top, facts)
        return Step(
            self.name,
            rows,
            radius=torch.where(known.correct[rows] & (slack > 0), top, -1.0),
            deployed=deployed,
            constant=published.constant(samples, ball, facts),
            fixed=facts.fixed,
        )


@dataclass(frozen=True)
class Radius:
    """Finds the largest radius of the method alone; in ``auto``, which so is never below ``local``,
    only where that may reach further by estimates, and at least so large a ``share`` of the
    distance to the attack; ``rough`` ones, so that norms are found only where it may."""

    published: Published
    name: str = "local"
    share: float = 0.0
    rough: bool = False

    def climb(self, samples: Samples, known: Findings) -> Step:
        published, rows = self.published, known.correct.nonzero().flatten()
        part, alone = samples.select(rows), known.options.method != "auto"
        radius, deployed = known.radius[rows], known.deployed[rows]
        top = torch.full_like(radius, known.options.largest.rounded_up).clamp(min=SMALLEST_BALL)
        further = top
        chosen = torch.arange(len(rows), device=rows.device)
        if not alone and len(rows):
            if self.share:
                further = (self.share * known.attacked[rows]).maximum(radius * _FURTHER)
            else:
                further = torch.where(radius > 0, radius * _FURTHER, top)
            further = further.clamp(min=SMALLEST_BALL, max=self._reach)
            better = published.estimated_slack(part, further, rough=self.rough) > 0
            chosen = (better & (further < known.attacked[rows])).nonzero().flatten()
        if len(chosen):
            found, error = published.largest_certified(part.select(chosen), further[chosen])
            radius, deployed = radius.clone(), deployed.clone()
            better = found > radius[chosen]
            deployed[chosen] = torch.where(better, error, deployed[chosen])
            radius[chosen] = torch.where(better, found, radius[chosen])
        for eps in known.options.eps if alone else ():
            # A little above what was found, norms prepared for this very eps may do it.
            near = torch.full_like(top, eps.rounded_up)
            tried = (radius < near) & (near <= _NEAR * radius.clamp(min=0)) & (near < top)
            chosen = tried.nonzero().flatten()
            if len(chosen):
                some, at = part.select(chosen), near[chosen]
                facts = published.prepare(some, at.clamp(min=SMALLEST_BALL))
                slack, error = published.slack(some, at, facts)
                deployed[chosen] = torch.where(slack > 0, error, deployed[chosen])
                radius[chosen] = torch.where(slack > 0, at, radius[chosen])
        return Step(self.name, rows, radius=radius, deployed=deployed)

    @property
    def _reach(self) -> float:
        return self.published.analysis.reach
