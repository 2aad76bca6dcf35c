"""The largest radius that the duals prove, below one that was guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.objectives import DualVariables, Objectives
from lipcert.certification.duals import Duals
from lipcert.certification.margins import Region
from lipcert.certification.samples import Samples
from lipcert.certification.search import largest_radius
from lipcert.certification.warm_start import WarmStart

# Margins that start by this share of the clean one above what they need are left there.
_EASY = 0.1
# A deployed error above this share of the clean margin is found again at every radius.
_COARSE = 0.1


@dataclass(frozen=True, eq=False)
class Proven:
    """Radii, −1 where there is none, with the deployed error that they were charged, and what was
    ``spare`` of the clean margin where all was prepared: ``(B,)`` each. ``start``: the multipliers
    that proved them."""

    radius: Tensor
    deployed: Tensor
    spare: Tensor
    start: WarmStart


def prove_radius(duals: Duals, samples: Samples, top: Tensor, start: WarmStart) -> Proven:
    """The largest radius proven up to ``top``, ``(B,)``, on the grid.

    One preparation and one optimisation at ``top`` serve every radius below it.
    """
    prover = duals.prover
    region = duals.prepare(samples, top, duals.bound.plan.refinement)
    head, labels = duals.analysis.head, samples.labels
    margins = prover.anchored_margins(samples, region.state)
    # What the arithmetic of the deployed network adds only grows with the radius: where that
    # is little, once will do.
    clean = samples.decisive
    coarse = ~(region.deployed <= _COARSE * clean)
    objectives, others = prover.objectives(samples, head.is_open(margins - region.needed))
    found = _sought(duals, samples, region, objectives, others, start)
    # What is proven at a radius is so at all below it.
    proven = torch.full_like(top[objectives.rows], -math.inf)
    values, deployed = torch.full_like(proven, -math.inf), region.deployed.clone()
    spare = torch.zeros_like(top)

    def slack(eps: Tensor, asked: Tensor) -> Tensor:
        rows = (asked & (eps <= top)).nonzero().flatten()
        part, own, anchored = samples, region, margins
        if len(rows) < len(eps) or not bool((eps == top).all()):
            part = samples.select(rows)
            own = duals.nearer(part, eps[rows], region.select(rows), coarse[rows])
            anchored = prover.anchored_margins(part, own.state)
        place = torch.full_like(samples.labels, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        here = (place[objectives.rows] >= 0).nonzero().flatten()
        # Where margins count by more than their sign, they are worth more at a smaller one.
        known = proven[here] >= eps[objectives.rows[here]]
        ask = here[~known] if head.pairwise else here
        some = objectives.select(ask).moved(place)
        value = prover.certified(part, own.state, some, others[ask], found.select(ask))
        values[ask] = value - own.needed[some.rows, others[ask]]
        proven[ask] = torch.where(values[ask] > 0, eps[objectives.rows[ask]], proven[ask])
        slacks, at = anchored - own.needed, (place[objectives.rows[here]], others[here])
        slacks[at] = slacks[at].maximum(values[here])
        least = torch.full_like(eps, math.nan)
        least[rows] = head.least(slacks, labels[rows])
        spare.copy_(torch.where(asked & (eps == top), least / clean, spare))
        # What was tried last and held is the largest yet.
        deployed[rows] = torch.where(least[rows] > 0, own.deployed, deployed[rows])
        return least

    radius = largest_radius(
        slack, top, clean=clean, limit=top, resolution=1.005, enough=duals.analysis.pace.trials
    )
    return Proven(radius, deployed, spare, start.renewed(objectives, others, found, top))


def _sought(
    duals: Duals,
    samples: Samples,
    region: Region,
    objectives: Objectives,
    others: Tensor,
    start: WarmStart,
) -> DualVariables:
    """DualVariables for a region: steps only for the margins that are not brought to what they
    need, and more, where they start."""
    prover, clean, decisive = duals.prover, samples.clean, samples.decisive
    change, found = prover.optimised(samples, region.state, objectives, others, start, 0)
    easy = region.needed + _EASY * decisive[:, None]
    places = objectives.rows, others
    short = ~(clean[places] + change > easy[places])
    hard = (short | (not duals.analysis.head.pairwise)).nonzero().flatten()
    part, steps = objectives.select(hard), duals.analysis.pace.radius_steps
    _, better = prover.optimised(
        samples, region.state, part, others[hard], found.select(hard), steps
    )
    return found.replaced(hard, better)
