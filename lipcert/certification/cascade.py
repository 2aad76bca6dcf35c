"""The rungs of ``auto``: an attack from above, then dearer and dearer bounds from below.

A sample leaves the cascade at the first rung that decides it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.certification.attack import nearest
from lipcert.certification.backward import Backward, BackwardBatch
from lipcert.certification.batch import Batch
from lipcert.certification.findings import Findings
from lipcert.certification.guess import Guess
from lipcert.certification.radius import prove_radius
from lipcert.certification.search import on_grid
from lipcert.certification.tube import TubeBound
from lipcert.network import Network

RUNGS = ("local", "dual", "refined", "split")
# Of deep networks.
TUBE_RUNGS = ("local", "tube")

# Before boxes are refined a margin is split into no more leaves than this.
_FEW_LEAVES = 48
# Rounding that seems to cost more than this share of a margin is looked into first.
_DOUBT = 0.1
# A radius is sought further out where more than this share of the margin is left, by so much of
# that share, and nearer where it was found below this share of the radius that was aimed at.
_SPARE, _RAISE, _SHORT = 0.05, 0.75, 0.88
_SMALLEST_BALL = 1e-30


def climb(
    tools: Backward | TubeBound, attacked: Network, batch: Batch, findings: Findings, rows: Tensor,
    *, seed: int,
) -> None:  # fmt: skip
    """Attack, then the radius by the duals, then each eps that is still within reach.

    ``batch``: the correctly classified samples, ``rows`` of the ``findings``. ``seed``: of the
    points that the attack starts from.
    """
    pace, options = tools.pace, findings.options
    attack = nearest(
        attacked, batch.x, batch.labels, within=batch.diameter,
        steps=pace.attack_steps, restarts=pace.attack_restarts,
        pixel_domain=options.pixel_domain, seed=seed, dtype=attacked.anchor.dtype,
    )  # fmt: skip
    findings.break_by(rows, attack)
    findings.passed("attack", rows)

    if findings.seconds_left(rows) <= 0:
        return
    limit = attack.radius.clamp(max=batch.diameter)
    if isinstance(tools, TubeBound):
        tools.climb(batch, findings, rows, limit)
        return
    every = BackwardBatch(tools, batch.x, batch.labels, batch.allowance, batch.deployed)
    doubtful = ~(tools.deployment.usual <= _DOUBT * every.clean.amin(1))
    start = Guess(every, limit, doubtful)
    if bool(start.hopeless.any()):
        alive = (~start.hopeless).nonzero().flatten()
        findings.passed("dual", rows)
        if not len(alive):
            return
        every, rows, limit = every.subset(alive), rows[alive], limit[alive]
        start = Guess(every, limit, doubtful[alive])
    guess = start.radius((limit / 3).clamp(min=_SMALLEST_BALL))
    first = torch.minimum(torch.full_like(limit, options.largest.rounded_up), limit)
    top = torch.where(guess > 0, (guess * start.ahead).minimum(limit), first)
    top = on_grid(top.clamp(min=_SMALLEST_BALL))
    radius = prove_radius(every, top)
    findings.improve(rows, radius, 1, every.charged)
    if pace.own_norms:
        _again(every, radius, top, limit, findings, rows)
    findings.passed("dual", rows)

    for eps in options.eps:
        near = torch.full_like(limit, eps.rounded_up)
        # More steps may do it, further out than was guessed.
        reach = pace.near * torch.maximum(guess, findings.radius[rows])
        for rung in (1, 2)[: 1 if pace.refine is None else 2]:
            open_ = (findings.radius[rows] < near) & (near < findings.attacked[rows])
            chosen = (open_ & (near <= reach)).nonzero().flatten()
            if not chosen.numel() or findings.seconds_left(rows[chosen]) <= 0:
                break
            some, at = every.subset(chosen), near[chosen].clamp(min=_SMALLEST_BALL)
            ready = some.prepare(at, refine=rung == 2)
            margins = some.verdict(ready)
            _keep(findings, rows[chosen], at, margins.proven, rung, some)
            if pace.leaves and (left := findings.seconds_left(rows[chosen])) > 0:
                leaves = pace.leaves if rung == 2 else min(pace.leaves, _FEW_LEAVES)
                margins = some.split(ready.state, margins, leaves, left)
                _keep(findings, rows[chosen], at, margins.proven, 3, some)


def _again(
    every: BackwardBatch, radius: Tensor, top: Tensor, limit: Tensor, findings: Findings,
    rows: Tensor,
) -> None:  # fmt: skip
    """Where a radius was certified with much of the margin to spare it is sought further out, and
    where it came out far below the place that all was prepared for, between the two."""
    low, spare = radius.clone(), every.spare
    high = torch.where(radius < top, top, torch.inf)
    for _ in range(every.tools.pace.again):
        far = (spare > _SPARE) & high.isinf() & (low < limit)
        chosen = (far | (high.isfinite() & (low < _SHORT * high))).nonzero().flatten()
        if not chosen.numel() or findings.seconds_left(rows[chosen]) <= 0:
            return
        between = (torch.maximum(low, high / 4) * high).sqrt()
        further = torch.minimum(low * (1 + _RAISE * spare), limit)
        aim = on_grid(torch.where(far, further, between)[chosen])
        batch = every.subset(chosen)
        found = prove_radius(batch, aim)
        findings.improve(rows[chosen], found, 1, batch.charged)
        reached = found >= aim
        high[chosen] = torch.where(reached, high[chosen], aim)
        low[chosen] = torch.maximum(low[chosen], found)
        spare = spare.index_copy(0, chosen, torch.where(reached, batch.spare, 0))


def _keep(
    findings: Findings, rows: Tensor, eps: Tensor, proven: Tensor, rung: int, batch: BackwardBatch
) -> None:
    """What a rung has proven at ``eps``."""
    findings.improve(rows, torch.where(proven, eps, -1.0), rung, batch.charged)
    findings.passed(RUNGS[rung], rows)
