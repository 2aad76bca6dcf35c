"""The backward rungs: anchored states and duals, for verdicts and for radii.

Where to look is guessed in float32 with estimated norms; what is reported was proven in float64
with norms under the run's assurance, at that very radius.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds import AnchoredBound, Layers, Prepared
from lipcert.bounds.anchored import State, select, to_dtype
from lipcert.bounds.boxes import Centre
from lipcert.bounds.coupled import coupled
from lipcert.bounds.forms import Forms, Multipliers, margin_forms
from lipcert.bounds.split import Budget, Splitter
from lipcert.certification.assured import AssuredNorms
from lipcert.certification.batch import Rounded
from lipcert.certification.deployed import Deployment
from lipcert.certification.dtype import in_dtype
from lipcert.certification.pace import PACES
from lipcert.certification.search import largest_radius
from lipcert.certification.seeds import Seeds
from lipcert.network import Network, lower, simplify
from lipcert.norms import GramMap, SegmentNorms
from lipcert.options import Options
from lipcert.rounding import FLOAT64

_FIRST_CALL = 2**32
# Forms are sought, and proven in twice the precision, in parts that caches hold.
_FORMS_AT_ONCE, _PROVEN_AT_ONCE = 128, 32
# How often a radius is prepared anew, where it was aimed at badly.
AGAIN = 2
# A deployed error below this share of a margin need not be known better; one above this share is
# found again at every radius.
_SMALL, _COARSE = 0.01, 0.1
# A guess looks at so many classes of each sample, those that seem nearest.
_GUESSED_CLASSES = 2
# Then at those that come within so much of the clean margin of the nearest one.
_ASIDE = 0.3
# Margins that few steps bring this share of the clean one above what they need get no more.
_FEW_STEPS, _EASY = 6, 0.1
# At its first radius a guess takes so many times the steps of the others.
_FIRST_GUESS = 2


class Backward:
    """The anchored and dual bounds of one network under one set of options."""

    def __init__(
        self, network: Network, options: Options, deployment: Deployment, *,
        device: str, samples: int, share: float,
    ) -> None:  # fmt: skip
        self.pace, self.deployment = PACES[options.effort], deployment
        simple = in_dtype(simplify(lower(simplify(network))).to(device=device), options)
        single = simple.to_guess_by()
        layers = Layers.of(simple)
        # Without coins the matrix-free norms are too coarse for chains.
        chains = self.pace.own_norms and not options.deterministic
        narrow, refined = (128, 512) if self.pace.own_norms else (0, 0)
        plan = AnchoredBound(layers, {}, [], None, narrow, chains=chains)  # type: ignore[arg-type]
        self.norms = AssuredNorms(
            layers.edges,
            options,
            samples=samples,
            preparations=2 * len(options.eps) + 1 + AGAIN,
            own=plan.edges if self.pace.coupled else plan.own_edges if self.pace.own_norms else (),
            chain_norms=plan.chain_norms,
            share=share,
            first_call=_FIRST_CALL,
        )
        self.bound = replace(
            AnchoredBound.of(layers, self.norms.shared), rough=single, narrow=narrow, chains=chains,
            refined=refined, work=self.pace.work, images=options.pixel_domain,
        )  # fmt: skip
        self.refined = replace(self.bound, steps=self.pace.refine or 0, work=math.inf)
        # Estimates cost so little that no layer's chain needs its rows.
        self.rough = replace(
            AnchoredBound.of(Layers.of(single), self.norms.rough(single)), narrow=0,
            chains=self.pace.own_norms, refined=refined, work=self.pace.work,
            images=options.pixel_domain,
        )  # fmt: skip
        self.matched = deployment.matches(simple)
        self.dual, self.guide = self.bound.duals


@dataclass(frozen=True, eq=False)
class Margins:
    """Which margins of a batch are ``done``, proven to exceed what is ``needed``: ``(B, K)``; of
    the others their forms, classes, and the multipliers that came nearest."""

    done: Tensor
    needed: Tensor
    forms: Forms
    others: Tensor
    found: Multipliers | None

    @property
    def proven(self) -> Tensor:
        """Whether all margins of a sample are: ``(B,)``."""
        return self.done.all(1)


class BackwardBatch:
    """Correctly classified samples ``x`` ``(B, …)`` in float64, with their labels and numbers, and
    what a deployment knows of them."""

    def __init__(
        self, tools: Backward, x: Tensor, labels: Tensor, streams: Tensor, deployed: Centre,
        centre: Centre | None = None,
    ) -> None:  # fmt: skip
        self.tools, self.x, self.labels, self.streams = tools, x, labels, streams
        self.rounded = Rounded.of(x, tools.bound.layers.network)
        self.centre = centre or tools.bound.propagation.centre(self.rounded.x)
        self.deployed = deployed
        self.used = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.seeds = Seeds.none(self.centre.logits)
        # How much of the clean margin was left where the last radius was prepared.
        self.spare = torch.zeros_like(x.flatten(1)[:, 0])
        # The largest deployed error of the last verdict.
        self.charged = torch.zeros(len(x), dtype=x.dtype, device=x.device)

    def subset(self, rows: Tensor) -> BackwardBatch:
        """Some of the samples."""
        some = BackwardBatch(
            self.tools, self.x[rows], self.labels[rows], self.streams[rows],
            self.deployed.select(rows), self.centre.select(rows),
        )  # fmt: skip
        some.seeds = self.seeds.of(rows)
        return some

    @property
    def spent(self) -> Tensor:
        """The failure probability of the norms that each sample has used: ``(B,)``."""
        return self.used * self.tools.norms.spent_by_preparation

    @property
    def clean(self) -> Tensor:
        """The margins at the samples but for rounding, ``(B, K)``; infinite at the labels."""
        logits = self.centre.logits
        margins = logits.gather(1, self.labels[:, None]) - logits
        return margins.scatter(1, self.labels[:, None], math.inf)

    def needed(self, eps: Tensor, state: State) -> Tensor:
        """What each margin has to exceed, ``(B, K)``: −∞ at the label itself."""
        known = state if self.tools.matched else None
        pair = self.tools.deployment.pair_errors(
            self.deployed, self.labels, self.rounded.ball(eps), known, margins=_SMALL * self.clean
        )
        self.charged = pair.scatter(1, self.labels[:, None], 0).amax(1)
        return pair.scatter(1, self.labels[:, None], -math.inf)

    def prepare(self, eps: Tensor, number: int, *, refine: bool) -> tuple[Prepared, State]:
        """``number`` names the preparation's coins; it is never used twice for a sample."""
        self.used += 1

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return self.tools.norms.local(norm, mapping, self.streams, number, which)

        bound = self.tools.refined if refine else self.tools.bound
        return bound.prepare_state(self.centre, self.rounded.ball(eps), norm_of)

    def verdict(self, eps: Tensor, state: State) -> Margins:
        """Which margins are proven at ``eps``, slopes optimised in stages."""
        margins = self.tools.bound.margins_in(self.centre, self.labels, state)
        needed = self.needed(eps, state)
        done = margins > needed
        forms, others = self._forms(~done)
        found: Multipliers | None = None
        stages, last = self.tools.pace.stages, len(self.tools.pace.stages) - 1
        for stage, steps in enumerate(stages):
            if not len(forms):
                break
            if found is not None and stage == last and self.tools.pace.coupled:
                found = coupled(self.tools.dual.network, state, found)
            _, found = self._optimised(state, forms, others, found, steps)
            positive = self._certified(state, forms, others, found) > needed[forms.rows, others]
            done[forms.rows[positive], others[positive]] = True
            forms, others = forms.select(~positive), others[~positive]
            found = found.select(~positive)
        return Margins(done, needed, forms, others, found)

    def split(self, state: State, open_: Margins, leaves: int, seconds: float) -> Margins:
        """The same after branch and bound of those that are still open, in so many seconds."""
        pace, tools = self.tools.pace, self.tools
        forms, others, found = open_.forms, open_.others, open_.found
        if found is None or not len(forms):
            return open_
        splitter = Splitter(
            tools.dual, tools.guide, select(state, forms.rows), forms,
            self._clean_of(forms, others), open_.needed[forms.rows, others],
        )  # fmt: skip
        seconds = min(seconds, pace.leaf_seconds * len(torch.unique(forms.rows)))
        proven = splitter.proven(found, Budget(leaves=leaves, seconds=seconds))
        done = open_.done.clone()
        done[forms.rows[proven], others[proven]] = True
        rest = forms.select(~proven), others[~proven], found.select(~proven)
        return Margins(done, open_.needed, *rest)

    def guess(self, start: Tensor, limit: Tensor) -> Tensor:
        """About the largest radius that the dual proves: ``(B,)``, −1 where there is none."""
        bound, guide = self.tools.rough, self.tools.guide
        centre = bound.propagation.centre(self.x.float())

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return self.tools.norms.guessed(norm, mapping, self.streams)

        looked_at: list[Tensor] = []
        clean = self.clean.amin(1)

        def slack(eps: Tensor) -> Tensor:
            _, state = bound.prepare_state(centre, eps.float(), norm_of)
            margins = bound.margins_in(centre, self.labels, state)
            # The first look starts from nothing.
            steps = self.tools.pace.guess_steps * (1 if looked_at else _FIRST_GUESS)
            which = looked_at.pop() if looked_at else self._nearest(margins)
            best = torch.full_like(margins, torch.inf, dtype=torch.float64)
            for forms, others in self._some_forms(which):
                own = select(state, forms.rows)
                start = self.seeds.start(guide, own, forms, others)
                change, found = guide.optimise(own, forms, start, steps)
                self.seeds = self.seeds.renewed(forms, others, found, eps)
                value = self.clean[forms.rows, others] + change.double()
                anchored = margins[forms.rows, others].double()
                best[forms.rows, others] = value.maximum(anchored)
            least = best.amin(1)
            looked_at.append(best < (least + _ASIDE * clean)[:, None])
            return least

        return largest_radius(
            slack, start, clean=clean, limit=limit, resolution=1.01, steps=self.tools.pace.guesses
        )

    def _nearest(self, margins: Tensor) -> Tensor:
        """The margins that seem nearest, a few of each sample: ``(B, K)``."""
        margins = margins.scatter(1, self.labels[:, None], torch.inf)
        nearest = margins.topk(min(_GUESSED_CLASSES, margins.shape[1] - 1), 1, largest=False)
        return torch.zeros_like(margins).scatter(1, nearest[1], 1.0) > 0

    def _some_forms(self, which: Tensor) -> Iterator[tuple[Forms, Tensor]]:
        """Those margins' forms and classes in float32, some at a time."""
        forms, others = self._forms(which)
        for some in torch.split(torch.arange(len(forms)), _FORMS_AT_ONCE):
            yield forms.select(some).to(torch.float32), others[some]

    def radius(self, top: Tensor, number: int) -> Tensor:
        """The largest radius proven up to ``top``, ``(B,)``; −1 where there is none.

        One preparation and one optimisation at ``top`` serve every radius below it.
        """
        prepared, state = self.prepare(top, number, refine=False)
        margins = self.tools.bound.margins_in(self.centre, self.labels, state)
        # What the arithmetic of the deployed network adds only grows with the radius: where that
        # is little, once will do.
        needed = self.needed(top, state)
        clean = self.clean.amin(1)
        coarse = (self.charged > _COARSE * clean).nonzero().flatten()
        again = self.subset(coarse)
        forms, others = self._forms(margins <= needed)
        found = self._sought(state, forms, others, needed)
        self.seeds = self.seeds.renewed(forms, others, found, top)
        # What is proven at a radius is so at all below it.
        proven = torch.full_like(top[forms.rows], -math.inf)
        values = torch.full_like(proven, -math.inf)

        def slack(eps: Tensor) -> Tensor:
            own = self.tools.bound.state(self.centre, self.rounded.ball(eps), prepared)
            margins = self.tools.bound.margins_in(self.centre, self.labels, own)
            wanted = needed.clone()
            if len(coarse):
                wanted[coarse] = again.needed(eps[coarse], select(own, coarse))
                self.charged[coarse] = again.charged
            ask = ((eps <= top)[forms.rows] & (proven < eps[forms.rows])).nonzero().flatten()
            some = forms.select(ask)
            found_here = self._certified(own, some, others[ask], found.select(ask))
            values[ask] = found_here - wanted[some.rows, others[ask]]
            held = ask[values[ask] > 0]
            proven[held] = eps[forms.rows[held]]
            slacks = margins - wanted
            slacks[forms.rows, others] = slacks[forms.rows, others].maximum(values)
            least = slacks.amin(1)
            self.spare = torch.where(eps == top, least / clean, self.spare)
            return torch.where(eps <= top, least, torch.nan)

        trials = self.tools.pace.trials
        return largest_radius(slack, top, clean=clean, limit=top, resolution=1.005, enough=trials)

    def _sought(self, state: State, forms: Forms, others: Tensor, wanted: Tensor) -> Multipliers:
        """Multipliers for a radius: most steps for the margins that few do not bring to what is
        ``wanted``, ``(B, K)``, and more."""
        steps = self.tools.pace.radius_steps
        few = min(_FEW_STEPS, steps)
        change, found = self._optimised(state, forms, others, None, few)
        places = forms.rows, others
        easy = wanted[places] + _EASY * self.clean.amin(1)[forms.rows]
        hard = (~(self.clean[places] + change > easy)).nonzero().flatten()
        part = found.select(hard), forms.select(hard), others[hard]
        _, better = self._optimised(state, part[1], part[2], part[0], steps - few)
        return found.replaced(hard, better)

    def _forms(self, which: Tensor) -> tuple[Forms, Tensor]:
        """The margins where ``which`` ``(B, K)`` is set, but at the labels: forms and classes."""
        which = which.scatter(1, self.labels[:, None], False)
        rows, others = which.nonzero().unbind(1)
        network = self.tools.bound.layers.network
        return margin_forms(network, rows, self.labels[rows], others), others

    def _optimised(
        self, state: State, forms: Forms, others: Tensor, found: Multipliers | None, steps: int
    ) -> tuple[Tensor, Multipliers]:
        """Changes about as large and multipliers, sought in float32, some forms at a time."""
        guide, parts, changes = self.tools.guide, [], [self.clean[:0, 0]]
        for some in torch.split(torch.arange(len(forms)), _FORMS_AT_ONCE):
            part = forms.select(some).to(torch.float32)
            own = to_dtype(select(state, part.rows), torch.float32)
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

    def _certified(self, state: State, forms: Forms, others: Tensor, found: Multipliers) -> Tensor:
        """Margins proven, ``(N,)``."""
        clean = self._clean_of(forms, others)
        values = [clean[:0]]
        for some in torch.split(torch.arange(len(forms)), _PROVEN_AT_ONCE):
            part = forms.select(some)
            change = self.tools.dual.certified(select(state, part.rows), part, found.select(some))
            slack = 2 * FLOAT64 * (clean[some].abs() + change.abs())
            values.append(clean[some] + change - slack)
        return torch.cat(values)
