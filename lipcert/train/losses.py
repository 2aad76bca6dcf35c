"""What is minimised: losses of each sample by its logits and margins, and the sparsity of boxes.

With ``m_j`` the estimated lower bounds of ``f_y − f_j`` over the ball, the worst logits are
``f_y − m_j``, and ``f_y`` itself for the label. ``CE_T`` is ``T CE(logits / T)``.

    gloro    CE over the logits and one more, "not certified": ``max_{j≠y} f_y − m_j``
             (Leino, Wang & Fredrikson, ICML 2021)
    bcp      κ CE(logits) + (1 − κ) CE(worst logits)           (Lee, Lee & Park, NeurIPS 2020)
    margin   κ CE(logits) + (1 − κ) max(0, gap − min_j m_j)
    emma     CE of the label's logit and the others raised by ``s_j (f_y − f_j − m_j)``, with
             ``s_j`` the share of the ball within which j does not overtake, held fixed: a class
             that is far away asks for no more room than it needs
             (Hu, Zou, Wang, Leino & Fredrikson, NeurIPS 2023)
    annealed κ CE(logits) + (1 − κ) (1 − p)⁵ CE_¾(worst logits), ``p`` the label's share of
             their softmax: samples that are certified with room lose their weight
             (Lai et al., ICML 2025)
    offset   CE_¼(f − 2√2 eps at the label): for networks whose every layer is 1-Lipschitz, which
             need no bound to be trained; the margin of such a network falls by no more than
             √2 eps in the ball    (after Prach & Lampert, ECCV 2022)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.network.activations import Clip
from lipcert.train.estimate import Estimate

LossName = Literal["gloro", "bcp", "margin", "emma", "annealed", "offset"]


@dataclass(frozen=True)
class Aim:
    """What a step asks for: the clean loss's weight ``kappa``, the margin ``gap`` that the hinge
    asks for, and the radius ``eps`` of the balls."""

    kappa: float
    gap: float
    eps: float


# Of a batch's estimate and labels: the loss of each sample, ``(B,)``.
Loss = Callable[[Estimate, Tensor, Aim], Tensor]

# Of the distance to the upper threshold, where a neuron could as well fall below the lower one.
_UPPER_SHARE = 0.1
# The published temperatures and the exponent of the weight.
_ANNEALED_TEMPERATURE, _ANNEALED_POWER, _OFFSET_TEMPERATURE = 0.75, 5, 0.25
# At which classes that the teacher holds for impossible still differ.
_DISTILLED_TEMPERATURE = 2.0


def gloro(estimate: Estimate, labels: Tensor, aim: Aim) -> Tensor:
    own = estimate.logits.gather(1, labels[:, None])
    worst = own - estimate.least(labels)[:, None]
    return _each(torch.cat([estimate.logits, worst], 1), labels)


def bcp(estimate: Estimate, labels: Tensor, aim: Aim) -> Tensor:
    # A shift of all logits by f_y changes no cross-entropy.
    return _mixed(aim, _each(estimate.logits, labels), _each(-estimate.margins, labels))


def margin(estimate: Estimate, labels: Tensor, aim: Aim) -> Tensor:
    hinge = (aim.gap - estimate.least(labels)).clamp(min=0)
    return _mixed(aim, _each(estimate.logits, labels), hinge)


def emma(estimate: Estimate, labels: Tensor, aim: Aim) -> Tensor:
    own = estimate.logits.gather(1, labels[:, None])
    lead = own - estimate.logits
    # What the ball can take from the lead: nothing at the label itself, whose lead is 0.
    reach = lead - estimate.margins
    share = (lead / reach.clamp(min=1e-12)).clamp(0, 1).detach()
    return _each(estimate.logits + share * reach, labels)


def annealed(estimate: Estimate, labels: Tensor, aim: Aim) -> Tensor:
    each = _each(-estimate.margins / _ANNEALED_TEMPERATURE, labels)
    weight = (1 - torch.exp(-each)) ** _ANNEALED_POWER
    return _mixed(aim, _each(estimate.logits, labels), _ANNEALED_TEMPERATURE * weight * each)


def offset(estimate: Estimate, labels: Tensor, aim: Aim) -> Tensor:
    own = F.one_hot(labels, estimate.logits.shape[1])
    lowered = estimate.logits - 2 * math.sqrt(2) * aim.eps * own
    return _OFFSET_TEMPERATURE * _each(lowered / _OFFSET_TEMPERATURE, labels)


def distillation(logits: Tensor, taught: Tensor) -> Tensor:
    """``T² KL(softmax(taught / T) ‖ softmax(logits / T))`` of each sample (Hinton, Vinyals & Dean,
    2015): what a network that is changed loses of what the one that came in knew."""
    found = F.log_softmax(logits / _DISTILLED_TEMPERATURE, 1)
    wanted = F.log_softmax(taught / _DISTILLED_TEMPERATURE, 1)
    each = F.kl_div(found, wanted, reduction="none", log_target=True).sum(1)
    return _DISTILLED_TEMPERATURE**2 * each


def features_apart(features: Tensor, taught: Tensor) -> Tensor:
    """``1 − cos`` of the angle between the features of each sample and those of the network that
    came in, ``(B, n)`` both: from 0 to 2, whatever their lengths are, which bounds of margins need
    to change and a balancing of norms does."""
    return 1 - F.cosine_similarity(features, taught, dim=1)


def _each(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _mixed(aim: Aim, clean: Tensor, robust: Tensor) -> Tensor:
    return aim.kappa * clean + (1 - aim.kappa) * robust


LOSSES: dict[LossName, Loss] = {
    "gloro": gloro,
    "bcp": bcp,
    "margin": margin,
    "emma": emma,
    "annealed": annealed,
    "offset": offset,
}
# Those that weigh the clean loss against another one.
WITH_KAPPA: frozenset[LossName] = frozenset({"bcp", "margin", "annealed"})


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
