"""Margins from a state: what each has to exceed, and duals that prove that it does.

Slopes and multipliers are sought in float32; what is reported was proven in float64, with norms
under the run's assurance, at that very radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.anchored_bound import state_margins
from lipcert.bounds.coupled import coupled
from lipcert.bounds.dual import DualBound
from lipcert.bounds.facts import Facts
from lipcert.bounds.lipschitz import Layers
from lipcert.bounds.noise import Noise, NoiseSweep
from lipcert.bounds.objectives import DualVariables, Objectives, margin_objectives
from lipcert.bounds.split import Splitter
from lipcert.bounds.state import State, select, to_dtype
from lipcert.certification.analysis import Analysis
from lipcert.certification.samples import Samples
from lipcert.certification.warm_start import WarmStart
from lipcert.chunks import at_once, slices
from lipcert.numbers import OUT64

# On a CPU so many objectives are sought at once, and so many proven, in twice the precision.
_SOUGHT, _PROVEN = 128, 32
# A deployed error below this share of a margin need not be known better.
_SMALL = 0.01


@dataclass(frozen=True, eq=False)
class Region:
    """Balls around samples: the facts that were found for them, the state there, what each margin
    has to exceed ``(B, K)``, −∞ where none counts, at the label itself and at outputs that do not
    compete, and the largest deployed error in that, ``(B,)``."""

    facts: Facts
    state: State
    needed: Tensor
    deployed: Tensor

    def select(self, rows: Tensor) -> Region:
        """Takes some of the samples."""
        return Region(
            self.facts.select(rows), select(self.state, rows), self.needed[rows],
            self.deployed[rows],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Open:
    """How far margins were proven above what they need, ``(B, K)``, in a ``region`` around ``rows``
    of a batch, and whether samples are ``proven`` by that, ``(B,)``; of the margins that are open
    their objectives, classes, and the multipliers that came nearest; none of samples that are
    hopeless on these boxes."""

    rows: Tensor
    region: Region
    slack: Tensor
    proven: Tensor
    objectives: Objectives
    others: Tensor
    found: DualVariables | None


@dataclass(frozen=True, eq=False)
class MarginProver:
    """The duals of one version of the network: ``dual`` proves, ``guide`` seeks. ``noise`` is None
    where the rounding of the deployed network has to be found apart from the bounds."""

    analysis: Analysis
    layers: Layers
    dual: DualBound
    guide: DualBound
    noise: Noise | None

    @classmethod
    def of(
        cls, analysis: Analysis, layers: Layers, duals: tuple[DualBound, DualBound]
    ) -> MarginProver:
        return cls(analysis, layers, *duals, analysis.deployment.noise(layers.network))

    def anchored_margins(self, samples: Samples, state: State) -> Tensor:
        """Bounds the margins by the last layer's ball and box: ``(B, K)``."""
        return state_margins(self.layers, samples.centre, samples.labels, state)

    def needed(
        self, samples: Samples, eps: Tensor, state: State, sweep: NoiseSweep | None
    ) -> tuple[Tensor, Tensor]:
        """What each margin has to exceed, ``(B, K)``: −∞ where none counts; and the largest
        deployed error in that, ``(B,)``. Where a ``sweep`` has brought noise into the state only
        the logits' own rounding is left."""
        deployment, labels, ball = self.analysis.deployment, samples.labels, samples.ball(eps)
        own = labels[:, None]
        if sweep is None:
            pair = deployment.pair_errors(
                samples.deployed, labels, ball, margins=_SMALL * samples.clean
            )
            worth = torch.zeros_like(eps)
        else:
            each = sweep.logits(state)
            always = deployment.always(
                lambda: deployment.propagation.boxes(samples.deployed, ball)[-1],
                each, labels, ball,
            )  # fmt: skip
            pair = OUT64.add(each.gather(1, own), each, always)
            pair, worth = pair.nan_to_num(math.inf, math.inf), self._drifts(samples, state)
        head = self.analysis.head
        deployed = head.among(pair, labels, 0.0).amax(1) + worth
        return head.among(pair, labels, -math.inf), deployed.nan_to_num(math.inf, math.inf)

    def _drifts(self, samples: Samples, state: State) -> Tensor:
        """Says what all drifts are worth to the class that decides, to first order: ``(B,)``."""
        rows = torch.arange(len(samples), device=samples.x.device)
        nearest = self.analysis.head.nearest(samples.clean, 1)[:, -1]
        objectives = margin_objectives(self.dual.network, rows, samples.labels, nearest)
        return self.dual.drifts(to_dtype(state, torch.float64), objectives)

    def verdict(self, samples: Samples, region: Region, start: WarmStart, rows: Tensor) -> Open:
        """Which margins are proven, slopes optimised in stages; the samples are the ``rows`` of
        their batch."""
        pace, head, labels = self.analysis.pace, self.analysis.head, samples.labels
        state, needed, clean = region.state, region.needed, samples.decisive
        if self.layers.network.joints:
            # What balls of all layers say ends at the first of them.
            best = torch.full_like(needed, -math.inf)
        else:
            best = self.anchored_margins(samples, state) - needed
        best = head.among(best, labels, math.inf)
        hopeless = ~(head.least(samples.clean - needed, labels) > 0)
        proven = head.least(best, labels) > 0
        which = head.is_open(best) & ~(hopeless | proven)[:, None]
        objectives, others = self.objectives(samples, which)
        found: DualVariables | None = None
        for stage, steps in enumerate(pace.stages):
            if not len(objectives):
                break
            if found is not None and stage == len(pace.stages) - 1 and pace.coupled:
                found = coupled(self.dual.network, state, found)
            from_ = start if found is None else found
            _, found = self.optimised(samples, state, objectives, others, from_, steps)
            slack = self.certified(samples, state, objectives, others, found)
            place = objectives.rows, others
            slack = slack - needed[place]
            best[place] = torch.fmax(best[place], slack)
            proven = head.least(best, labels) > 0
            if stage == 0 and head.pairwise:
                # Too many that are so far off leave no hope.
                near = torch.where(head.is_open(best), -1.0, 1.0)
                near[place] = torch.where(slack > -pace.hopeless * clean[place[0]], 1.0, -1.0)
                hopeless |= ~(head.least(near, labels) > 0)
            left = head.is_open(best[place]) & ~(hopeless | proven)[objectives.rows]
            left = left.nonzero().flatten()
            objectives, others, found = objectives.select(left), others[left], found.select(left)
        return Open(rows, region, best, proven, objectives, others, found)

    def split(self, samples: Samples, open_: Open, leaves: int, seconds: float) -> Tensor:
        """Whether all margins of a sample are proven, ``(B,)``, after branch and bound of those
        that were still open, begun within so many seconds."""
        objectives, others, found = open_.objectives, open_.others, open_.found
        if found is None or not len(objectives) or not self.analysis.head.pairwise:
            return open_.proven
        splitter = Splitter(
            self.dual, self.guide, select(open_.region.state, objectives.rows), objectives,
            _clean_of(samples, objectives, others), open_.region.needed[objectives.rows, others],
        )  # fmt: skip
        leaves = min(leaves, int(self.analysis.pace.leaf_work / splitter.neurons))
        proven = splitter.proven(found, leaves=leaves, seconds=seconds)
        slack = open_.slack.clone()
        place = objectives.rows, others
        slack[place] = torch.where(proven, math.inf, slack[place])
        return self.analysis.head.least(slack, samples.labels) > 0

    def objectives(self, samples: Samples, which: Tensor) -> tuple[Objectives, Tensor]:
        """The margins where ``which`` ``(B, K)`` is set, but where none counts: objectives and
        classes."""
        head = self.analysis.head
        which = head.among(which, samples.labels, False)
        if head.top_k > 1:
            # No rival that is ahead of the label at the sample can be shown to stay behind.
            which = which & ~samples.ahead
        rows, others = which.nonzero().unbind(1)
        return margin_objectives(self.layers.network, rows, samples.labels[rows], others), others

    def untold(self, samples: Samples) -> Tensor:
        """Margins ``(B, K)`` of which nothing is told yet: infinite, but for those that cannot be
        positive."""
        return torch.full_like(samples.clean, math.inf).masked_fill(samples.ahead, -math.inf)

    def parts(self, count: int, cached: int = _SOUGHT) -> list[slice]:
        """Places of so many objectives, in parts that are worked on at once."""
        device = self.layers.network.anchor.device
        return slices(count, at_once(cached * self.values, device, each=self.values))

    @cached_property
    def values(self) -> int:
        """How many an objective passes on its way back."""
        network = self.layers.network
        return sum(math.prod(network.nodes[i].shape) for i in network.sources)

    def optimised(
        self, samples: Samples, state: State, objectives: Objectives, others: Tensor,
        start: WarmStart | DualVariables, steps: int,
    ) -> tuple[Tensor, DualVariables]:  # fmt: skip
        """Seeks multipliers in float32, some objectives at a time, and says about how large the
        changes are that they prove."""
        clean, parts = samples.clean, []
        changes = [clean[:0, 0]]
        # The guide charges no drift.
        single = to_dtype(state, torch.float32)
        single = {i: replace(layer, drift=None) for i, layer in single.items()}
        for some in self.parts(len(objectives)):
            part = objectives.select(some).to(torch.float32)
            own = select(single, part.rows)
            if isinstance(start, WarmStart):
                begun = start.start(self.guide, own, part, others[some])
            else:
                begun = start.select(some)
            change, better = self.guide.optimise(own, part, begun, steps)
            changes.append(change.to(clean.dtype))
            parts.append(better)
        return torch.cat(changes), DualVariables.joined(parts)

    def certified(
        self,
        samples: Samples,
        state: State,
        objectives: Objectives,
        others: Tensor,
        found: DualVariables,
    ) -> Tensor:
        """Proves lower bounds of the margins, ``(N,)``, from the variables that were found."""
        clean = _clean_of(samples, objectives, others)
        values = [clean[:0]]
        for some in self.parts(len(objectives), _PROVEN):
            part = objectives.select(some)
            change = self.dual.certified(select(state, part.rows), part, found.select(some))
            slack = OUT64.error(clean[some].abs() + change.abs(), 2)
            values.append(clean[some] + change - slack)
        return torch.cat(values)


def _clean_of(samples: Samples, objectives: Objectives, others: Tensor) -> Tensor:
    """Rounds the margins at the samples down: ``(N,)``."""
    logits = samples.centre.logits[objectives.rows]
    errors = samples.centre.logit_errors[objectives.rows]
    label, other = samples.labels[objectives.rows][:, None], others[:, None]
    clean = logits.gather(1, label) - logits.gather(1, other)
    # The difference of logits is rounded.
    made = OUT64.error(clean.abs(), 2)
    found = OUT64.below(clean, errors.gather(1, label), errors.gather(1, other), made)
    return found.squeeze(1)
