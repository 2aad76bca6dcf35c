"""The terms of the dual: what the input is worth, and what rounding is at an activation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.coupled import LayerMultipliers, taken_sizes
from lipcert.bounds.reverse import length
from lipcert.bounds.state import Layer
from lipcert.network.activations import Elementwise
from lipcert.numbers import OUT64, Outward
from lipcert.rounding import gamma

# Steps of the fixed point for the multiplier of ball and box together. Any multiplier is sound;
# each step passes all inputs of all objectives once more.
_INPUT_STEPS = 4


def against(values: Tensor, like: Tensor) -> Tensor:
    """One number an objective, ``(N,)``, against ``(N, …)``."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def drift_worth(objective: Tensor, layer: Layer, own: Outward) -> Tensor:
    """What a layer's drift can be worth to each objective: ``(N,)``. Value by value it is
    ``|objective|·drift``, and no more than both lengths multiplied."""
    assert layer.drift is not None
    each = own.dot(objective.abs().double(), layer.drift.double())
    if layer.drift_length is None:
        return each
    whole = own.times(own.length(objective.double()), layer.drift_length.double())
    return torch.fmin(each, whole)


def error_worth(error: Tensor, layer: Layer) -> Tensor:
    """What a Euclidean ``error`` of coefficients can be worth, as they reach a layer: ``(N,)``. It
    is times the furthest that the layer's box is from the sample."""
    way = OUT64.up(torch.maximum(layer.upper - layer.anchor, layer.anchor - layer.lower), 1)
    return OUT64.times(error, OUT64.length(way.double()))


def least_at_input(objective: Tensor, ball: Layer, *, images: bool) -> tuple[Tensor, Tensor]:
    """``min objective · Δx`` over the ball of inputs, or below it, and the sum of all its terms'
    magnitudes: ``(N,)`` each.

    ``−eps ‖objective‖``; where only ``images`` count, over ball ∩ box: with ``λ`` near the best
    one, ``Σ_k min over the box of (objective_k d + λ d²) − λ eps²``.
    """
    eps, objective = ball.radius, objective * ball.varying
    size = objective.flatten(1).norm(dim=1)
    if not images:
        return -eps * size, eps * size
    with torch.no_grad():
        slack = OUT64.error(ball.anchor.abs() + ball.lower.abs() + ball.upper.abs(), 2)
        low, high = ball.lower - ball.anchor - slack, ball.upper - ball.anchor + slack
        wanted = size / (2 * eps)
        for _ in range(_INPUT_STEPS):
            multiplier = wanted.clamp(min=1e-30)
            column = against(multiplier, objective)
            place = (objective / (-2 * column)).clamp(min=low, max=high)
            # The ball is met exactly at the best multiplier.
            wanted = multiplier * place.flatten(1).norm(dim=1) / eps
    terms = objective * place + column * place.square()
    spent = multiplier * eps.square()
    sizes = (objective * place).abs() + column * place.square()
    return terms.flatten(1).sum(1) - spent, sizes.flatten(1).sum(1) + spent


def rounding_of(
    activation: Elementwise, value: Tensor, error: Tensor, layer: Layer, slope: Tensor,
    multipliers: LayerMultipliers,
) -> Tensor:  # fmt: skip
    """What rounding at one activation can be worth to each objective, ``(N,)``: ``γ`` times every
    number that enters a neuron's term, in absolute value, and the ``error`` of the coefficients
    times how far its output moves."""
    anchor, lower, upper = layer.anchor, layer.lower, layer.upper
    low, high = activation.image(lower, upper)
    # A box that was cut may leave out the sample, from which changes count.
    here = activation.value(anchor)
    low, high = torch.minimum(low, here), torch.maximum(high, here)
    output = torch.maximum(low.abs(), high.abs())
    way = torch.maximum(upper - anchor, anchor - lower)
    moved = torch.minimum(high - low, layer.gain * way) + OUT64.error(output, 8)
    sizes = value.abs() * (4 * output + (slope.abs() + layer.gain + 1) * (way + anchor.abs()))
    sizes = (sizes + against(multipliers.multiplier, value) * way.square()) * layer.varying
    if multipliers.taken is not None:
        taken = taken_sizes(layer, moved, output, activation.lipschitz)
        sizes = sizes + against(multipliers.taken, value) * layer.varying * taken
    terms = (gamma(math.prod(sizes.shape[1:]) + 64) * sizes).flatten(1).sum(1)
    return terms + error * length(moved) + multipliers.cost * gamma(64)
