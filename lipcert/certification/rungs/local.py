"""The published bounds: the verdict at the largest eps asked for, and the largest radius."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.certification.assured import EXCESS
from lipcert.certification.findings import Findings, Step
from lipcert.certification.published import Published
from lipcert.certification.rungs.base import SMALLEST_BALL, open_at
from lipcert.certification.samples import Samples

# What a search can miss of the largest radius, and how far above it norms that are prepared for an
# eps itself may still prove that.
_FURTHER, _NEAR = 1.001, 1.1
# Of Lanczos for an estimate of a norm: from what the whole segment stretches most, four steps tell
# all that twelve do. An estimate in float32 may be off by this share of the clean margin, and no
# more than so much of it counts as left.
_STEPS, _OFF, _MOST = 4, 1e-3, 0.5


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
        elif not known.options.radii:
            # Nothing is asked of the others.
            rows = known.correct.nonzero().flatten()
        if not len(rows):
            return Step(self.name, rows)
        return self._decided(samples.select(rows), rows, known, top[rows])

    def _decided(self, samples: Samples, rows: Tensor, known: Findings, top: Tensor) -> Step:
        published, ball = self.published, top.clamp(min=SMALLEST_BALL)
        boxes = published.boxes(samples, ball)
        facts = published.first(samples, ball, boxes)
        slack, deployed = published.slack(samples, top, facts, boxes)
        return Step(
            self.name,
            rows,
            radius=torch.where(known.correct[rows] & (slack > 0), top, -1.0),
            deployed=deployed,
            constant=published.constant(samples, ball, facts, boxes),
            fixed=facts.fixed,
        )


@dataclass(frozen=True)
class LocalAt:
    """Decides at ``eps`` by norms of a sample's own, which are proven only where estimates, from
    below, say that they would do, and first no nearer to the truth than what these leave room for.
    """

    published: Published
    eps: float
    name: str = "local"

    def climb(self, samples: Samples, known: Findings) -> Step:
        rows, excess = self._promising(samples, known)
        tried, radius, deployed = rows, known.radius.clone(), known.deployed.clone()
        constant = known.constant.clone()
        while len(rows):
            some, at = samples.select(rows), torch.full_like(radius[rows], self.eps)
            ball = at.clamp(min=SMALLEST_BALL)
            boxes = self.published.boxes(some, ball)
            facts = self.published.prepare(some, ball, excess, boxes)
            slack, deployed[rows] = self.published.slack(some, at, facts, boxes)
            radius[rows] = torch.where(slack > 0, at, radius[rows])
            if self.eps == known.options.largest.rounded_up:
                found = self.published.constant(some, ball, facts, boxes)
                constant[rows] = constant[rows].minimum(found)
            rows, excess = (rows[~(slack > 0)] if excess > EXCESS else rows[:0]), EXCESS
        return Step(
            self.name, tried, radius=radius[tried], deployed=deployed[tried],
            constant=constant[tried],
        )  # fmt: skip

    def _promising(self, samples: Samples, known: Findings) -> tuple[Tensor, float]:
        """Finds the rows whose margins are proven if estimates are right, and by how much norms may
        exceed them: at ``1 + x`` times each of ``L`` norms that follow each other a margin loses
        ``(1 + x)^L`` times as much."""
        rows = open_at(known, self.eps).nonzero().flatten()
        if not len(rows):
            return rows, EXCESS
        some, at = samples.select(rows), torch.full_like(known.radius[rows], self.eps)
        left = self.published.estimated_slack(some, at.clamp(min=SMALLEST_BALL), _STEPS)
        left = left / some.decisive
        layers = max(1, len(self.published.bound.layers.edges))
        room = (1 - left.clamp(max=_MOST)).pow(-1 / layers) - 1
        chosen = left > -_OFF
        excess = (room[chosen] / 2).clamp(min=EXCESS)
        return rows[chosen], float(excess.min()) if len(excess) else EXCESS


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
