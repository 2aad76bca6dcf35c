"""The largest radius that the backward rungs prove: guessed, then aimed at, then proven below.

The guess takes estimated norms and float32; it only decides where the dear part, norms and
multipliers, is made once for all smaller radii.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipcert.bounds.anchored import State, select
from lipcert.bounds.forms import Forms, Multipliers
from lipcert.certification.backward import FORMS_AT_ONCE, BackwardBatch
from lipcert.certification.search import largest_radius
from lipcert.norms import GramMap, SegmentNorms

# After its first radius a guess looks only at margins that come within so much of the clean one of
# the nearest.
_ASIDE = 0.3
# At its first radius it takes so many times the steps of the others.
_FIRST_GUESS = 2
# Margins that few steps bring this share of the clean one above what they need get no more.
_FEW_STEPS, _EASY = 6, 0.1
# A deployed error above this share of the clean margin is found again at every radius.
_COARSE = 0.1


def guess_radius(batch: BackwardBatch, start: Tensor, limit: Tensor) -> Tensor:
    """About the largest radius that the dual proves: ``(B,)``, −1 where there is none."""
    bound, guide = batch.tools.rough, batch.tools.guide
    centre = bound.propagation.anchors(batch.x.float())

    def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
        return batch.tools.norms.guessed(norm, mapping, batch.streams)

    clean = batch.clean.amin(1)
    asked, values = torch.full_like(start, torch.nan), torch.full_like(start, torch.nan)
    which: Tensor | None = None

    def slack(eps: Tensor) -> Tensor:
        nonlocal asked, values, which
        _, state = bound.prepare_state(centre, eps.float(), norm_of)
        margins = bound.margins_in(centre, batch.labels, state)
        # The first look starts from nothing.
        steps = batch.tools.pace.guess_steps * (_FIRST_GUESS if which is None else 1)
        which = _nearest(batch, margins) if which is None else which
        # What a sample gets must not depend on how long others take.
        fresh = eps != asked
        best = torch.full_like(margins, torch.inf, dtype=torch.float64)
        for forms, others in _some_forms(batch, which & fresh[:, None]):
            own = select(state, forms.rows)
            start = batch.seeds.start(guide, own, forms, others)
            change, found = guide.optimise(own, forms, start, steps)
            batch.seeds = batch.seeds.renewed(forms, others, found, eps)
            value = batch.clean[forms.rows, others] + change.double()
            anchored = margins[forms.rows, others].double()
            best[forms.rows, others] = value.maximum(anchored)
        asked, values = eps, torch.where(fresh, best.amin(1), values)
        near = best < (values + _ASIDE * clean)[:, None]
        which = torch.where(fresh[:, None], near, which)
        return values

    return largest_radius(
        slack, start, clean=clean, limit=limit, resolution=1.01, steps=batch.tools.pace.guesses
    )


def _nearest(batch: BackwardBatch, margins: Tensor) -> Tensor:
    """The margins that seem nearest, a few of each sample: ``(B, K)``."""
    margins = margins.scatter(1, batch.labels[:, None], torch.inf)
    count = min(batch.tools.pace.guessed_classes, margins.shape[1] - 1)
    nearest = margins.topk(count, 1, largest=False)
    return torch.zeros_like(margins).scatter(1, nearest[1], 1.0) > 0


def _some_forms(batch: BackwardBatch, which: Tensor) -> Iterator[tuple[Forms, Tensor]]:
    """Those margins' forms and classes in float32, some at a time."""
    forms, others = batch.forms(which)
    for some in torch.split(torch.arange(len(forms)), FORMS_AT_ONCE):
        yield forms.select(some).to(torch.float32), others[some]


def prove_radius(batch: BackwardBatch, top: Tensor, number: int) -> Tensor:
    """The largest radius proven up to ``top``, ``(B,)``; −1 where there is none.

    One preparation and one optimisation at ``top`` serve every radius below it.
    """
    prepared, state = batch.prepare(top, number, refine=False)
    margins = batch.tools.bound.margins_in(batch.centre, batch.labels, state)
    # What the arithmetic of the deployed network adds only grows with the radius: where that
    # is little, once will do.
    needed = batch.needed(top, state)
    clean = batch.clean.amin(1)
    coarse = (batch.charged > _COARSE * clean).nonzero().flatten()
    again = batch.subset(coarse)
    forms, others = batch.forms(margins <= needed)
    found = _sought(batch, state, forms, others, needed)
    batch.seeds = batch.seeds.renewed(forms, others, found, top)
    # What is proven at a radius is so at all below it.
    proven = torch.full_like(top[forms.rows], -math.inf)
    values = torch.full_like(proven, -math.inf)

    def slack(eps: Tensor) -> Tensor:
        own = batch.tools.bound.state(batch.centre, batch.rounded.ball(eps), prepared)
        margins = batch.tools.bound.margins_in(batch.centre, batch.labels, own)
        wanted = needed.clone()
        if len(coarse):
            wanted[coarse] = again.needed(eps[coarse], select(own, coarse))
            batch.charged[coarse] = again.charged
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
