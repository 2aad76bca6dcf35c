"""Duals: the largest radius, and the verdict at an eps that is within reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.refined import Refinement
from lipcert.certification.duals import Duals
from lipcert.certification.findings import Findings, Step
from lipcert.certification.guess import Guess
from lipcert.certification.radius import Proven, prove_radius
from lipcert.certification.rungs.base import SMALLEST_BALL, open_at
from lipcert.certification.samples import Samples
from lipcert.certification.search import on_grid
from lipcert.certification.warm_start import WarmStart

# Rounding that seems to cost more than this share of a margin is looked into first.
_DOUBT = 0.1
# A radius is sought further out where more than this share of the margin is left, by so much of
# that share, and nearer where it was found below this share of the radius that was aimed at.
_SPARE, _RAISE, _SHORT = 0.03, 0.75, 0.94
# An eps that is by so much further out than what a radius is aimed at is as good an aim.
_NEAR = 1.04


@dataclass(frozen=True)
class DualRadius:
    """Finds the largest radius: it is guessed, then proven at and below the place of the guess."""

    duals: Duals
    name: str = "dual"

    def climb(self, samples: Samples, known: Findings) -> Step:
        duals, rows = self.duals, known.correct.nonzero().flatten()
        if not len(rows):
            return Step(self.name, rows)
        if known.seconds_left <= 0:
            return Step(self.name, rows[:0], late=rows)
        part = samples.anchored.select(rows)
        limit = known.attacked[rows].clamp(max=duals.analysis.reach)
        doubtful = ~(duals.analysis.deployment.usual <= _DOUBT * part.decisive)
        guess = Guess.of(duals, part, limit, doubtful)
        hopeless = guess.hopeless
        radius, reach = torch.full_like(limit, -1), torch.full_like(limit, -1)
        deployed, start = torch.full_like(limit, torch.nan), WarmStart.none(part.clean)
        alive = (~hopeless).nonzero().flatten()
        late = rows[:0]
        if len(alive):
            if len(alive) < len(rows):
                part, limit = part.select(alive), limit[alive]
                guess = Guess.of(duals, part, limit, doubtful[alive])
            first = torch.full_like(limit, known.options.largest.rounded_up)
            reach[alive], top, begun = guess.radius((limit / 3).clamp(min=SMALLEST_BALL), first)
            top = _aimed(top.minimum(limit).clamp(min=SMALLEST_BALL), known)
            found = prove_radius(duals, part, top, begun)
            start = found.start.spread(alive, len(rows))
            radius[alive], deployed[alive], still = self._again(part, top, limit, found, known)
            late = rows[alive[still]]
        return Step(
            self.name, rows, radius=radius, deployed=deployed, guess=reach, hopeless=hopeless,
            start=start, late=late,
        )  # fmt: skip

    def _again(
        self, samples: Samples, top: Tensor, limit: Tensor, first: Proven, known: Findings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gives radii with the deployed errors that they were charged, and the places that were
        left out for want of time. Where a radius was certified with much of the margin to spare it
        is sought further out, and where it came out far below the place that all was prepared for,
        between the two."""
        pace = self.duals.analysis.pace
        low, deployed, spare = first.radius.clone(), first.deployed.clone(), first.spare
        high = torch.where(low < top, top, torch.inf)
        chosen = torch.arange(0, device=top.device)
        for _ in range(pace.again if pace.own_norms else 0):
            far = (spare > _SPARE) & high.isinf() & (low < limit)
            chosen = (far | (high.isfinite() & (low < _SHORT * high))).nonzero().flatten()
            if not len(chosen):
                break
            if known.seconds_left <= 0:
                return low, deployed, chosen
            between = (torch.maximum(low, high / 4) * high).sqrt()
            further = torch.minimum(low * (1 + _RAISE * spare), limit)
            aim = _aimed(torch.where(far, further, between)[chosen], known)
            some = samples.select(chosen)
            found = prove_radius(self.duals, some, aim, first.start.select(chosen))
            better, reached = found.radius > low[chosen], found.radius >= aim
            deployed[chosen] = torch.where(better, found.deployed, deployed[chosen])
            high[chosen] = torch.where(reached, high[chosen], aim)
            low[chosen] = torch.maximum(low[chosen], found.radius)
            spare = spare.index_copy(0, chosen, torch.where(reached, found.spare, 0))
        return low, deployed, chosen[:0]


def _aimed(radii: Tensor, known: Findings) -> Tensor:
    """Radii on the grid, or at an eps that was asked for where one is hardly further out: the
    radius then is the verdict too."""
    aims = on_grid(radii)
    for eps in (eps.rounded_up for eps in known.options.eps):
        aims = torch.where((aims < eps) & (eps <= _NEAR * aims), eps, aims)
    return aims


@dataclass(frozen=True)
class DualWithin:
    """Guesses, for verdicts alone, of which samples duals reach ``eps``; proves nothing."""

    duals: Duals
    eps: float
    name: str = "dual"

    def climb(self, samples: Samples, known: Findings) -> Step:
        duals, rows = self.duals, open_at(known, self.eps).nonzero().flatten()
        if not len(rows):
            return Step(self.name, rows)
        if known.seconds_left <= 0:
            return Step(self.name, rows[:0], late=rows)
        part, pace = samples.anchored.select(rows), duals.analysis.pace
        at = torch.full_like(known.radius[rows], self.eps).clamp(min=SMALLEST_BALL)
        limit = known.attacked[rows].clamp(max=duals.analysis.reach).maximum(at)
        doubtful = ~(duals.analysis.deployment.usual <= _DOUBT * part.decisive)
        guess = Guess.of(duals, part, limit, doubtful)
        # Who goes on only up to the guess has to know no more than whether it holds here.
        looks = 1 if pace.near <= 1 else None
        found, nearly, start = guess.radius(at, torch.zeros_like(at), looks)
        reach = torch.where(found > 0, found, nearly)
        # What was looked at lies on a grid, right below.
        reach = torch.where(reach >= on_grid(at), reach.maximum(at), reach)
        return Step(self.name, rows, guess=reach, hopeless=guess.hopeless, start=start)


@dataclass(frozen=True)
class DualAt:
    """Decides at ``eps``, with boxes refined as ``refinement`` says: more steps may do it, further
    out than the radius was guessed."""

    duals: Duals
    eps: float
    refinement: Refinement | None
    name: str = "dual"

    def climb(self, samples: Samples, known: Findings) -> Step:
        duals, pace = self.duals, self.duals.analysis.pace
        reach = pace.near * torch.maximum(known.guess, known.radius)
        rows = (open_at(known, self.eps) & ~known.hopeless & (self.eps <= reach)).nonzero()
        rows = rows.flatten()
        if not len(rows):
            return Step(self.name, rows)
        if known.seconds_left <= 0:
            return Step(self.name, rows[:0], late=rows)
        some = samples.anchored.select(rows)
        start = WarmStart.none(some.clean) if known.start is None else known.start.select(rows)
        at = torch.full_like(known.radius[rows], self.eps).clamp(min=SMALLEST_BALL)
        region = duals.prepare(some, at, self.refinement)
        open_ = duals.prover.verdict(some, region, start, rows)
        return Step(
            self.name, rows, radius=torch.where(open_.proven, at, -1.0), deployed=region.deployed,
            open=open_,
        )  # fmt: skip
