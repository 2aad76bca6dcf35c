"""The dual bound, trainable: one pass backwards for each of the closest classes.

The sound version, with optimised slopes and multipliers, is ``lipcert.bounds.dual``. Here slopes
are the derivatives at the sample, and each layer's multiplier is ``factor · ‖A‖/ρ`` with one
factor a layer that is learned with the weights: whatever tightens the bound lowers the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipcert.network import Backward, Network, Segment, backward, lower
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.activations.piecewise_linear import PiecewiseLinear
from lipcert.network.operators import Operator
from lipcert.train.anchored import Layer, State, anchored_state
from lipcert.train.boxes import Estimate, TrainingBound, column, length
from lipcert.train.norms import WarmNorms

# Where the factors start (see lipcert.bounds.dual).
_FIRST_FACTOR = 0.3


class DualBound(TrainingBound):
    """``pairs``: for how many of the closest classes the pass is made; the others keep the
    anchored margin. The better of the two counts."""

    def __init__(self, pairs: int = 2) -> None:
        super().__init__()
        self.pairs = pairs
        self.log_factors = nn.ParameterDict()

    def prepare(self, network: Network) -> list[Segment]:
        network = lower(network)
        for i in network.activations:
            self.log_factors[str(i)] = nn.Parameter(torch.tensor(_FIRST_FACTOR).log())
        return super().prepare(network)

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        state = anchored_state(lower(network), pixels, eps, norms)
        plain = state.estimate(labels)
        batch, classes = plain.margins.shape
        own = torch.nn.functional.one_hot(labels, classes).bool()
        count = min(self.pairs, classes - 1)
        closest = plain.margins.detach().masked_fill(own, torch.inf)
        others = closest.topk(count, dim=1, largest=False).indices
        coefficients = _margin_forms(plain.logits, labels, others)
        clean = plain.logits.gather(1, labels[:, None]) - plain.logits.gather(1, others)
        found = clean + self._change(state, coefficients, count).reshape(batch, count)
        tighter = torch.maximum(found, plain.margins.gather(1, others))
        margins = plain.margins.scatter(1, others, tighter)
        return Estimate(plain.network, plain.logits, margins, plain.boxes)

    def _change(self, state: State, coefficients: Tensor, copies: int) -> Tensor:
        """A lower bound of how much each form changes over the ball: ``(B · copies,)``."""
        network = state.network
        start = coefficients.reshape(-1, *network.nodes[-1].shape)
        rules = _Relaxing(state, copies, self.log_factors, coefficients.new_zeros(len(start)))
        reached = backward(network, network.output, start, rules)
        if reached is None:
            return rules.gained
        return rules.gained - state.eps.repeat_interleave(copies) * length(reached)


@dataclass(eq=False)
class _Relaxing(Backward[Tensor]):
    """Objectives back to the input; ``gained`` sums the least errors of all activations."""

    state: State
    copies: int
    log_factors: nn.ParameterDict
    gained: Tensor

    def affine(self, i: int, operator: Operator, value: Tensor) -> Tensor:
        return operator.transpose(value)

    def activation(self, i: int, activation: Activation, value: Tensor) -> Tensor:
        assert isinstance(activation, Elementwise)
        factor = self.log_factors[str(i)].exp()
        gained, passed = _relax(activation, value, self.state.layers[i], self.copies, factor)
        self.gained = self.gained + gained
        return passed

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


def _margin_forms(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """``e_label − e_other`` for every sample's others: ``(B · others, K)``."""
    one_hot = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return (one_hot[labels][:, None] - one_hot[others]).flatten(0, 1)


def _relax(
    activation: Elementwise, value: Tensor, layer: Layer, copies: int, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """An activation's least error over box and ball, and the coefficient on its input."""
    anchor, low, high, varying, radius = (
        tensor.repeat_interleave(copies, 0)
        for tensor in (layer.anchor, layer.lower, layer.upper, layer.varying, layer.radius)
    )
    slope = activation.derivative(anchor) * varying
    multiplier = factor * length(value.detach() * varying) / radius.detach().clamp(min=1e-6)
    least = _least(activation, value, slope, column(multiplier, value), anchor, low, high)
    # Neurons that cannot vary have no error, and no part in the ball.
    gained = (least * varying).flatten(1).sum(1) - multiplier * radius.square()
    return gained, value * slope


def _least(
    activation: Elementwise,
    value: Tensor,
    slope: Tensor,
    multiplier: Tensor,
    anchor: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """``min over the box of A (Δσ − c Δz) + λ Δz²``, differentiable in the box and the sample."""
    if not isinstance(activation, PiecewiseLinear):
        return activation.relaxed_minimum(value, slope, multiplier, anchor, low, high)
    best: Tensor | None = None
    at_anchor = activation.value(anchor)
    for start, end, steepness, intercept in activation.pieces():
        left, right = _at_least(low, start), _at_most(high, end)
        tilt = value * (steepness - slope)
        # A piece beyond the box is left out below; until then its numbers stay inside the box.
        step = torch.maximum(tilt / (-2 * multiplier), torch.minimum(left, high) - anchor)
        step = torch.minimum(step, torch.maximum(right, low) - anchor)
        offset = steepness * anchor - at_anchor + _finite(intercept)
        found = value * offset + step * (tilt + multiplier * step)
        found = torch.where(left <= right, found, torch.inf)
        best = found if best is None else torch.minimum(best, found)
    assert best is not None
    return best


def _at_least(bound: Tensor, limit: Tensor | float) -> Tensor:
    if isinstance(limit, float):
        return bound if limit == -torch.inf else bound.clamp(min=limit)
    return torch.maximum(bound, limit)


def _at_most(bound: Tensor, limit: Tensor | float) -> Tensor:
    if isinstance(limit, float):
        return bound if limit == torch.inf else bound.clamp(max=limit)
    return torch.minimum(bound, limit)


def _finite(intercept: Tensor | float) -> Tensor | float:
    """A piece beyond an infinite limit is never met; its numbers must not make NaN of gradients."""
    if isinstance(intercept, float):
        return intercept
    return torch.where(intercept.isinf(), 0, intercept)
