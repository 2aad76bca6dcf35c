"""The largest radius that the backward rungs prove, below one that was guessed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.anchored import State
from lipcert.bounds.forms import Forms, Multipliers
from lipcert.certification.backward import BackwardBatch
from lipcert.certification.search import largest_radius

# Margins that few steps bring this share of the clean one above what they need get no more.
_FEW_STEPS, _EASY = 6, 0.1
# A deployed error above this share of the clean margin is found again at every radius.
_COARSE = 0.1


def prove_radius(batch: BackwardBatch, top: Tensor, number: int) -> Tensor:
    """The largest radius proven up to ``top``, ``(B,)``; −1 where there is none.

    One preparation and one optimisation at ``top`` serve every radius below it.
    """
    ready = batch.prepare(top, number, refine=False)
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

    def slack(eps: Tensor) -> Tensor:
        own, wanted = batch.nearer(eps, ready, coarse)
        margins = batch.tools.bound.margins_in(batch.centre, batch.labels, own)
        ask = ((eps <= top)[forms.rows] & (proven < eps[forms.rows])).nonzero().flatten()
        some = forms.select(ask)
        found_here = batch.certified(own, some, others[ask], found.select(ask))
        values[ask] = found_here - wanted[some.rows, others[ask]]
        held = ask[values[ask] > 0]
        proven[held] = eps[forms.rows[held]]
        slacks = margins - wanted
        slacks[forms.rows, others] = slacks[forms.rows, others].maximum(values)
        least = slacks.amin(1)
        batch.spare = torch.where(eps == top, least / clean, batch.spare)
        return torch.where(eps <= top, least, torch.nan)

    trials = batch.tools.pace.trials
    return largest_radius(slack, top, clean=clean, limit=top, resolution=1.005, enough=trials)


def _sought(
    batch: BackwardBatch, state: State, forms: Forms, others: Tensor, wanted: Tensor
) -> Multipliers:
    """Multipliers for a radius: most steps for the margins that few do not bring to what is
    ``wanted``, ``(B, K)``, and more."""
    steps = batch.tools.pace.radius_steps
    few = min(_FEW_STEPS, steps)
    change, found = batch.optimised(state, forms, others, None, few)
    places = forms.rows, others
    easy = wanted[places] + _EASY * batch.clean.amin(1)[forms.rows]
    hard = (~(batch.clean[places] + change > easy)).nonzero().flatten()
    part = found.select(hard), forms.select(hard), others[hard]
    _, better = batch.optimised(state, part[1], part[2], part[0], steps - few)
    return found.replaced(hard, better)
