"""Attacks on certificates: whatever they find is evaluated in every deployed way.

They know nothing of how a certificate came about, and count no point that is outside its ball, or
outside [0, 1] where it speaks of images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lipcert.network import Network

# How often the best point is evaluated beside itself: rounding is another one at each place.
_BESIDE = 4


@dataclass(frozen=True, eq=False)
class Outcome:
    """Of every certificate: the smallest margin seen inside 0.999 of its radius relative to the
    largest logit there, where it was seen, whether that margin breaks it (no number counts too),
    and the nearest flip seen, as a multiple of its radius."""

    margin: Tensor
    points: Tensor
    broken: Tensor
    ratio: Tensor


def assault(
    network: Network, evaluations: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor,
    labels: Tensor, radius: Tensor, generator: Generator, *, steps: int = 10, restarts: int = 2,
    dtype: torch.dtype = torch.float32, pixel_domain: bool = False, tolerance: float = 0.0,
) -> Outcome:  # fmt: skip
    """Attacks samples ``x`` ``(B, …)`` inside 0.999 of ``radius`` ``(B,)``, all positive.

    Gradients of the smallest margin in ``dtype``, from the sample and from random places, steps to
    the sphere; their signs; at first of the second smallest margin; random directions. The best
    points, and others a few units in the last place beside them, are evaluated in every way.
    ``tolerance``: a margin of so much of the largest logit below 0 is a tie still.
    """
    single, inner = network.to(dtype=dtype), 0.999 * radius
    place = _Place(x, dtype, pixel_domain)
    margin = torch.full_like(radius, torch.inf)
    best, broken = x.clone(), torch.zeros_like(labels, dtype=torch.bool)

    def see(points: Tensor, logits: Tensor) -> None:
        nonlocal margin, best, broken
        seen, relative = _margins(logits.double(), labels)
        allowed = place.distance(points) <= inner
        breaks = relative < -tolerance if tolerance else ~(seen > 0)
        broken = broken | (allowed & (breaks | seen.isnan()))
        better = allowed & ~(relative >= margin)
        margin = torch.where(better, relative, margin)
        best = torch.where(_wide(better, x), points.double(), best)

    for restart in range(1 + restarts):
        point = x.to(dtype) if restart == 0 else place.at(_random(x, generator), inner)
        for step in range(steps):
            point = point.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = single.logits(point)
                see(point.detach(), logits.detach())
                rank = 2 if restart == 2 and 2 * step < steps else 1
                found, _ = _margins(logits, labels, rank=rank)
                (slope,) = torch.autograd.grad(found.sum(), point)
            slope = slope.double().nan_to_num()
            if restart == 1 and step % 2:
                slope = slope.sign()
            step_size = inner * (2.0 if step % 3 == 0 else 0.3)
            way = point.detach().double() - x - _onto_sphere(slope, step_size)
            point = place.at(way, inner)
        see(point, single.logits(point))
    found_best = best.clone()
    beside = [found_best * (1 + 1e-7 * _random(x, generator)) for _ in range(_BESIDE)]
    for candidate in (place.at(_random(x, generator), inner), found_best, *beside, x):
        for evaluate in evaluations.values():
            see(candidate.to(dtype), evaluate(candidate.to(dtype)))

    return Outcome(margin, best, broken, _flip_ratio(single, place, labels, best, radius))


class _Place:
    """Points around samples ``x``, in the type that is deployed."""

    def __init__(self, x: Tensor, dtype: torch.dtype, pixel_domain: bool) -> None:
        self.x, self.dtype, self.images = x, dtype, pixel_domain

    def distance(self, points: Tensor) -> Tensor:
        """From the samples; infinite where a point is no image and only images count."""
        far = (points.double() - self.x).flatten(1).norm(dim=1)
        if not self.images:
            return far
        inside = ((points >= 0) & (points <= 1)).flatten(1).all(1)
        return torch.where(inside, far, torch.inf)

    def at(self, way: Tensor, radius: Tensor) -> Tensor:
        """The point in the ball that lies furthest in that direction, or nearly so."""
        if self.images:
            # What leaves [0, 1] is cut off, and the rest goes on to the sphere.
            way = self._cut(self.x + _onto_sphere(way, radius)) - self.x
        point = self._cut(self.x + _onto_sphere(way, radius * (1 - 1e-7))).to(self.dtype)
        over = self.distance(point) > radius
        shrunk = self._cut(self.x + _onto_sphere(way, radius * 0.99)).to(self.dtype)
        return torch.where(_wide(over, self.x), shrunk, point)

    def along(self, way: Tensor, share: Tensor) -> Tensor:
        return self._cut(self.x + way * _wide(share, self.x)).to(self.dtype)

    def _cut(self, points: Tensor) -> Tensor:
        return points.clamp(0, 1) if self.images else points


def _flip_ratio(
    single: Network, place: _Place, labels: Tensor, best: Tensor, radius: Tensor
) -> Tensor:
    """How far beyond the certified radius the prediction first changes on the way of ``best``."""
    way = best - place.x
    moved = way.flatten(1).norm(dim=1)
    low, high = torch.ones_like(radius), torch.full_like(radius, torch.inf)
    for _ in range(24):
        trial = torch.where(high.isinf(), low * 1.5, (low + high) / 2)
        seen, _ = _margins(single.logits(place.along(way, trial)).double(), labels)
        low, high = torch.where(seen > 0, trial, low), torch.where(seen > 0, high, trial)
    found = (moved > 0) & high.isfinite()
    reached = place.distance(place.along(way, torch.where(found, high, 0)))
    return torch.where(found, reached / radius, torch.inf)


def _margins(logits: Tensor, labels: Tensor, *, rank: int = 1) -> tuple[Tensor, Tensor]:
    """The smallest ``f_y − f_j``, or that of a rank, and the same over the largest logit."""
    own = labels[:, None]
    margins = (logits.gather(1, own) - logits).scatter(1, own, torch.inf)
    rank = min(rank, logits.shape[1] - 1)
    least = margins.amin(1) if rank == 1 else margins.kthvalue(rank, dim=1).values
    seen = torch.where(margins.isnan().any(1), torch.nan, least)
    return seen, seen / logits.abs().amax(1).clamp(min=1e-300)


def _random(x: Tensor, generator: Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _onto_sphere(way: Tensor, radius: Tensor) -> Tensor:
    norm = way.flatten(1).norm(dim=1).clamp(min=1e-300)
    return way * _wide(radius / norm, way)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))
