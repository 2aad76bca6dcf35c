"""One batch of samples on its way to radii: what is tried at which radius, and what it proves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds import Bound, GlobalBound, LocalBound, Prepared
from lipcert.bounds.boxes import Centre
from lipcert.certification.assured import EXCESS, AssuredNorms
from lipcert.certification.deployed import Deployment
from lipcert.certification.search import largest_radius
from lipcert.network import Network
from lipcert.norms import Allowance, GramMap, SegmentNorms
from lipcert.numbers import OUT64
from lipcert.rounding import gamma


@dataclass(frozen=True, eq=False)
class Tools:
    """What a batch works with: the bound, its copy in float32 for guesses, the norms, and what the
    deployed arithmetic adds."""

    bound: Bound
    rough: Bound
    norms: AssuredNorms
    deployment: Deployment
    # How far two samples can be apart: no radius beyond is sought.
    reach: float


@dataclass(frozen=True, eq=False)
class Rounded:
    """Samples as an analysis in a narrower type has them: ``x``, still in float64, and how far from
    the given ones, ``(B,)``. A ball around a sample lies in a ball around the rounded one that is
    larger by so much: that one is analysed."""

    x: Tensor
    distance: Tensor | None

    @classmethod
    def of(cls, x: Tensor, network: Network) -> Rounded:
        dtype = network.anchor.dtype
        if dtype == x.dtype:
            return cls(x, None)
        near = x.to(dtype).to(x.dtype)
        distance = (x - near).flatten(1).norm(dim=1)
        return cls(near, distance * (1 + gamma(math.prod(x.shape[1:]) + 8)))

    def ball(self, eps: Tensor) -> Tensor:
        """The radius around the rounded samples that covers ``eps`` around the given ones."""
        return eps if self.distance is None else OUT64.add(eps, self.distance)


class Batch:
    """Samples ``x`` ``(B, …)`` in float64, exact, with their labels and the ``allowance`` of their
    coins."""

    def __init__(
        self, tools: Tools, x: Tensor, labels: Tensor, allowance: Allowance, *,
        centre: Centre | None = None, deployed: Centre | None = None,
    ) -> None:  # fmt: skip
        self.tools, self.x, self.labels, self.allowance = tools, x, labels, allowance
        self.rounded = Rounded.of(x, tools.bound.layers.network)
        self.centre = centre or tools.bound.propagation.centre(self.rounded.x)
        self.deployed = deployed or tools.deployment.centre(self.rounded.x)
        # The largest deployed error at the last radius that held.
        self.charged = torch.full((len(x),), math.nan, dtype=x.dtype, device=x.device)
        self.diameter = tools.reach

    @property
    def logits(self) -> Tensor:
        """At the samples as given, ``(B, K)``."""
        if self.rounded.distance is None:
            return self.centre.logits
        return self.tools.deployment.propagation.network.logits(self.x)

    def subset(self, rows: Tensor) -> Batch:
        """Some of the samples."""
        return Batch(
            self.tools, self.x[rows], self.labels[rows], self.allowance.select(rows),
            centre=self.centre.select(rows), deployed=self.deployed.select(rows),
        )  # fmt: skip

    def prepare(self, eps: Tensor, excess: float = EXCESS) -> Prepared:
        """Local norms with the run's assurance: good for every radius up to ``eps``."""
        norms = self.tools.norms
        preparation = self.allowance.preparation(norms.account)

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, edge: int) -> Tensor:
            return norms.local(norm, mapping, preparation, edge, excess)

        return self.tools.bound.prepare(self.centre, self.rounded.ball(eps), norm_of)

    def constant(self, eps: Tensor, prepared: Prepared) -> Tensor:
        """A Lipschitz constant of the logits over the balls, from above: ``(B,)``."""
        bound = self.tools.bound
        if isinstance(bound, LocalBound):
            return bound.constant(self.centre, self.rounded.ball(eps), prepared)
        return torch.full_like(eps, bound.replaced(GlobalBound).product)

    def slack(self, eps: Tensor, prepared: Prepared) -> Tensor:
        """How far the margins stay above what the deployed arithmetic can add, at least: ``(B,)``.

        Certified where positive, so that a tie is refused, and a NaN.
        """
        ball = self.rounded.ball(eps)
        margins = self.tools.bound.margins(self.centre, self.labels, ball, prepared)
        slack = self._least(margins)
        # Where that fails what the deployed arithmetic adds does not matter.
        rows = (slack > 0).nonzero().flatten()
        if len(rows):
            errors = self._errors(ball, rows, margins[rows])
            slack[rows] = self._least(margins[rows] - errors, rows)
            self.charged[rows] = torch.where(slack[rows] > 0, errors.amax(1), self.charged[rows])
        return slack

    def rounding(self, eps: Tensor, rows: Tensor) -> Tensor:
        """The largest deployed error of some samples' margins: ``(rows,)``."""
        return self._errors(self.rounded.ball(eps), rows, None).amax(1)

    def _errors(self, ball: Tensor, rows: Tensor, margins: Tensor | None) -> Tensor:
        """Deployed errors of some samples: ``(rows, K)``, 0 at the labels."""
        labels = self.labels[rows]
        errors = self.tools.deployment.pair_errors(
            self.deployed.select(rows), labels, ball[rows], margins=margins
        )
        return errors.scatter(1, labels[:, None], 0)

    def holds(self, eps: Tensor, prepared: Prepared) -> Tensor:
        return self.slack(eps, prepared) > 0

    def _least(self, margins: Tensor, rows: Tensor | None = None) -> Tensor:
        """Of all samples, or some of them. A NaN is the least of all."""
        labels = self.labels if rows is None else self.labels[rows]
        return margins.scatter(1, labels[:, None], math.inf).amin(1)

    @property
    def _clean(self) -> Tensor:
        logits = self.centre.logits
        return self._least(logits.gather(1, self.labels[:, None]) - logits)

    def rough_slack(self, eps: Tensor) -> Tensor:
        """How far the margins stay above 0 by estimated norms, which are too small if anything."""
        rough = self.tools.rough
        centre = rough.propagation.centre(self.x.to(rough.layers.network.anchor.dtype))

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, number: int) -> Tensor:
            return self.tools.norms.guessed(norm, mapping, self.allowance)

        single = eps.to(centre.logits.dtype)
        prepared = rough.prepare(centre, single, norm_of)
        return self._least(rough.margins(centre, self.labels, single, prepared)).to(eps)

    def guess(self, start: Tensor) -> Tensor:
        """About the largest radius that could certify, from estimated norms: ``(B,)``."""
        limit = torch.full_like(start, self.diameter)

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            return self.rough_slack(eps)

        return largest_radius(slack, start, clean=self._clean, limit=limit, resolution=1.005)

    def largest_certified(self, start: Tensor) -> Tensor:
        """The largest certified radius found, ``(B,)``; −1 where there is none.

        One preparation, where a guess says the best radius must lie; the radius is then searched
        below it with those norms.
        """
        guess = self.guess(start)
        # A guess may stop a little short; where it fails the caller's radius is as good a place.
        top = torch.where(guess > 0, guess * 1.01, start.clamp(max=self.diameter))
        prepared = self.prepare(top)

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            return torch.where(eps <= top, self.slack(eps, prepared), torch.nan)

        return largest_radius(slack, top, clean=self._clean, limit=top, resolution=1.001)
