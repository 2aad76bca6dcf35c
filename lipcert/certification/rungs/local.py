"""The published bounds: the verdict at the largest eps asked for, and the largest radius."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lipcert.certification.assured import ROUGH_STEPS
from lipcert.certification.findings import Findings, Step
from lipcert.certification.published import Published
from lipcert.certification.rungs.base import SMALLEST_BALL, open_at
from lipcert.certification.samples import Samples

# What a search can miss of the largest radius, and how far above it norms that are prepared for an
# eps itself may still prove that.
_FURTHER, _NEAR = 1.001, 1.1
# Of estimates of norms: the first tells most samples whose margins cannot be proven, the second the
# others. An estimate in float32 may be off by this share of the clean margin.
_LOOKS, _OFF = (3, ROUGH_STEPS), 1e-3


@dataclass(frozen=True)
class Largest:
    """Decides every sample at the largest eps, and bounds its local Lipschitz constant."""

    published: Published
    name: str = "local"

    def climb(self, samples: Samples, known: Findings) -> Step:
        published, options = self.published, known.options
        top = torch.full_like(known.margin, options.largest.rounded_up)
        ball = top.clamp(min=SMALLEST_BALL)
        facts = published.first(samples, ball)
        slack, deployed = published.slack(samples, top, facts)
        return Step(
            self.name,
            torch.arange(len(samples), device=top.device),
            radius=torch.where(known.correct & (slack > 0), top, -1.0),
            deployed=deployed,
            constant=published.constant(samples, ball, facts),
            fixed=facts.fixed,
        )


@dataclass(frozen=True)
class LocalAt:
    """Decides at ``eps`` by norms of a sample's own, which are proven only where estimates, from
    below, say that they would do."""

    published: Published
    eps: float
    name: str = "local"

    def climb(self, samples: Samples, known: Findings) -> Step:
        published, rows = self.published, open_at(known, self.eps).nonzero().flatten()
        for steps in _LOOKS:
            some = samples.select(rows)
            at = torch.full_like(known.margin[rows], self.eps)
            ball = at.clamp(min=SMALLEST_BALL)
            left = published.estimated_slack(some, ball, steps) > -_OFF * some.decisive
            rows = rows[left]
        if not len(rows):
            return Step(self.name, rows)
        some, at, ball = samples.select(rows), at[left], ball[left]
        facts = published.prepare(some, ball)
        slack, deployed = published.slack(some, at, facts)
        constant = None
        if self.eps == known.options.largest.rounded_up:
            constant = published.constant(some, ball, facts).minimum(known.constant[rows])
        return Step(
            self.name, rows, radius=torch.where(slack > 0, at, -1.0), deployed=deployed,
            constant=constant,
        )  # fmt: skip


@dataclass(frozen=True)
class Radius:
    """Finds the largest radius of the method alone; in ``auto``, which so is never below ``local``,
    only where that may reach further by estimates, and at least so large a ``share`` of the
    distance to the attack."""

    published: Published
    name: str = "local"
    share: float = 0.0

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
            better = published.estimated_slack(part, further) > 0
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
