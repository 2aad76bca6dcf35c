"""What a training bound returns, and the parts that all of them share.

The formulas are those of ``lipcert.bounds``, in float32, with warm-started norms and without a
term for rounding: estimates that are differentiable in the weights. Certificates come from
``lipcert.certification`` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.network import Network, Segment, segments
from lipcert.network.operators import Diagonal, Operator, Select
from lipcert.train.norms import WarmNorms

Box = tuple[Tensor, Tensor]
Edge = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a bound says of a batch.

    ``logits`` ``(B, K)``; ``margins`` ``(B, K)``: estimated lower bounds of ``f_y − f_j`` over the
    ball, 0 at ``j = y``; ``boxes``: of the input of each activation, for the sparsity loss.
    ``network`` is the one that the nodes of ``boxes`` belong to.
    """

    network: Network
    logits: Tensor
    margins: Tensor
    boxes: dict[int, Box]

    def least(self, labels: Tensor) -> Tensor:
        """The smallest margin of each sample: ``(B,)``."""
        own = torch.nn.functional.one_hot(labels, self.margins.shape[1]).bool()
        return self.margins.masked_fill(own, torch.inf).amin(1)


class TrainingBound(nn.Module, ABC):
    """A bound that a loss can be put on, with numbers of its own to learn, if it has any."""

    def prepare(self, network: Network) -> list[Segment]:
        """Make what depends on the network, before the first step; the segments whose norms will
        be asked for."""
        return [edge for edges in inner_edges(network).values() for edge in edges]

    @abstractmethod
    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        """For balls of radius ``eps`` ``(B,)`` around ``pixels`` ``(B, …)``."""


def inner_edges(network: Network) -> dict[int, tuple[Segment, ...]]:
    """The segments that end in the input of each activation, by that node."""
    sinks = dict.fromkeys(network.nodes[i].inputs[0] for i in network.activations)
    return {sink: segments(network, sink) for sink in sinks}


def through(operator: Operator, box: Box) -> Box:
    """The interval image of a box."""
    lower, upper = box
    if isinstance(operator, Select):
        return operator.apply(lower), operator.apply(upper)
    centre = operator.forward((lower + upper) / 2)
    width = operator.magnitude((upper - lower) / 2)
    return centre - width, centre + width


def sum_of(boxes: list[Box]) -> Box:
    lower, upper = boxes[0]
    for low, high in boxes[1:]:
        lower, upper = lower + low, upper + high
    return lower, upper


def met(box: Box, centre: Tensor, width: Tensor) -> Box:
    """The box and ``centre ± width`` together."""
    return torch.maximum(box[0], centre - width), torch.minimum(box[1], centre + width)


def moves(operator: Operator) -> bool:
    """Whether the operator only scales and rearranges values, each read once."""
    return isinstance(operator, Diagonal) or (
        isinstance(operator, Select) and operator.multiplicity <= 1
    )


def column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def length(v: Tensor) -> Tensor:
    """``‖v‖₂`` over all axes but the first; differentiable at 0."""
    return (v.flatten(1).square().sum(1) + 1e-12).sqrt()


def final_margins(
    network: Network,
    logits: Tensor,
    labels: Tensor,
    gains: dict[int, Tensor],
    changes: dict[int, Box],
    radii: dict[int, Tensor],
) -> Tensor:
    """Clean margins less what each source can take from them, over its ball and box jointly."""
    margins = logits.gather(1, labels[:, None]) - logits
    for segment in segments(network, network.output):
        rows = segment.rows().flatten(1)
        form = rows[labels][:, None] - rows[None]
        source = segment.source
        gain = gains[source].flatten(1)
        live = torch.where(gain > 0, gain, 1)
        walls = [torch.where(gain > 0, side.flatten(1) / live, 0) for side in changes[source]]
        margins = margins - support(-form * gain[:, None], walls[0], walls[1], radii[source])
    return margins.scatter(1, labels[:, None], 0)


def support(form: Tensor, lower: Tensor, upper: Tensor, radius: Tensor) -> Tensor:
    """``max c·u`` over ``‖u‖ ≤ ρ``, ``l ≤ u ≤ h``, by its dual at the best multiplier: ``(B, R)``.

    ``λρ²/2 + Σ max_{l ≤ u ≤ h} (c u − λu²/2)``; the multiplier is found without gradient, which by
    the envelope theorem changes none (see ``lipcert.bounds.support``).
    """
    size = form.abs()
    wall = torch.where(form > 0, upper[:, None], -lower[:, None]).clamp(min=0)
    rho = radius[:, None]
    with torch.no_grad():
        inverse = _inverse_multiplier(size, wall, rho)
    u = torch.minimum(size * inverse[..., None], wall)
    terms = u * (size - u / (2 * inverse[..., None]))
    dual = rho.square() / (2 * inverse) + terms.sum(-1)
    corner = (size * wall).sum(-1)
    return torch.minimum(dual, corner)


def _inverse_multiplier(size: Tensor, wall: Tensor, rho: Tensor) -> Tensor:
    """``1/λ`` at which ``‖min(c/λ, wall)‖`` comes up to ρ, by bisection of its logarithm."""
    whole: Tensor = size.norm(dim=-1).clamp(min=1e-20)
    low: Tensor = rho / whole
    high = low * 1e4
    for _ in range(12):
        middle = (low * high).sqrt()
        reached = torch.minimum(size * middle[..., None], wall).norm(dim=-1)
        low = torch.where(reached < rho, middle, low)
        high = torch.where(reached < rho, high, middle)
    return low.clamp(min=1e-20)
