"""One batch of samples on its way to radii: what is tried at which radius, and what it proves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds import Bound, GlobalBound, LocalBound, Prepared
from lipcert.certification.assured import AssuredNorms
from lipcert.certification.deployed import Deployment
from lipcert.certification.search import largest_radius
from lipcert.norms import GramMap, SegmentNorms


@dataclass(frozen=True, eq=False)
class Tools:
    """What a batch works with: the bound, its copy in float32 for guesses, the norms, and what the
    deployed arithmetic adds."""

    bound: Bound
    rough: Bound
    norms: AssuredNorms
    deployment: Deployment


class Batch:
    """Samples ``x`` ``(B, …)`` in float64, exact; ``streams``: their numbers, which name coins."""

    def __init__(self, tools: Tools, x: Tensor, labels: Tensor, streams: Tensor) -> None:
        self.tools, self.x, self.labels, self.streams = tools, x, labels, streams
        self.centre = tools.bound.propagation.centre(x)
        self.deployed = tools.deployment.centre(x)
        # No two images of [0, 1] are further apart.
        self.diameter = math.sqrt(x[0].numel())

    def subset(self, rows: Tensor) -> Batch:
        """Some of the samples."""
        return Batch(self.tools, self.x[rows], self.labels[rows], self.streams[rows])

    def prepare(self, eps: Tensor, number: int) -> Prepared:
        """Local norms with the run's assurance: good for every radius up to ``eps``.

        ``number`` names the preparation: a sample's coins are those of (sample, number, edge), so
        that they do not depend on the company of a batch, and none is used twice.
        """

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, edge: int) -> Tensor:
            return self.tools.norms.local(norm, mapping, self.streams, number, edge)

        return self.tools.bound.prepare(self.centre, eps, norm_of)

    def constant(self, eps: Tensor, prepared: Prepared) -> Tensor:
        """A Lipschitz constant of the logits over the balls, from above: ``(B,)``."""
        bound = self.tools.bound
        if isinstance(bound, LocalBound):
            return bound.constant(self.centre, eps, prepared)
        return torch.full_like(eps, bound.replaced(GlobalBound).product)

    def holds(self, eps: Tensor, prepared: Prepared) -> Tensor:
        """Whether every margin stays above what the deployed arithmetic can add: ``(B,)``.

        Strictly, so that a tie is refused; a NaN anywhere compares as false.
        """
        margins = self.tools.bound.margins(self.centre, self.labels, eps, prepared)
        needed = self.tools.deployment.pair_errors(self.deployed, self.labels, eps)
        return (margins > needed).scatter(1, self.labels[:, None], True).all(1)

    def guess(self, start: Tensor) -> Tensor:
        """About the largest radius that could certify, from estimated norms: ``(B,)``."""
        rough = self.tools.rough
        centre = rough.propagation.centre(self.x.to(rough.layers.network.anchor.dtype))

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, number: int) -> Tensor:
            return self.tools.norms.guessed(mapping, self.streams)

        def accepts(eps: Tensor) -> Tensor:
            single = eps.to(centre.logits.dtype)
            prepared = rough.prepare(centre, single, norm_of)
            margins = rough.margins(centre, self.labels, single, prepared)
            return (margins > 0).scatter(1, self.labels[:, None], True).all(1)

        limit = torch.full_like(start, self.diameter)
        return largest_radius(accepts, start, stride=2.0, limit=limit, resolution=1.005)

    def largest_certified(self, start: Tensor, number: int) -> Tensor:
        """The largest certified radius found, ``(B,)``; −1 where there is none.

        One preparation, where a guess says the best radius must lie; the radius is then searched
        below it with those norms.
        """
        guess = self.guess(start)
        # A guess may stop a little short; where it fails the caller's radius is as good a place.
        top = torch.where(guess > 0, guess * 1.01, start.clamp(max=self.diameter))
        prepared = self.prepare(top, number)
        return largest_radius(
            lambda eps: self.holds(eps, prepared) & (eps <= top),
            top,
            stride=1.03,
            limit=top,
            resolution=1.001,
        )
