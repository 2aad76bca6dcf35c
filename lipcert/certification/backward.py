"""The backward rungs: anchored states, duals, and their verdicts.

Where to look is guessed in float32 with estimated norms; what is reported was proven in float64
with norms under the run's assurance, at that very radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds import AnchoredBound, Layers, Prepared
from lipcert.bounds.anchored import State, select, to_dtype
from lipcert.bounds.boxes import Box, Centre
from lipcert.bounds.coupled import coupled
from lipcert.bounds.forms import Forms, Multipliers, margin_forms
from lipcert.bounds.noise import NoiseSweep
from lipcert.bounds.split import Limits, Splitter
from lipcert.certification.assured import EXCESS, AssuredNorms
from lipcert.certification.batch import Rounded
from lipcert.certification.deployed import Deployment
from lipcert.certification.dtype import in_dtype
from lipcert.certification.pace import PACES
from lipcert.certification.seeds import Seeds
from lipcert.network import Network, lower, simplify
from lipcert.norms import Allowance, Budget, GramMap, SegmentNorms
from lipcert.options import Options
from lipcert.rounding import FLOAT64

# Forms are sought, and proven in twice the precision, in parts that caches hold.
FORMS_AT_ONCE, _PROVEN_AT_ONCE = 128, 32
# How far above the truth norms may be where they are dear.
_ROUGHLY = 0.04
# A deployed error below this share of a margin need not be known better.
_SMALL = 0.01


class Backward:
    """The anchored and dual bounds of one network under one set of options."""

    def __init__(
        self, network: Network, options: Options, deployment: Deployment, *,
        device: str, budget: Budget, part: float,
    ) -> None:  # fmt: skip
        self.pace, self.deployment = PACES[options.effort], deployment
        simple = in_dtype(simplify(lower(simplify(network))).to(device=device), options)
        single = simple.to_guess_by()
        layers = Layers.of(simple)
        # Without coins the matrix-free norms are too coarse for chains.
        chains = self.pace.own_norms and not options.deterministic
        narrow = 128 if self.pace.own_norms else 0
        plan = AnchoredBound(layers, {}, [], None, narrow, chains=chains)  # type: ignore[arg-type]
        self.norms = AssuredNorms(
            layers.edges,
            options,
            budget,
            # The radius, again further out or nearer, and at every eps with boxes refined or not.
            preparations=1 + self.pace.again + 2 * len(options.eps),
            own=plan.edges if self.pace.coupled else plan.own_edges if self.pace.own_norms else (),
            chain_norms=plan.chain_norms,
            part=part,
        )
        self.bound = replace(
            AnchoredBound.of(layers, self.norms.shared), rough=single, narrow=narrow, chains=chains,
            refinement=self.pace.boxes, images=options.pixel_domain,
        )  # fmt: skip
        self.excess = EXCESS if self.bound.chain_work <= self.pace.chain_work else _ROUGHLY
        self.refined = replace(self.bound, refinement=self.pace.refine)
        boxes = self.pace.boxes
        # Where boxes are only refined if that pays a guess does without.
        guessed, trial = boxes and replace(boxes, tried=0.0), boxes and replace(boxes, worth=0.0)
        # Estimates cost so little that no layer's chain needs its rows.
        self.rough = replace(
            AnchoredBound.of(Layers.of(single), self.norms.rough(single)), narrow=0,
            chains=self.pace.own_norms, refinement=guessed, images=options.pixel_domain,
        )  # fmt: skip
        # For what is so at radius 0 no norm of a sample's own is of use.
        self.still = replace(self.rough, narrow=0, chains=False, refinement=None)
        self.worth = 0.0 if boxes is None else boxes.worth
        self.trial = replace(self.rough, refinement=trial)
        # None where the rounding of the deployed network has to be found apart from its bounds.
        self.noise = deployment.noise(simple)
        self.dual, self.guide = self.bound.duals


@dataclass(frozen=True, eq=False)
class Margins:
    """Which margins of a batch are ``done``, proven to exceed what is ``needed``: ``(B, K)``; of
    the others their forms, classes, and the multipliers that came nearest; none of samples that
    are hopeless on these boxes."""

    done: Tensor
    needed: Tensor
    forms: Forms
    others: Tensor
    found: Multipliers | None

    @property
    def proven(self) -> Tensor:
        """Whether all margins of a sample are: ``(B,)``."""
        return self.done.all(1)


@dataclass(frozen=True, eq=False)
class Ready:
    """What was prepared at a radius, the state there, and what each margin has to exceed."""

    prepared: Prepared
    state: State
    needed: Tensor

    def select(self, rows: Tensor) -> Ready:
        """For some of the samples."""
        return Ready(self.prepared.select(rows), select(self.state, rows), self.needed[rows])


class BackwardBatch:
    """Correctly classified samples ``x`` ``(B, …)`` in float64, with their labels, the
    ``allowance`` of their coins, and what a deployment knows of them."""

    def __init__(
        self, tools: Backward, x: Tensor, labels: Tensor, allowance: Allowance, deployed: Centre,
        centre: Centre | None = None,
    ) -> None:  # fmt: skip
        self.tools, self.x, self.labels, self.allowance = tools, x, labels, allowance
        self.rounded = Rounded.of(x, tools.bound.layers.network)
        self.centre = centre or tools.bound.propagation.anchors(self.rounded.x)
        self.deployed = deployed
        self.seeds = Seeds.none(self.centre.logits)
        # How much of the clean margin was left where the last radius was prepared.
        self.spare = torch.zeros_like(x.flatten(1)[:, 0])
        # The largest deployed error of the last verdict.
        self.charged = torch.zeros(len(x), dtype=x.dtype, device=x.device)

    def subset(self, rows: Tensor) -> BackwardBatch:
        """Some of the samples."""
        some = BackwardBatch(
            self.tools, self.x[rows], self.labels[rows], self.allowance.select(rows),
            self.deployed.select(rows), self.centre.select(rows),
        )  # fmt: skip
        some.seeds, some.charged = self.seeds.of(rows), self.charged[rows]
        return some

    @property
    def clean(self) -> Tensor:
        """The margins at the samples but for rounding, ``(B, K)``; infinite at the labels."""
        logits = self.centre.logits
        margins = logits.gather(1, self.labels[:, None]) - logits
        return margins.scatter(1, self.labels[:, None], math.inf)

    def needed(self, eps: Tensor, state: State, sweep: NoiseSweep | None) -> Tensor:
        """What each margin has to exceed, ``(B, K)``: −∞ at the label itself. Where a ``sweep`` has
        brought noise into the state only the logits' own rounding is left."""
        deployment, labels = self.tools.deployment, self.labels[:, None]
        if sweep is None:
            pair = deployment.pair_errors(
                self.deployed, self.labels, self.rounded.ball(eps), margins=_SMALL * self.clean
            )
            worth = torch.zeros_like(eps)
        else:
            each = sweep.logits(state)
            always = deployment.always(
                lambda: deployment.propagation.boxes(self.deployed, self.rounded.ball(eps))[-1],
                each, self.labels, self.rounded.ball(eps),
            )  # fmt: skip
            pair = (each.gather(1, labels) + each) * (1 + 4 * FLOAT64) + always
            pair, worth = pair.nan_to_num(math.inf, math.inf), self._drifts(state)
        charged = pair.scatter(1, labels, 0).amax(1) + worth
        self.charged = charged.nan_to_num(math.inf, math.inf)
        return pair.scatter(1, labels, -math.inf)

    def _drifts(self, state: State) -> Tensor:
        """What all drifts are worth to the nearest class, to first order: ``(B,)``."""
        rows, nearest = torch.arange(len(self.x), device=self.x.device), self.clean.argmin(1)
        network = self.tools.dual.network
        return self.tools.dual.drifts(
            to_dtype(state, torch.float64), margin_forms(network, rows, self.labels, nearest)
        )

    def prepare(self, eps: Tensor, *, refine: bool) -> Ready:
        """Norms with the run's assurance, and what follows at these radii, ``(B,)``."""
        norms = self.tools.norms
        preparation = self.allowance.preparation(norms.account)

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return norms.local(norm, mapping, preparation, which, self.tools.excess)

        bound = self.tools.refined if refine else self.tools.bound
        ball, noise = self.rounded.ball(eps), self.tools.noise
        sweep = None if noise is None else noise.over(ball)
        prepared, state = bound.prepare_state(
            self.centre, ball, norm_of, None if sweep is None else sweep.before
        )
        return Ready(prepared, state, self.needed(eps, state, sweep))

    def nearer(self, eps: Tensor, ready: Ready, again: Tensor) -> tuple[State, Tensor]:
        """The state, and what margins need, at radii below those where all was prepared: the
        rounding of the deployed network found ``again``, ``(B,)``, or as it was there."""
        bound, ball, noise = self.tools.bound, self.rounded.ball(eps), self.tools.noise
        if not bool(again.any()):
            return bound.state(self.centre, ball, ready.prepared), ready.needed
        charged, sweep = self.charged, None if noise is None else noise.over(ball)

        def noise_of(node: int, state: State, box: Box) -> Tensor:
            assert sweep is not None
            found = sweep.before(node, state, box)
            return torch.where(again.reshape(-1, *(1,) * (found.dim() - 1)), found, math.inf)

        state = bound.state(self.centre, ball, ready.prepared, noise_of if sweep else None)
        needed = self.needed(eps, state, sweep)
        self.charged = torch.where(again, self.charged, charged)
        return state, torch.where(again[:, None], needed, ready.needed)

    def verdict(self, ready: Ready) -> Margins:
        """Which margins are proven where all was prepared, slopes optimised in stages."""
        state, needed = ready.state, ready.needed
        if self.tools.bound.layers.network.joints:
            # What balls of all layers say ends at the first of them.
            done = torch.isneginf(needed)
        else:
            done = self.tools.bound.margins_in(self.centre, self.labels, state) > needed
        hopeless = ~(needed < self.clean).all(1)
        forms, others = self.forms(~done & ~hopeless[:, None])
        found: Multipliers | None = None
        stages, last = self.tools.pace.stages, len(self.tools.pace.stages) - 1
        for stage, steps in enumerate(stages):
            if not len(forms):
                break
            if found is not None and stage == last and self.tools.pace.coupled:
                found = coupled(self.tools.dual.network, state, found)
            _, found = self.optimised(state, forms, others, found, steps)
            slack = self.certified(state, forms, others, found) - needed[forms.rows, others]
            done[forms.rows[slack > 0], others[slack > 0]] = True
            if stage == 0:
                far = ~(slack > -self.tools.pace.hopeless * self.clean.amin(1)[forms.rows])
                hopeless[forms.rows[far]] = True
            left = ~(slack > 0) & ~hopeless[forms.rows]
            forms, others, found = forms.select(left), others[left], found.select(left)
        return Margins(done, needed, forms, others, found)

    def split(self, state: State, open_: Margins, leaves: int, seconds: float) -> Margins:
        """The same after branch and bound of those that are still open, begun within so many
        seconds."""
        pace, tools = self.tools.pace, self.tools
        forms, others, found = open_.forms, open_.others, open_.found
        if found is None or not len(forms):
            return open_
        splitter = Splitter(
            tools.dual, tools.guide, select(state, forms.rows), forms,
            self._clean_of(forms, others), open_.needed[forms.rows, others],
        )  # fmt: skip
        leaves = min(leaves, int(pace.leaf_work / splitter.neurons))
        proven = splitter.proven(found, Limits(leaves=leaves, seconds=seconds))
        done = open_.done.clone()
        done[forms.rows[proven], others[proven]] = True
        rest = forms.select(~proven), others[~proven], found.select(~proven)
        return Margins(done, open_.needed, *rest)

    def forms(self, which: Tensor) -> tuple[Forms, Tensor]:
        """The margins where ``which`` ``(B, K)`` is set, but at the labels: forms and classes."""
        which = which.scatter(1, self.labels[:, None], False)
        rows, others = which.nonzero().unbind(1)
        network = self.tools.bound.layers.network
        return margin_forms(network, rows, self.labels[rows], others), others

    def optimised(
        self, state: State, forms: Forms, others: Tensor, found: Multipliers | None, steps: int
    ) -> tuple[Tensor, Multipliers]:
        """Changes about as large and multipliers, sought in float32, some forms at a time."""
        guide, parts, changes = self.tools.guide, [], [self.clean[:0, 0]]
        # The guide charges no drift.
        single = to_dtype(state, torch.float32)
        single = {i: replace(layer, drift=None) for i, layer in single.items()}
        for some in torch.split(torch.arange(len(forms)), FORMS_AT_ONCE):
            part = forms.select(some).to(torch.float32)
            own = select(single, part.rows)
            if found is None:
                start = self.seeds.start(guide, own, part, others[some])
            else:
                start = found.select(some)
            change, better = guide.optimise(own, part, start, steps)
            changes.append(change.to(self.clean.dtype))
            parts.append(better)
        return torch.cat(changes), Multipliers.joined(parts)

    def _clean_of(self, forms: Forms, others: Tensor) -> Tensor:
        """The margins at the samples, rounded down: ``(N,)``."""
        logits, errors = self.centre.logits[forms.rows], self.centre.logit_errors[forms.rows]
        label, other = self.labels[forms.rows][:, None], others[:, None]
        clean = logits.gather(1, label) - logits.gather(1, other)
        error = errors.gather(1, label) + errors.gather(1, other)
        return (clean - error - 8 * FLOAT64 * (clean.abs() + error)).squeeze(1)

    def certified(self, state: State, forms: Forms, others: Tensor, found: Multipliers) -> Tensor:
        """Margins proven, ``(N,)``."""
        clean = self._clean_of(forms, others)
        values = [clean[:0]]
        for some in torch.split(torch.arange(len(forms)), _PROVEN_AT_ONCE):
            part = forms.select(some)
            change = self.tools.dual.certified(select(state, part.rows), part, found.select(some))
            slack = 2 * FLOAT64 * (clean[some].abs() + change.abs())
            values.append(clean[some] + change - slack)
        return torch.cat(values)
