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
from lipcert.network import Network

RUNGS = ("local", "dual", "refined")

# An eps this far above the guessed radius is tried by itself: more steps may do it.
_NEAR = 3.0
_SMALLEST_BALL = 1e-30


def climb(
    tools: Backward, attacked: Network, batch: Batch, findings: Findings, rows: Tensor
) -> None:
    """Attack, then the radius by the duals, then each eps that is still within reach.

    ``batch``: the correctly classified samples, ``rows`` of the ``findings``.
    """
    pace, options = tools.pace, findings.options
    attack = nearest(
        attacked, batch.x, batch.labels, steps=pace.attack_steps, restarts=pace.attack_restarts,
        pixel_domain=options.pixel_domain, seed=options.seed, dtype=attacked.anchor.dtype,
    )  # fmt: skip
    findings.break_by(rows, attack)
    findings.passed("attack", rows)

    every = BackwardBatch(tools, batch.x, batch.labels, batch.streams)
    limit = attack.radius.clamp(max=batch.diameter)
    first = torch.minimum(torch.full_like(limit, options.largest.rounded_up), limit)
    guess = every.guess(torch.minimum(first, limit / 3).clamp(min=_SMALLEST_BALL), limit)
    top = torch.where(guess > 0, guess, first).clamp(min=_SMALLEST_BALL)
    findings.improve(rows, every.radius(top, 0), 1, every.charged)
    findings.spent[rows] += every.spent
    findings.passed("dual", rows)

    for number, eps in enumerate(options.eps):
        near = torch.full_like(limit, eps.rounded_up)
        for refine in (False, True) if pace.refine is not None else (False,):
            open_ = (findings.radius[rows] < near) & (near < attack.radius)
            chosen = (open_ & (near <= _NEAR * guess)).nonzero().flatten()
            if not chosen.numel():
                break
            some, at = every.subset(chosen), near[chosen].clamp(min=_SMALLEST_BALL)
            _, state = some.prepare(at, 1 + 2 * number + refine, refine=refine)
            proven = torch.where(some.proven(at, state), near[chosen], -1.0)
            findings.improve(rows[chosen], proven, 2 if refine else 1, some.charged)
            findings.spent[rows[chosen]] += some.spent
            findings.passed(RUNGS[2 if refine else 1], rows[chosen])
