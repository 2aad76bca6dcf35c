"""Upper bounds of robust radii: nearby points whose prediction is not the label.

The search trusts nothing of itself. It may look anywhere in any way, and counts only points that
were evaluated once more in the end, in the deployed arithmetic, at distances computed in float64.

Both questions, "is there such a point within eps?" and "how near is the nearest?", are answered by
one iteration on the margin ``m = f_y − f_t`` to a class ``t``, from a point ``z``, at first ``x``:

- The radius becomes the one where the margin would vanish if it were linear, ``ρ = ‖z − x‖ +
  m / ‖∇m‖`` (DeepFool, Moosavi-Dezfooli et al., CVPR 2016), or a little less than the best found so
  far, if that is smaller (FMN, Pintor et al., NeurIPS 2021).
- The point moves a share of the way to the minimiser of the linear margin on the ball of that
  radius, and from there out to the sphere. The share falls from step to step, as in the method of
  Frank and Wolfe, so that there is no step size to be fitted to a network.

Several classes run side by side, and the promising ones go on (multi-targeted attack, Gowal et al.,
2019). Where the label has to be among K best, K rivals have to overtake it at one point: with a
class ``t`` go the K − 1 others that are nearest there, and the margin is the sum of those that are
still positive. Where its probability has to be above others' by so much, it is what the head makes
of all margins. The memory is that of ``9 B`` samples and their activations.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.certification.heads import PLAIN, Head
from lipcert.network import Network
from lipcert.rounding import gamma

# How many classes of a sample run in each round, and for which share of the steps.
_ROUNDS = ((9, 0.15), (3, 0.25), (1, 0.6))
# Another class has to win by this share of the largest logit: then it wins in any order of
# summation, not by the rounding errors of this one.
_CLEAR = 2.0**-18
# No point is sought nearer than this: pixels in float32 are 6e-8 apart.
_NEAR = 1e-4
# So far inside its limit is a point sought that rounding to float32 leaves it there.
_WITHIN = 1 - 2.0**-20
_DRAWS = 8
# Random directions that are drawn at once.
_DRAWN = 10


@dataclass(frozen=True, eq=False)
class Attack:
    """What was found for ``B`` samples.

    ``radius`` ``(B,)``, float64: at least the distance (L2, pixels) of the point from its sample,
    so an upper bound of the robust radius; 0 if misclassified, infinite if nothing was found.
    ``points`` ``(B, *shape)``, in the dtype of ``x``: what the head claims is clearly false there,
    for the plain one some logit is strictly greater than the label's (a tie is no success); the
    sample itself if misclassified or nothing was found.
    """

    radius: Tensor
    points: Tensor


def attack(
    network: Network,
    x: Tensor,
    labels: Tensor,
    eps: Tensor | float,
    *,
    steps: int = 20,
    restarts: int = 0,
    pixel_domain: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    head: Head = PLAIN,
) -> Attack:
    """Whether there is a misclassified point within ``eps``, a number or ``(B,)``.

    The search of :func:`nearest`, over for a sample as soon as it has found any point; every radius
    is at most ``eps``, or infinite.
    """
    search = _Search(network.to(dtype=dtype), x, labels, eps, pixel_domain, seed, head)
    return search.run(steps, restarts, first=True)


def nearest(
    network: Network,
    x: Tensor,
    labels: Tensor,
    *,
    within: Tensor | float = math.inf,
    steps: int = 20,
    restarts: int = 0,
    pixel_domain: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    head: Head = PLAIN,
) -> Attack:
    """The nearest misclassified points that are found, at most ``within`` from the samples.

    ``x`` ``(B, *shape)``: exact samples; ``labels`` ``(B,)``; ``within``: a number or ``(B,)``,
    by default the largest distance of two images of pixels in [0, 1]. ``steps``:
    gradients for the most promising class, about 2.7 times as many in all. ``restarts``: how often
    the search is repeated with a random beginning. ``pixel_domain``: only points in [0, 1].
    ``dtype``: the arithmetic that is attacked; ``head``: what is claimed of its outputs.

    The same seed gives the same result. All samples share their random numbers, so a result depends
    on the rest of the batch only by rounding, where products of batches round differently.
    """
    search = _Search(network.to(dtype=dtype), x, labels, within, pixel_domain, seed, head)
    return search.run(steps, restarts, first=False)


class _Search:
    """The nearest points found so far: ``point`` ``(B, *shape)``, ``distance`` ``(B,)``.

    Inside, tensors ``(b, t, …)`` hold ``t`` points for each of ``b`` samples, one for each class.
    """

    def __init__(
        self,
        network: Network,
        x: Tensor,
        labels: Tensor,
        within: Tensor | float,
        pixel_domain: bool,
        seed: int,
        head: Head,
    ) -> None:
        self.head = head
        self.network, self.given, self.pixel_domain = network, x.detach(), pixel_domain
        self.x, self.labels = self.given.to(network.anchor), labels.to(network.anchor.device)
        limit = torch.as_tensor(within, dtype=torch.float64).to(self.x.device)
        cube = math.sqrt(math.prod(x.shape[1:]))
        self.limit = torch.where(limit.isinf(), cube, limit).expand(len(x))
        self.diameter = max([cube, *self.limit.tolist()])
        self.distance = self.x.new_full((len(x),), math.inf)
        self.point = self.x.clone()
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = deque[Tensor]()

    @torch.no_grad()
    def run(self, steps: int, restarts: int, *, first: bool) -> Attack:
        logits = self.network.logits(self.x)
        head = self.head
        margins = head.margins(logits, self.labels)
        finite, wrong = torch.isfinite(logits).all(1), head.least(margins, self.labels) < 0
        # The classes that can decide, but those that do not compete, nor the label.
        classes = margins.argsort(dim=1, stable=True)
        classes = classes[:, head.top_k - 1 : head.rivals(logits.shape[1])]
        for restart in range(1 + restarts):
            start = self.x if restart == 0 else self._scattered()
            samples = torch.nonzero(finite & ~wrong).flatten()
            self._tournament(samples, start, classes, steps, first)
        radius, points = self._drawn_in()
        radius = torch.where(finite & wrong, 0.0, radius)
        return Attack(radius.to(self.given.device), points.to(self.given.device))

    def _tournament(
        self, samples: Tensor, start: Tensor, classes: Tensor, steps: int, first: bool
    ) -> None:
        """Rounds for fewer and fewer classes, those for which the boundary seems nearest."""
        z, classes, step = start[samples, None], classes[samples], 0
        for count, share in _ROUNDS:
            if first:
                still = torch.isinf(self.distance[samples])
                samples, z, classes = samples[still], z[still], classes[still]
            if not len(samples):
                return
            classes = classes[:, :count]
            z = z[:, :count].expand(-1, classes.shape[1], *z.shape[2:])
            for _ in range(max(1, round(share * steps))):
                z, estimate = self._step(samples, z, classes, step)
                step += 1
            order = estimate.argsort(dim=1, stable=True)
            z, classes = z[torch.arange(len(z))[:, None], order], classes.gather(1, order)

    def _step(
        self, samples: Tensor, z: Tensor, classes: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Takes down misclassified points. The next points ``(b, t, *shape)``, and how far from the
        sample the boundaries would be, ``(b, t)``, if the margins were linear.

        The radius goes a little beyond the estimate, for an estimate alone may converge to the
        boundary from the wrong side; and it halves or doubles at most, since far gradients say
        little. Where a gradient is zero or no number, a random direction takes its place.
        """
        x, labels = self.x[samples, None], self.labels[samples]
        with torch.enable_grad():
            rows = z.flatten(0, 1).requires_grad_()
            logits = self.network.logits(rows)
            own = labels.repeat_interleave(z.shape[1])
            margins = self.head.margins(logits, own)
            margin = self._aim(margins, own, classes.reshape(-1, 1))
            (gradient,) = torch.autograd.grad(margin.sum(), rows)
        distance = _length(z - x)
        clear = self._clear(logits, margins, own)
        self._record(samples, z, distance, clear.reshape(classes.shape))

        gradient = gradient.reshape(z.shape)
        length = _length(gradient)
        useful = torch.isfinite(length) & (length > 0)
        way = torch.where(useful, margin.reshape(classes.shape) / length, math.inf)
        way = way.nan_to_num(nan=math.inf).clamp(-self.diameter, self.diameter)
        estimate = distance + way

        pull = 0.1 / (1 + step / 2)
        radius = estimate + 0.02 * way.abs() + 0.2 * pull * estimate.abs()
        radius = radius.maximum(distance / 2).minimum((2 * distance).clamp(min=self.diameter / 32))
        best, limit = self.distance[samples] * (1 - pull), self.limit.to(z)[samples] * _WITHIN
        radius = radius.clamp(min=_NEAR).minimum(torch.minimum(best, limit)[:, None])

        direction = torch.where(_wide(useful, z), gradient / _wide(length, z), self._noise())
        aim = self._minimiser(x, direction, radius)
        offset = z + (aim - z) / (1 + step / 2) - x
        scale = radius / _length(offset).clamp(min=1e-30)
        return self._inside(x + _wide(scale, z) * offset), estimate

    def _aim(self, margins: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        """What has to become negative, ``(rows, 1)``, for a class ``(rows, 1)`` of each point."""
        if self.head.margin:
            return self.head.least(margins, labels)[:, None]
        own, more = margins.gather(1, classes), self.head.top_k - 1
        if not more:
            return own
        rest = margins.scatter(1, classes, math.inf).topk(more, 1, largest=False).values
        group = torch.cat([own, rest], 1)
        left = group.clamp(min=0).sum(1, keepdim=True)
        return torch.where(left > 0, left, group.amax(1, keepdim=True))

    def _clear(self, logits: Tensor, margins: Tensor, labels: Tensor) -> Tensor:
        """Whether the claim clearly fails, ``(rows,)``; never by logits that are not finite."""
        slack = _CLEAR * logits.abs().amax(1)
        return self.head.least(margins, labels) < -slack

    def _minimiser(self, x: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
        """The minimiser of ``direction · u`` over ``‖u − x‖ ≤ radius`` and the pixel domain.

        There it is ``clamp(x − s · direction)``, where ``s`` solves ``‖u − x‖ = radius``: Newton's
        method on the squares of the pixels that are not clamped comes from below.
        """
        scale = radius
        for _ in range(6 if self.pixel_domain else 0):
            u = x - _wide(scale, x) * direction
            kept = direction * ((u > 0) & (u < 1))
            clamped = _length((u.clamp(0, 1) - x) * (kept == 0))
            free = _length(kept)
            more = (radius.square() - clamped.square()).clamp(min=0).sqrt() / free
            scale = torch.where(free > 1e-6, more, scale)
        return self._inside(x - _wide(scale, x) * direction)

    def _inside(self, z: Tensor) -> Tensor:
        return z.clamp(0, 1) if self.pixel_domain else z

    def _noise(self) -> Tensor:
        """A random direction, of length 1, of the shape of one sample. Some are drawn at once, for
        each copy of them waits for the device."""
        if not self.drawn:
            shape = self.x.shape[1:]
            noise = [
                torch.randn(shape, generator=self.generator, dtype=torch.float64)
                for _ in range(_DRAWN)
            ]
            unit = torch.stack([one / one.norm() for one in noise]).to(self.x)
            self.drawn.extend(unit.unbind())
        return self.drawn.popleft()

    def _scattered(self) -> Tensor:
        """Each sample displaced by half of what has been reached, or could be."""
        reach = torch.minimum(self.distance, self.limit.to(self.x)) / 2
        return self._inside(self.x + _wide(reach, self.x) * self._noise())

    def _record(self, samples: Tensor, z: Tensor, distance: Tensor, wrong: Tensor) -> None:
        distance, which = torch.where(wrong, distance, math.inf).min(1)
        old, point = self.distance[samples], self.point[samples]
        better, found = distance < old, z[torch.arange(len(z), device=z.device), which]
        self.distance[samples] = torch.where(better, distance, old)
        self.point[samples] = torch.where(_wide(better, point), found, point)

    def _drawn_in(self) -> tuple[Tensor, Tensor]:
        """Radii and points, after a last search between each point found and its sample.

        Only what is evaluated here counts: the logits of the point as it is handed out, and its
        distance in float64, with the roundings of the norm on top.
        """
        exact = self.given.to(self.x.device, torch.float64)
        radius, points = torch.full_like(self.limit, math.inf), self.given.to(self.x.device).clone()
        samples = torch.isfinite(self.distance).nonzero().flatten()
        if not len(samples):
            return radius, points
        x, labels, limit = exact[samples], self.labels[samples], self.limit[samples]
        least, nearest = radius[samples], points[samples]
        offset = self.point[samples].to(exact) - x
        share = torch.ones_like(radius[samples])
        stride = torch.zeros_like(share)
        excess = 1 + gamma(exact[0].numel() + 4)
        for _ in range(_DRAWS):
            trial = (x + _wide(share - stride, x) * offset).to(self.x).to(points)
            logits = self.network.logits(trial.to(self.x))
            wrong = self._clear(logits, self.head.margins(logits, labels), labels)
            distance = _length((trial.to(exact) - x)[:, None]).squeeze(1) * excess
            better = wrong & (distance <= limit) & (distance < least)
            least = torch.where(better, distance, least)
            nearest = torch.where(_wide(better, trial), trial, nearest)
            share = torch.where(wrong, share - stride, share)
            stride = torch.where(wrong, 2 * stride, stride / 4).clamp(min=2.0**-12)
        return radius.index_copy(0, samples, least), points.index_copy(0, samples, nearest)


def _length(z: Tensor) -> Tensor:
    """Of every ``(b, t, *shape)``: ``(b, t)``."""
    length: Tensor = z.flatten(2).norm(dim=2)
    return length


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """With as many axes as ``like``."""
    return values.reshape(*values.shape, *(1,) * (like.dim() - values.dim()))
