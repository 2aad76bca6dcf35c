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
    """The best value seen of each row, ``(N,)``, and the numbers, ``(N, …)``, where it was seen.

    Numbers of one step size lie side by side in one tensor, so that a step is a few operations
    however many there are, and nothing on the host waits for what a device finds.
    """
    kinds = [_Kind.of(numbers, step_sizes, size) for size in dict.fromkeys(step_sizes)]
    best = numbers[0].new_full((len(numbers[0]),), -torch.inf)
    for step in range(steps + 1):
        now = [kind.now.requires_grad_(True) for kind in kinds]
        with torch.set_grad_enabled(step < steps):
            value = value_of(_apart(kinds, now, numbers))
        found = value.detach()
        better = found > best
        best = torch.where(better, found, best)
        for kind in kinds:
            kind.keep(better)
        if step == steps:
            break
        gradients = torch.autograd.grad(value.sum(), now)
        for kind, gradient in zip(kinds, gradients, strict=True):
            kind.move(gradient, step)
    return best, _apart(kinds, [kind.kept for kind in kinds], numbers)


@dataclass
class _Kind:
    """All numbers of one step size: ``places`` among those of the caller, ``(N, sum)`` where they
    are ``now`` and where the value was best, ``kept``, and Adam's two means."""

    step_size: StepSize
    places: list[int]
    now: Tensor
    kept: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(
        cls, numbers: Sequence[Tensor], step_sizes: Sequence[StepSize], step_size: StepSize
    ) -> _Kind:
        places = [k for k, own in enumerate(step_sizes) if own == step_size]
        joined = torch.cat([_flat(numbers[k]) for k in places], 1)
        return cls(
            step_size,
            places,
            joined,
            joined.detach(),
            torch.zeros_like(joined),
            torch.zeros_like(joined),
        )

    def keep(self, better: Tensor) -> None:
        """Where the value of a row is ``better``, its numbers."""
        self.kept = torch.where(better[:, None], self.now.detach(), self.kept)

    def move(self, gradient: Tensor, step: int) -> None:
        self.first.lerp_(gradient, 1 - _MEMORY)
        self.second.mul_(_SQUARE_MEMORY).addcmul_(gradient, gradient, value=1 - _SQUARE_MEMORY)
        # The mean of squares without its bias is ``second / kept``.
        kept = 1 - _SQUARE_MEMORY ** (step + 1)
        scale = (self.second + kept * _NOISE).rsqrt_()
        size = self.step_size.rate * _DECAY**step * kept**0.5 / (1 - _MEMORY ** (step + 1))
        self.now = torch.addcmul(self.now.detach(), self.first, scale, value=size)
        if self.step_size.limits is not None:
            self.now.clamp_(*self.step_size.limits)


def _apart(kinds: list[_Kind], joined: list[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The caller's numbers, as views of what lies side by side."""
    found: dict[int, Tensor] = {}
    for kind, whole in zip(kinds, joined, strict=True):
        parts = whole.split_with_sizes([_flat(like[k]).shape[1] for k in kind.places], 1)
        found |= {
            k: part.reshape(like[k].shape) for k, part in zip(kind.places, parts, strict=True)
        }
    return [found[k] for k in range(len(like))]


def _flat(numbers: Tensor) -> Tensor:
    return numbers.flatten(1) if numbers.dim() > 1 else numbers[:, None]
