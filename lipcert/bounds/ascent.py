"""Gradient ascent for many rows at once: Adam (Kingma & Ba, ICLR 2015), upwards.

Each row has a value and numbers of its own. ``torch.optim`` takes seconds to import, and does not
keep the best of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The step size shrinks by this factor a step, so that the last of some fifty steps still move:
# slower decay leaves multipliers swinging, faster decay freezes them early.
_DECAY = 0.98
# Adam's usual decay rates (Kingma and Ba, 2015).
_MEMORY, _SQUARE_MEMORY = 0.9, 0.999
# Squared gradients below this are rounding noise of float32.
_NOISE = 1e-14


@dataclass(frozen=True)
class StepSize:
    """How far one kind of number goes in the first step, and between which limits."""

    rate: float
    limits: tuple[float, float] | None = None


def ascend(
    value_of: Callable[[list[Tensor]], Tensor],
    numbers: Sequence[Tensor],
    step_sizes: Sequence[StepSize],
    steps: int,
) -> tuple[Tensor, list[Tensor]]:
    """The best value seen of each row, ``(N,)``, and the numbers, ``(N, …)``, where it was seen."""
    now = [number.clone() for number in numbers]
    kept, first, second = ([f(n) for n in numbers] for f in (torch.clone, _zeros, _zeros))
    best = numbers[0].new_full((len(numbers[0]),), -torch.inf)
    for step in range(steps + 1):
        for number in now:
            number.requires_grad_(True)
        with torch.set_grad_enabled(step < steps):
            value = value_of(now)
        better = (value.detach() > best).nonzero().flatten()
        best[better] = value.detach()[better]
        for number, old in zip(now, kept, strict=True):
            old[better] = number.detach()[better]
        if step == steps:
            break
        gradients = torch.autograd.grad(value.sum(), now)
        for k, (gradient, step_size) in enumerate(zip(gradients, step_sizes, strict=True)):
            first[k].lerp_(gradient, 1 - _MEMORY)
            second[k].mul_(_SQUARE_MEMORY).addcmul_(gradient, gradient, value=1 - _SQUARE_MEMORY)
            scale = (second[k] / (1 - _SQUARE_MEMORY ** (step + 1))).add_(_NOISE).rsqrt_()
            size = step_size.rate * _DECAY**step / (1 - _MEMORY ** (step + 1))
            now[k] = now[k].detach().addcmul_(first[k], scale, value=size)
            if step_size.limits is not None:
                now[k].clamp_(*step_size.limits)
    return best, kept


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like)
