"""The published bounds of the simplified network: ``local`` and ``global``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds import Bound, Facts, GlobalBound, Layers, LocalBound
from lipcert.certification.analysis import Analysis
from lipcert.certification.assured import EXCESS, AssuredNorms
from lipcert.certification.samples import Samples
from lipcert.certification.search import largest_radius, on_grid
from lipcert.network import Network
from lipcert.norms import GramMap, SegmentNorms, WeightedMap
from lipcert.numbers import Box

# Norms of a sample's own are cheap beside duals where the segments lead past no more values.
_CHEAP = 2.0**19
# Where better bounds follow, the first local norms need not be so near.
_ROUGHLY = 0.04
# What bounds the local constant, and for the published methods the margins too.
_BOUNDS: dict[str, type[Bound]] = {"global": GlobalBound, "local": LocalBound, "auto": LocalBound}


@dataclass(frozen=True, eq=False)
class Published:
    """``bound`` and its ``norms`` are of the simplified network; ``guide``, of its copy in float32,
    counts on estimated norms of samples, and ``rough`` on estimated ones throughout. All three are
    found when they are first asked for. An effort that takes no norms of a sample's own has them
    here all the same where they are cheap, so that ``auto`` is never below ``local``."""

    analysis: Analysis
    layers: Layers
    kind: type[Bound]
    norms: AssuredNorms

    @classmethod
    def of(cls, analysis: Analysis, kind: type[Bound] | None = None) -> Published:
        """``kind``: a bound in place of the method's own. In ``auto`` the norms may spend half of
        the run's failure probability, else all of it."""
        options, layers = analysis.options, _layers(analysis.simplified)
        kind = _BOUNDS[options.method] if kind is None else kind
        # The product of norms takes none of a sample's own.
        own = kind is not GlobalBound
        if options.method == "auto":
            own = analysis.pace.own_norms or _values_passed(layers) <= _CHEAP
        norms = AssuredNorms(
            layers.edges,
            options,
            analysis.budget,
            # At most: one at the largest eps, two for the radius, before a tube and after it, and
            # one at every eps; for verdicts alone two at every eps, and one before a tube.
            preparations=len(options.eps) + 3 if options.radii else 2 * len(options.eps) + 1,
            own=None if own else (),
            part=0.5 if options.method == "auto" else 1.0,
            guide=analysis.simplified_guide,
        )
        return cls(analysis, layers, kind, norms)

    @cached_property
    def bound(self) -> Bound:
        return self.kind.of(self.layers, self.norms.shared)

    @cached_property
    def guide(self) -> Bound:
        guide = self.analysis.simplified_guide
        return self.kind.of(_layers(guide), self.norms.shared_over(guide))

    @cached_property
    def rough(self) -> Bound:
        guide = self.analysis.simplified_guide
        return self.kind.of(_layers(guide), self.norms.rough_over(guide), estimated=True)

    def found(self) -> Published:
        """The same with all that samples share at hand: where every sample asks for it, whoever
        gets a copy need not find it again."""
        _ = self.bound, self.guide
        return self

    @property
    def product(self) -> float:
        """An upper bound of the network's Lipschitz constant: the product of its norms; infinite
        where the network has joints."""
        if self.analysis.loaded.joints:
            return math.inf
        return self.bound.replaced(GlobalBound).product

    def boxes(self, samples: Samples, eps: Tensor) -> list[Box]:
        """What ``first``, ``prepare``, ``slack`` and ``constant`` at the same ``eps`` can share."""
        return self.bound.boxes(samples.centre, samples.ball(eps))

    def first(self, samples: Samples, eps: Tensor, boxes: list[Box] | None = None) -> Facts:
        """What is worth finding of every sample. Where other bounds follow, local norms need not be
        so near the truth, and an effort that takes none of a sample's own does without; so does
        whoever asks for verdicts alone."""
        options = self.analysis.options
        if options.radii and options.method != "auto":
            return self.prepare(samples, eps, boxes=boxes)
        if options.radii and self.analysis.pace.own_norms:
            return self.prepare(samples, eps, _ROUGHLY, boxes)

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, edge: int) -> Tensor:
            assert norm is not None
            assert isinstance(mapping, WeightedMap)
            return norm.from_whole(mapping)

        return self.bound.prepare(samples.centre, samples.ball(eps), norm_of, boxes)

    def prepare(
        self, samples: Samples, eps: Tensor, excess: float = EXCESS,
        boxes: list[Box] | None = None,
    ) -> Facts:  # fmt: skip
        """Finds local norms with the run's assurance, which hold at every radius up to ``eps``."""
        preparation = samples.allowance.preparation(self.norms.account)

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, edge: int) -> Tensor:
            return self.norms.local(norm, mapping, preparation, edge, excess)

        return self.bound.prepare(samples.centre, samples.ball(eps), norm_of, boxes)

    def constant(
        self, samples: Samples, eps: Tensor, facts: Facts, boxes: list[Box] | None = None
    ) -> Tensor:
        """Bounds a Lipschitz constant of the logits over the balls from above: ``(B,)``."""
        if isinstance(self.bound, LocalBound):
            return self.bound.constant(samples.centre, samples.ball(eps), facts, boxes)
        return torch.full_like(eps, self.product)

    def slack(
        self, samples: Samples, eps: Tensor, facts: Facts, boxes: list[Box] | None = None
    ) -> tuple[Tensor, Tensor]:
        """How far the margins stay above what the deployed arithmetic can add, at least, and the
        most that it can, where they do, else NaN: ``(B,)`` each.

        Certified where positive, so that a tie is refused, and a NaN.
        """
        ball = samples.ball(eps)
        margins = self.bound.margins(samples.centre, samples.labels, ball, facts, boxes)
        head = self.analysis.head
        slack = head.least(margins, samples.labels)
        deployed = torch.full_like(eps, math.nan)
        # Where that fails what the deployed arithmetic adds does not matter.
        rows = (slack > 0).nonzero().flatten()
        if len(rows):
            errors = self._errors(samples.select(rows), ball[rows], margins[rows])
            slack[rows] = head.least(margins[rows] - errors, samples.labels[rows])
            deployed[rows] = torch.where(slack[rows] > 0, errors.amax(1), math.nan)
        return slack, deployed

    def rounding(self, samples: Samples, eps: Tensor) -> Tensor:
        """Finds the largest deployed error of the samples' margins: ``(B,)``."""
        return self._errors(samples, samples.ball(eps), None).amax(1)

    def _errors(self, samples: Samples, ball: Tensor, margins: Tensor | None) -> Tensor:
        """Finds the deployed errors of all margins that count: ``(B, K)``, 0 elsewhere."""
        errors = self.analysis.deployment.pair_errors(
            samples.deployed, samples.labels, ball, margins=margins
        )
        return self.analysis.head.among(errors, samples.labels, 0.0)

    def estimated_slack(
        self, samples: Samples, eps: Tensor, steps: int | None = None, *, rough: bool = False
    ) -> Tensor:
        """Says how far margins stay above 0 by estimated norms, which are too small if anything.
        ``steps``: of Lanczos, from what the samples share, as many as usual from coins if None;
        ``rough``: norms of all samples are estimates too, so that none of these has to be found."""
        guide = self.rough if rough else self.guide
        centre = guide.propagation.centre(samples.x.to(guide.layers.network.anchor.dtype))

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, number: int) -> Tensor:
            if steps is not None:
                assert norm is not None
                assert isinstance(mapping, WeightedMap)
                return self.norms.glimpsed(norm, mapping, steps)
            return self.norms.guessed(norm, mapping, samples.allowance)

        single = eps.to(centre.logits.dtype)
        boxes = guide.boxes(centre, single)
        facts = guide.prepare(centre, single, norm_of, boxes)
        margins = guide.margins(centre, samples.labels, single, facts, boxes)
        return self.analysis.head.least(margins, samples.labels).to(eps)

    def largest_certified(self, samples: Samples, start: Tensor) -> tuple[Tensor, Tensor]:
        """The largest certified radius found, −1 where there is none, and the deployed error that
        it was charged: ``(B,)`` each.

        One preparation, where a guess says the best radius must lie; the radius is then searched
        below it with those norms.
        """
        limit, clean = torch.full_like(start, self.analysis.reach), samples.decisive

        def estimated(eps: Tensor, asked: Tensor) -> Tensor:
            return self.estimated_slack(samples, eps)

        begin = on_grid(start)
        guess = largest_radius(estimated, begin, clean=clean, limit=limit, resolution=1.005)
        # A guess may stop a little short; where it fails the caller's radius is as good a place.
        top = torch.where(guess > 0, guess * 1.01, start.minimum(limit))
        facts, deployed = self.prepare(samples, top), torch.full_like(start, math.nan)

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            nonlocal deployed
            found, error = self.slack(samples, eps, facts)
            found = torch.where(eps <= top, found, torch.nan)
            # What was tried last and held is the largest yet.
            deployed = torch.where(asked & (found > 0), error, deployed)
            return found

        begin = on_grid(top)
        radius = largest_radius(slack, begin, clean=clean, limit=top, resolution=1.001)
        return radius, deployed


def _layers(network: Network) -> Layers:
    """Norms of segments say nothing of what lies behind a joint: a network with joints has none."""
    return Layers(network, (), {}, {}) if network.joints else Layers.of(network)


def _values_passed(layers: Layers) -> int:
    """How many values all segments lead past, counted for each: what one sweep through them is."""
    nodes = layers.network.nodes
    return sum(math.prod(nodes[i].shape) for edge in layers.edges for i in edge.path)
