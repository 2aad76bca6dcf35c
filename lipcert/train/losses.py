"""What is minimised: losses of logits and margins, and the sparsity of boxes.

With ``m_j`` the estimated lower bounds of ``f_y − f_j`` over the ball, the worst logits are
``f_y − m_j``, and ``f_y`` itself for the label.

    gloro    CE over the logits and one more, "not certified": ``max_{j≠y} f_y − m_j``
             (Leino, Wang & Fredrikson, ICML 2021)
    bcp      κ CE(logits) + (1 − κ) CE(worst logits)           (Lee, Lee & Park, NeurIPS 2020)
    margin   κ CE(logits) + (1 − κ) mean max(0, gap − min_j m_j)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.activations import Clip
from lipcert.train.boxes import Estimate

LossName = Literal["gloro", "bcp", "margin"]
Loss = Callable[[Estimate, Tensor, float, float], Tensor]

_UPPER_SHARE = 0.1


def gloro(estimate: Estimate, labels: Tensor, kappa: float, gap: float) -> Tensor:
    own = estimate.logits.gather(1, labels[:, None])
    worst = own - estimate.least(labels)[:, None]
    return F.cross_entropy(torch.cat([estimate.logits, worst], 1), labels)


def bcp(estimate: Estimate, labels: Tensor, kappa: float, gap: float) -> Tensor:
    clean = F.cross_entropy(estimate.logits, labels)
    # A shift of all logits by f_y changes no cross-entropy.
    return kappa * clean + (1 - kappa) * F.cross_entropy(-estimate.margins, labels)


def margin(estimate: Estimate, labels: Tensor, kappa: float, gap: float) -> Tensor:
    clean = F.cross_entropy(estimate.logits, labels)
    hinge = (gap - estimate.least(labels)).clamp(min=0).mean()
    return kappa * clean + (1 - kappa) * hinge


LOSSES: dict[LossName, Loss] = {"gloro": gloro, "bcp": bcp, "margin": margin}


def sparsity(estimate: Estimate) -> Tensor:
    """How far each clipped neuron's box reaches into where it varies, summed over layers.

    Huang et al. (NeurIPS 2021): ``mean(relu(u − lower)) + 0.1 mean(relu(θ − l))`` for ReLU-θ; for
    the halves of MaxMin, where each neuron has one limit, both parts count in full.
    """
    total = estimate.logits.new_zeros(())
    for node, (low, high) in estimate.boxes.items():
        kind = estimate.network.nodes[node].kind
        if not isinstance(kind, Clip):
            continue
        limited = [_limit(limit, low) for limit in (kind.lower, kind.upper)]
        (lower, has_lower), (upper, has_upper) = limited
        total = total + (torch.relu(high - lower) * has_lower).mean()
        share = torch.where(has_lower > 0, _UPPER_SHARE, 1.0)
        total = total + (torch.relu(upper - low) * has_upper * share).mean()
    return total


def _limit(limit: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """The limit with 0 where there is none, and where there is one."""
    if limit is None:
        zero = like.new_zeros(())
        return zero, zero
    finite = limit.isfinite()
    return torch.where(finite, limit, 0), finite.to(like.dtype)
