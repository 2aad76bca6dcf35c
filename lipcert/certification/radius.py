"""The largest radius that the backward rungs prove, below one that was guessed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.anchored import State
from lipcert.bounds.forms import Forms, Multipliers
from lipcert.certification.backward import BackwardBatch
from lipcert.certification.search import largest_radius

# Margins that start by this share of the clean one above what they need are left there.
_EASY = 0.1
# A deployed error above this share of the clean margin is found again at every radius.
_COARSE = 0.1


def prove_radius(batch: BackwardBatch, top: Tensor) -> Tensor:
    """The largest radius proven up to ``top``, ``(B,)``, on the grid; −1 where there is none.

    One preparation and one optimisation at ``top`` serve every radius below it.
    """
    ready = batch.prepare(top, refine=False)
    state, needed = ready.state, ready.needed
    margins = batch.tools.bound.margins_in(batch.centre, batch.labels, state)
    # What the arithmetic of the deployed network adds only grows with the radius: where that
    # is little, once will do.
    clean = batch.clean.amin(1)
    coarse = ~(batch.charged <= _COARSE * clean)
    forms, others = batch.forms(margins <= needed)
    found = _sought(batch, state, forms, others, needed)
    batch.seeds = batch.seeds.renewed(forms, others, found, top)
    # What is proven at a radius is so at all below it.
    proven = torch.full_like(top[forms.rows], -math.inf)
    values = torch.full_like(proven, -math.inf)

    def slack(eps: Tensor, asked: Tensor) -> Tensor:
        rows = (asked & (eps <= top)).nonzero().flatten()
        part, own, wanted, anchored = batch, state, needed, margins
        if not bool((asked & (eps == top)).all()):
            part = batch.subset(rows)
            own, wanted = part.nearer(eps[rows], ready.select(rows), coarse[rows])
            anchored = part.tools.bound.margins_in(part.centre, part.labels, own)
            batch.charged[rows] = part.charged
        place = torch.full_like(batch.labels, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        here = (place[forms.rows] >= 0).nonzero().flatten()
        ask = here[proven[here] < eps[forms.rows[here]]]
        some = forms.select(ask).moved(place)
        value = part.certified(own, some, others[ask], found.select(ask))
        values[ask] = value - wanted[some.rows, others[ask]]
        held = ask[values[ask] > 0]
        proven[held] = eps[forms.rows[held]]
        slacks, at = anchored - wanted, (place[forms.rows[here]], others[here])
        slacks[at] = slacks[at].maximum(values[here])
        least = torch.full_like(eps, math.nan)
        least[rows] = slacks.amin(1)
        batch.spare = torch.where(eps == top, least / clean, batch.spare)
        return least

    trials = batch.tools.pace.trials
    return largest_radius(slack, top, clean=clean, limit=top, resolution=1.005, enough=trials)


def _sought(
    batch: BackwardBatch, state: State, forms: Forms, others: Tensor, wanted: Tensor
) -> Multipliers:
    """Multipliers for a radius: steps only for the margins that are not brought to what is
    ``wanted``, ``(B, K)``, and more, where they start."""
    clean = batch.clean
    change, found = batch.optimised(state, forms, others, None, 0)
    easy = wanted + _EASY * clean.amin(1, keepdim=True)
    places = forms.rows, others
    hard = (~(clean[places] + change > easy[places])).nonzero().flatten()
    part, steps = forms.select(hard), batch.tools.pace.radius_steps
    _, better = batch.optimised(state, part, others[hard], found.select(hard), steps)
    return found.replaced(hard, better)
