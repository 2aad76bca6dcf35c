"""Attacks from the boundary of what is certified: many beginnings on the sphere, downhill.

A certificate says that no point of the ball is classified otherwise, so the search starts where one
would have to be, at random points of the sphere of that radius, and follows the gradients of every
class in turn. What it finds counts only once the deployed file has confirmed it, at a distance
compared in exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.audit.rule import PLAIN, Rule

Array = NDArray[Any]
Logits = Callable[[Tensor], Tensor]

# Points are placed a little inside, so that no rounding takes them out of the ball.
_INSIDE = 1 - 1e-6
# The step, as a share of the radius, from the first to the last one.
_FIRST, _LAST = 0.5, 0.01


@dataclass(frozen=True)
class Ball:
    """Points ``x'`` with ``‖x' − x‖₂ ≤ radius`` that are wanted where what the ``rule`` claims of
    ``label`` is false.

    ``x`` ``(*shape)`` float32, exact; with ``pixel_domain`` only points in [0, 1] count.
    """

    x: Array
    label: int
    radius: float
    pixel_domain: bool = False
    rule: Rule = PLAIN

    def contains(self, point: Array) -> bool:
        """Exactly, in fractions."""
        if not np.isfinite(point).all():
            return False
        if self.pixel_domain and not (point.min() >= 0 and point.max() <= 1):
            return False
        ends = zip(point.reshape(-1).tolist(), self.x.reshape(-1).tolist(), strict=True)
        square = sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in ends), Fraction(0))
        return square <= Fraction(self.radius) ** 2

    def inward(self, offsets: Array) -> Array:
        """The float32 points at ``offsets`` ``(n, *shape)``, drawn in to the ball."""
        length = np.linalg.norm(offsets.reshape(len(offsets), -1), axis=1)
        share = self.radius * _INSIDE / np.maximum(length, self.radius)
        points = self.x + offsets * share.reshape(-1, *(1,) * self.x.ndim)
        points = points.clip(0, 1) if self.pixel_domain else points
        rounded: Array = points.astype(np.float32)
        return rounded


def candidates(logits: Logits | None, ball: Ball, *, restarts: int, steps: int, seed: int) -> Array:
    """Points of the ball that are worth a look, ``(restarts, *shape)`` float32.

    ``logits`` is differentiable, ``(n, *shape)`` to ``(n, K)``; without it the points are random.
    The first beginning goes for the class that is nearest to it, the second for the next one, ….
    """
    random = np.random.default_rng(seed)
    noise = random.standard_normal((restarts, *ball.x.shape))
    length = np.linalg.norm(noise.reshape(restarts, -1), axis=1)
    offsets = ball.radius * noise / length.reshape(-1, *(1,) * ball.x.ndim)
    if logits is None:
        return ball.inward(offsets)
    return ball.inward(_downhill(logits, ball, torch.from_numpy(offsets), steps).numpy())


def _downhill(logits: Logits, ball: Ball, offsets: Tensor, steps: int) -> Tensor:
    """Projected gradient descent on the margin to a class, then on the smallest margin; the
    offsets with the smallest margin that each beginning came by."""
    offsets = offsets.to(torch.float32)
    x = torch.from_numpy(ball.x).to(offsets)
    own = torch.full((len(offsets), 1), ball.label)
    best, least = offsets.clone(), torch.full((len(offsets),), math.inf)
    rule, target = ball.rule, None
    kept = torch.tensor(rule.classes or ())
    for step in range(steps + 1):
        here = offsets.clone().requires_grad_()
        found = logits(x + here)
        gaps = (found.gather(1, own) - found).scatter(1, own, math.inf)
        rivals = (len(kept) or gaps.shape[1]) - 1
        if rule.classes is not None:
            gaps = gaps.masked_fill(~torch.isin(torch.arange(gaps.shape[1]), kept), math.inf)
        smallest = rule.slack(gaps)
        better = smallest < least
        best[better], least = offsets[better], torch.minimum(least, smallest.detach())
        if step == steps:
            break
        if target is None:
            order = gaps.detach().argsort(1)[:, rule.top_k - 1 : rivals]
            turn = torch.arange(len(offsets)) % max(1, min(order.shape[1], len(offsets) // 2))
            target = order.gather(1, turn[:, None])
        loss = rule.loss(gaps, target if 2 * step < steps else None)
        (gradient,) = torch.autograd.grad(loss.sum(), here)
        stride = ball.radius * _FIRST * (_LAST / _FIRST) ** (step / max(1, steps - 1))
        offsets = _projected(offsets - stride * gradient / _length(gradient), x, ball)
    return best.double()


def _projected(offsets: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """Onto the sphere, or into the ball where that leaves the pixel domain."""
    onto = offsets * (ball.radius * _INSIDE / _length(offsets))
    if not ball.pixel_domain:
        return onto
    inside = (x + onto).clamp(0, 1) - x
    return inside * (ball.radius * _INSIDE / _length(inside)).clamp(max=1)


def _length(offsets: Tensor) -> Tensor:
    length: Tensor = offsets.flatten(1).norm(dim=1).clamp(min=1e-30)
    return length.reshape(-1, *(1,) * (offsets.ndim - 1))


def broken(classify: Callable[[Array], Array], ball: Ball, points: Array) -> Array | None:
    """The first of the points, ``(n, *shape)``, that lies in the ball and at whose outputs by
    ``classify`` the claim is false, ties and numbers that are not finite included; or None."""
    for k in np.flatnonzero(~ball.rule.holds(classify(points), ball.label)):
        if ball.contains(points[k]):
            point: Array = points[k]
            return point
    return None
