"""About how far the backward rungs will prove: estimated norms, float32, a few classes.

A guess only decides where the dear part, norms and multipliers, is made once for all smaller radii,
and which samples are not worth it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lipcert.bounds import AnchoredBound, Prepared
from lipcert.bounds.anchored import Noised, State, select
from lipcert.bounds.boxes import Box
from lipcert.bounds.forms import Forms
from lipcert.certification.backward import FORMS_AT_ONCE, BackwardBatch
from lipcert.certification.search import largest_radius
from lipcert.norms import GramMap, SegmentNorms, WeightedMap

# After its first radius a guess looks only at margins that come within so much of the clean one of
# the nearest.
_ASIDE = 0.3
# A ball of this share of the limit is small.
_SMALL = 1e-6
# At its first radius it takes so many times the steps of the others.
_FIRST_GUESS = 2
# So much further than a guess without them refined boxes often lead, where they pay.
_AHEAD = 1.2


class Guess:
    """Guesses for one batch, up to the radius ``limit``, ``(B,)``. Where rounding in the deployed
    network may be large, ``doubtful``, ``noise`` is about what it adds in small balls, by node;
    ``hopeless`` are the samples of which that leaves nothing; ``ahead`` is how many times as far as
    the guess boxes may lead that are only refined for the proof; ``(B,)`` each."""

    def __init__(self, batch: BackwardBatch, limit: Tensor, doubtful: Tensor) -> None:
        self.batch, self.bound, self.guide = batch, batch.tools.rough, batch.tools.guide
        self.limit = limit
        self.centre = self.bound.propagation.anchors(batch.x.float())
        self.noise: dict[int, Noised] = {}
        self.hopeless = torch.zeros_like(batch.labels, dtype=torch.bool)
        self.ahead = torch.ones_like(limit)
        if batch.tools.noise is not None and bool(doubtful.any()):
            self._rest(_SMALL * limit, doubtful)

    def _rest(self, eps: Tensor, doubtful: Tensor) -> None:
        """In balls where norms of a sample's own say little; but if they might rescue it."""
        batch, still = self.batch, self.batch.tools.still
        assert batch.tools.noise is not None

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            assert norm is not None
            assert isinstance(mapping, WeightedMap)
            return norm.from_whole(mapping)

        sweep = batch.tools.noise.over(eps)
        found, state = still.prepare_state(self.centre, eps.float(), norm_of, sweep.before)
        self.noise = {node: noise.where(doubtful, 0.0) for node, noise in found.noise.items()}
        margins = still.margins_in(self.centre, batch.labels, state)
        if bool((margins.scatter(1, batch.labels[:, None], 1.0) > 0).all()):
            return
        values = torch.full_like(margins, torch.inf, dtype=torch.float64)
        state = self.state(eps)
        for forms, others in self._forms(_nearest(batch, margins)):
            own = select(state, forms.rows)
            change, _ = self.guide.optimise(own, forms, self.guide.start(own, forms), 0)
            values[forms.rows, others] = batch.clean[forms.rows, others] + change.double()
        self.hopeless = doubtful & ~(values.amin(1) > 0)

    def state(self, eps: Tensor) -> State:
        """The anchored state in float32, with estimated norms."""
        return self._prepared(self.bound, eps)[1]

    def _prepared(self, bound: AnchoredBound, eps: Tensor) -> tuple[Prepared, State]:
        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return self.batch.tools.norms.guessed(norm, mapping, self.batch.allowance)

        def noise_of(node: int, state: State, box: Box) -> Noised:
            return self.noise[node]

        noisy = noise_of if self.noise else None
        return bound.prepare_state(self.centre, eps.float(), norm_of, noisy)

    def radius(self, start: Tensor) -> Tensor:
        """About the largest radius that the dual proves: ``(B,)``, −1 where there is none."""
        batch, bound, guide = self.batch, self.bound, self.guide
        clean = batch.clean.amin(1)
        values = torch.full_like(start, torch.nan)
        which: Tensor | None = None

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            nonlocal values, which
            prepared, state = self._prepared(batch.tools.trial if which is None else bound, eps)
            margins = bound.margins_in(self.centre, batch.labels, state)
            if which is None:
                self.ahead = self._ahead(prepared)
            # The first look starts from nothing.
            steps = batch.tools.pace.guess_steps * (_FIRST_GUESS if which is None else 1)
            which = _nearest(batch, margins) if which is None else which
            best = torch.full_like(margins, torch.inf, dtype=torch.float64)
            for forms, others in self._forms(which & asked[:, None]):
                own = select(state, forms.rows)
                start = batch.seeds.start(guide, own, forms, others)
                change, found = guide.optimise(own, forms, start, steps)
                batch.seeds = batch.seeds.renewed(forms, others, found, eps)
                value = batch.clean[forms.rows, others] + change.double()
                anchored = margins[forms.rows, others].double()
                best[forms.rows, others] = value.maximum(anchored)
            # What a sample gets must not depend on how long others take.
            values = torch.where(asked, best.amin(1), values)
            near = best < (values + _ASIDE * clean)[:, None]
            which = torch.where(asked[:, None], near, which)
            return values

        return largest_radius(
            slack, start, clean=clean, limit=self.limit, resolution=1.01,
            steps=batch.tools.pace.guesses,
        )  # fmt: skip

    def _ahead(self, prepared: Prepared) -> Tensor:
        pays = torch.zeros_like(self.hopeless)
        for shrunk in prepared.shrunk.values():
            pays = pays | (shrunk < self.batch.tools.worth)
        return torch.where(pays, _AHEAD, 1.0)

    def _forms(self, which: Tensor) -> Iterator[tuple[Forms, Tensor]]:
        """Those margins' forms and classes in float32, some at a time."""
        forms, others = self.batch.forms(which)
        for some in torch.split(torch.arange(len(forms)), FORMS_AT_ONCE):
            yield forms.select(some).to(torch.float32), others[some]


def _nearest(batch: BackwardBatch, margins: Tensor) -> Tensor:
    """The margins that seem nearest, a few of each sample: ``(B, K)``."""
    margins = margins.scatter(1, batch.labels[:, None], torch.inf)
    count = min(batch.tools.pace.guessed_classes, margins.shape[1] - 1)
    nearest = margins.topk(count, 1, largest=False)
    return torch.zeros_like(margins).scatter(1, nearest[1], 1.0) > 0
