"""About how far the duals will prove: estimated norms, float32, a few classes.

A guess only decides where norms and multipliers, which take most of the time, are found once for
all smaller radii, and which samples are not worth it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds import Facts
from lipcert.bounds.anchored_bound import state_margins
from lipcert.bounds.boxes import Centre
from lipcert.bounds.facts import FactPlan
from lipcert.bounds.objectives import Objectives
from lipcert.bounds.refined import Refinement
from lipcert.bounds.state import Noised, State, select
from lipcert.certification.duals import Duals
from lipcert.certification.samples import Samples
from lipcert.certification.search import largest_radius, on_grid
from lipcert.certification.warm_start import WarmStart
from lipcert.norms import GramMap, SegmentNorms, WeightedMap
from lipcert.numbers import Box

# After its first radius a guess looks only at margins that come within so much of the clean one of
# the nearest.
_ASIDE = 0.3
# A ball of this share of the limit is small.
_SMALL = 1e-6
# At its first radius it takes so many times the steps of the others.
_FIRST_GUESS = 2
# So much further than a guess without them refined boxes often lead, where they pay.
_AHEAD = 1.2
# A radius that failed by less than this share of the clean margin is nearly one: the proof, which
# takes more steps, begins there.
_NEARLY = 0.25


@dataclass(frozen=True, eq=False)
class Guess:
    """Guesses for some samples with the values ``centre`` in float32, up to the radius ``limit``,
    ``(B,)``. Where rounding in the deployed network may be large, ``noise`` is about what it adds
    in small balls, by node; ``hopeless`` ``(B,)`` are the samples of which that leaves nothing."""

    duals: Duals
    samples: Samples
    centre: Centre
    limit: Tensor
    noise: dict[int, Noised]
    hopeless: Tensor

    @classmethod
    def of(cls, duals: Duals, samples: Samples, limit: Tensor, doubtful: Tensor) -> Guess:
        """Looks into the rounding of the samples that are ``doubtful``, ``(B,)``."""
        centre = duals.guide.propagation.anchors(samples.x.float())
        never = torch.zeros_like(samples.labels, dtype=torch.bool)
        guess = cls(duals, samples, centre, limit, {}, never)
        if duals.prover.noise is None or not bool(doubtful.any()):
            return guess
        return guess._with_noise(_SMALL * limit, doubtful)

    def _with_noise(self, eps: Tensor, doubtful: Tensor) -> Guess:
        """Finds the noise in small balls, where norms of a sample's own say little, and the samples
        that even these norms would not rescue."""
        duals, samples, noise = self.duals, self.samples, self.duals.prover.noise
        assert noise is not None

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            assert norm is not None
            assert isinstance(mapping, WeightedMap)
            return norm.from_whole(mapping)

        # For what is so at radius 0 no norm of a sample's own is of use.
        plan = FactPlan(narrow=0, chains=False, refinement=None)
        found, state = duals.guide.prepare_state(
            self.centre, eps.float(), norm_of, noise.over(eps).before, plan
        )
        kept = {node: noise.where(doubtful, 0.0) for node, noise in found.noise.items()}
        noisy = Guess(duals, samples, self.centre, self.limit, kept, self.hopeless)
        margins = noisy._margins(state)
        head, labels = duals.analysis.head, samples.labels
        if bool((head.least(margins, labels) > 0).all()):
            return noisy
        values, clean = duals.prover.untold(samples), samples.clean
        state, guide = noisy._prepared(eps, noisy._cheap)[1], duals.prover.guide
        for objectives, others in noisy._objectives(noisy._nearest(margins)):
            own = select(state, objectives.rows)
            change, _ = guide.optimise(own, objectives, guide.start(own, objectives), 0)
            values[objectives.rows, others] = clean[objectives.rows, others] + change.double()
        hopeless = doubtful & ~(head.least(values, labels) > 0)
        return Guess(duals, samples, self.centre, self.limit, kept, hopeless)

    def radius(
        self, start: Tensor, asked_for: Tensor, looks: int | None = None
    ) -> tuple[Tensor, Tensor, WarmStart]:
        """Guesses the largest radius that the dual proves, −1 where none was found, and where its
        proof is to begin: as far again as boxes may lead that are only refined for it, or at the
        least radius that was looked at in vain, if that was nearly one, or at that
        ``asked_for``; ``(B,)`` each. The multipliers come with it. ``looks``: how many radii are
        looked at, as many as the effort says by default.
        """
        duals, samples, guide = self.duals, self.samples, self.duals.prover.guide
        pace, whole = duals.analysis.pace, samples.clean
        head, clean = duals.analysis.head, samples.decisive
        values = torch.full_like(start, torch.nan)
        which: Tensor | None = None
        ahead, found_before = torch.ones_like(start), WarmStart.none(whole)
        failed, short = torch.full_like(start, math.inf), torch.full_like(start, -math.inf)

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            nonlocal values, which, ahead, found_before, failed, short
            facts, state = self._prepared(eps, self._trial if which is None else self._cheap)
            margins = self._margins(state)
            if which is None:
                ahead = self._ahead(facts)
            # The first look starts from nothing.
            steps = pace.guess_steps * (_FIRST_GUESS if which is None and looks != 1 else 1)
            which = self._nearest(margins) if which is None else which
            best = duals.prover.untold(samples)
            for objectives, others in self._objectives(which & asked[:, None]):
                own = select(state, objectives.rows)
                begun = found_before.start(guide, own, objectives, others)
                change, found = guide.optimise(own, objectives, begun, steps)
                found_before = found_before.renewed(objectives, others, found, eps)
                value = whole[objectives.rows, others] + change.double()
                anchored = margins[objectives.rows, others].double()
                best[objectives.rows, others] = value.maximum(anchored)
            # What a sample gets must not depend on how long others take.
            values = torch.where(asked, head.least(best, samples.labels), values)
            nearer = asked & ~(values > 0) & (eps < failed)
            failed, short = torch.where(nearer, eps, failed), torch.where(nearer, values, short)
            decides = values if head.pairwise else head.deciding(best) + _ASIDE
            near = best < (decides + _ASIDE * clean)[:, None]
            which = torch.where(asked[:, None], near, which)
            return values

        radius = largest_radius(
            slack, on_grid(start), clean=clean, limit=self.limit, resolution=1.01,
            steps=pace.guesses if looks is None else looks,
        )  # fmt: skip
        begin = torch.where(short > -_NEARLY * clean, failed, failed.minimum(asked_for))
        return radius, torch.where(radius > 0, radius * ahead, begin), found_before

    @property
    def _cheap(self) -> Refinement | None:
        """A guess does without the boxes that are only refined where that pays."""
        boxes = self.duals.analysis.pace.boxes
        return boxes and replace(boxes, tried=0.0)

    @property
    def _trial(self) -> Refinement | None:
        """Its first look tries whether that would pay."""
        boxes = self.duals.analysis.pace.boxes
        return boxes and replace(boxes, worth=0.0)

    def _prepared(self, eps: Tensor, refinement: Refinement | None) -> tuple[Facts, State]:
        """Finds facts and state in float32, with estimated norms."""

        def noise_of(node: int, state: State, box: Box) -> Noised:
            return self.noise[node]

        return self.duals.estimated(
            self.samples.allowance, self.centre, eps, refinement, noise_of if self.noise else None
        )

    def _margins(self, state: State) -> Tensor:
        layers = self.duals.guide.layers
        return state_margins(layers, self.centre, self.samples.labels, state)

    def _ahead(self, facts: Facts) -> Tensor:
        boxes, pays = self.duals.analysis.pace.boxes, torch.zeros_like(self.hopeless)
        for shrunk in facts.shrunk.values():
            pays = pays | (shrunk < (0.0 if boxes is None else boxes.worth))
        return torch.where(pays, _AHEAD, 1.0).to(self.limit)

    def _objectives(self, which: Tensor) -> Iterator[tuple[Objectives, Tensor]]:
        """Yields those margins' objectives and classes in float32, some at a time."""
        objectives, others = self.duals.prover.objectives(self.samples, which)
        for some in self.duals.prover.parts(len(objectives)):
            yield objectives.select(some).to(torch.float32), others[some]

    def _nearest(self, margins: Tensor) -> Tensor:
        """Chooses the margins that seem nearest, a few of each sample: ``(B, K)``."""
        head, pace = self.duals.analysis.head, self.duals.analysis.pace
        margins = head.among(margins, self.samples.labels, math.inf)
        nearest = head.nearest(margins, pace.guessed_classes)
        return torch.zeros_like(margins).scatter(1, nearest, 1.0) > 0
