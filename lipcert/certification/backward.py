"""The backward rungs: anchored states and duals, for verdicts and for radii.

Where to look is guessed in float32 with estimated norms; what is reported was proven in float64
with norms under the run's assurance, at that very radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds import AnchoredBound, Layers, Prepared
from lipcert.bounds.anchored import State, select
from lipcert.bounds.dual import DualBound, Forms, Multipliers, margin_forms
from lipcert.certification.assured import AssuredNorms
from lipcert.certification.deployed import Deployment
from lipcert.certification.search import largest_radius
from lipcert.network import Network, lower, simplify
from lipcert.norms import GramMap, SegmentNorms
from lipcert.options import Effort, Options

_FIRST_CALL = 2**32
_FORMS_AT_ONCE = 256


@dataclass(frozen=True)
class Pace:
    """What an effort spends: steps of the slopes at each stage of a verdict, in a guess, and for a
    radius; whether wide layers get chains and open samples refined boxes (with how many steps)."""

    stages: tuple[int, ...]
    guess_steps: int
    radius_steps: int
    chains: bool
    refine: int | None
    attack_steps: int
    attack_restarts: int


PACES: dict[Effort, Pace] = {
    "fast": Pace((20,), 5, 20, chains=False, refine=None, attack_steps=16, attack_restarts=0),
    "standard": Pace(
        (20, 60, 150), 8, 40, chains=True, refine=0, attack_steps=20, attack_restarts=0
    ),
    "max": Pace((20, 60, 200), 15, 100, chains=True, refine=8, attack_steps=40, attack_restarts=1),
}


class Backward:
    """The anchored and dual bounds of one network under one set of options."""

    def __init__(
        self, network: Network, options: Options, deployment: Deployment, *,
        device: str, samples: int, share: float,
    ) -> None:  # fmt: skip
        self.pace, self.deployment = PACES[options.effort], deployment
        simple = simplify(lower(simplify(network))).to(device=device)
        single = simple.to(dtype=torch.float32)
        layers = Layers.of(simple)
        plan = AnchoredBound(layers, {}, [], None, chains=self.pace.chains)  # type: ignore[arg-type]
        self.norms = AssuredNorms(
            layers.edges,
            options,
            samples=samples,
            preparations=2 * len(options.eps) + 1,
            chain_norms=plan.chain_norms,
            share=share,
            first_call=_FIRST_CALL,
        )
        self.bound = replace(
            AnchoredBound.of(layers, self.norms.shared),
            rough=single, chains=self.pace.chains, refine_boxes=False,
        )  # fmt: skip
        self.refined = replace(self.bound, refine_boxes=True, steps=self.pace.refine or 0)
        self.rough = replace(
            AnchoredBound.of(Layers.of(single), self.norms.rough(single)),
            rough=single, narrow=0, chains=True, refine_boxes=False,
        )  # fmt: skip
        self.matched = deployment.matches(simple)
        self.dual, self.guide = DualBound(simple), DualBound(single)


class BackwardBatch:
    """Correctly classified samples ``x`` ``(B, …)`` in float64, with their labels and numbers."""

    def __init__(self, tools: Backward, x: Tensor, labels: Tensor, streams: Tensor) -> None:
        self.tools, self.x, self.labels, self.streams = tools, x, labels, streams
        self.centre = tools.bound.propagation.centre(x)
        self.deployed = tools.deployment.centre(x)
        self.rough_centre = tools.rough.propagation.centre(x.float())
        self.used = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    @property
    def spent(self) -> Tensor:
        """The failure probability of the norms that each sample has used: ``(B,)``."""
        return self.used * self.tools.norms.spent_by_preparation

    def needed(self, eps: Tensor, state: State) -> Tensor:
        """What each margin has to exceed, ``(B, K)``: −∞ at the label itself."""
        known = None
        if self.tools.matched:
            known = [(layer.lower, layer.upper) for layer in state.values()]
        pair = self.tools.deployment.pair_errors(self.deployed, self.labels, eps, known)
        return pair.scatter(1, self.labels[:, None], -math.inf)

    def prepare(self, eps: Tensor, number: int, *, refine: bool) -> tuple[Prepared, State]:
        """``number`` names the preparation's coins; it is never used twice for a sample."""
        self.used += 1

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return self.tools.norms.local(norm, mapping, self.streams, number, which)

        bound = self.tools.refined if refine else self.tools.bound
        return bound.prepare_state(self.centre, eps, norm_of)

    def proven(self, eps: Tensor, state: State) -> Tensor:
        """Whether all margins are proven at ``eps``, ``(B,)``, slopes optimised in stages."""
        margins = self.tools.bound.margins_in(self.centre, self.labels, eps, state)
        needed = self.needed(eps, state)
        done = margins > needed
        forms, others = self._forms(~done)
        found: Multipliers | None = None
        for steps in self.tools.pace.stages:
            if not len(forms):
                break
            found = self._optimised(eps, state, forms, found, steps)
            positive = (
                self._certified(eps, state, forms, others, found) > needed[forms.rows, others]
            )
            done[forms.rows[positive], others[positive]] = True
            forms, others = forms.select(~positive), others[~positive]
            found = found.select(~positive)
        return done.all(1)

    def guess(self, start: Tensor, limit: Tensor) -> Tensor:
        """About the largest radius that the dual proves: ``(B,)``, −1 where there is none."""
        bound, centre = self.tools.rough, self.rough_centre

        def norm_of(_: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return self.tools.norms.guessed(mapping, self.streams)

        def accepts(eps: Tensor) -> Tensor:
            single = eps.float()
            _, state = bound.prepare_state(centre, single, norm_of)
            done = bound.margins_in(centre, self.labels, single, state) > 0
            done = done.scatter(1, self.labels[:, None], True)
            forms, others = self._forms(~done)
            rows, guide = forms.rows, self.tools.guide
            for some in torch.split(torch.arange(len(forms)), _FORMS_AT_ONCE):
                part, own = forms.select(some).to(torch.float32), select(state, rows[some])
                radius = single[rows[some]]
                change, _ = guide.optimise(
                    own, radius, part, guide.start(own, part), self.tools.pace.guess_steps
                )
                logits = centre.logits[rows[some]]
                label, other = self.labels[rows[some]][:, None], others[some][:, None]
                clean = (logits.gather(1, label) - logits.gather(1, other)).squeeze(1)
                done[rows[some], others[some]] = clean + change > 0
            return done.all(1)

        return largest_radius(accepts, start, stride=1.4, limit=limit, resolution=1.04)

    def radius(self, top: Tensor, number: int) -> Tensor:
        """The largest radius proven up to ``top``, ``(B,)``; −1 where there is none.

        One preparation and one optimisation at ``top`` serve every radius below it.
        """
        prepared, state = self.prepare(top, number, refine=False)
        margins = self.tools.bound.margins_in(self.centre, self.labels, top, state)
        forms, others = self._forms(margins <= self.needed(top, state))
        found = self._optimised(top, state, forms, None, self.tools.pace.radius_steps)

        def accepts(eps: Tensor) -> Tensor:
            own = self.tools.bound.state(self.centre, eps, prepared)
            needed = self.needed(eps, own)
            done = self.tools.bound.margins_in(self.centre, self.labels, eps, own) > needed
            proven = self._certified(eps, own, forms, others, found) > needed[forms.rows, others]
            done[forms.rows[proven], others[proven]] = True
            return done.all(1) & (eps <= top)

        return largest_radius(accepts, top, stride=1.02, limit=top, resolution=1.004)

    def _forms(self, which: Tensor) -> tuple[Forms, Tensor]:
        """The margins where ``which`` ``(B, K)`` is set, but at the labels: forms and classes."""
        which = which.scatter(1, self.labels[:, None], False)
        rows, others = which.nonzero().unbind(1)
        network = self.tools.bound.layers.network
        return margin_forms(network, rows, self.labels[rows], others), others

    def _optimised(
        self, eps: Tensor, state: State, forms: Forms, found: Multipliers | None, steps: int
    ) -> Multipliers:
        """Multipliers sought in float32, some forms at a time."""
        guide, parts = self.tools.guide, []
        for some in torch.split(torch.arange(len(forms)), _FORMS_AT_ONCE):
            rows, part = forms.rows[some], forms.select(some).to(torch.float32)
            own = {i: layer.map(lambda t: t.float()) for i, layer in select(state, rows).items()}
            start = guide.start(own, part) if found is None else found.select(some)
            parts.append(guide.optimise(own, eps[rows].float(), part, start, steps)[1])
        return Multipliers.joined(parts)

    def _certified(
        self, eps: Tensor, state: State, forms: Forms, others: Tensor, found: Multipliers
    ) -> Tensor:
        """Margins proven in float64, ``(N,)``."""
        logits, errors = self.centre.logits, self.centre.logit_errors
        values = []
        for some in torch.split(torch.arange(len(forms)), _FORMS_AT_ONCE):
            rows, part = forms.rows[some], forms.select(some)
            change = self.tools.dual.certified(
                select(state, rows), eps[rows], part, found.select(some).to(eps.dtype)
            )
            label, other = self.labels[rows][:, None], others[some][:, None]
            clean = logits[rows].gather(1, label) - logits[rows].gather(1, other)
            error = errors[rows].gather(1, label) + errors[rows].gather(1, other)
            sizes = clean.abs() + error + change[:, None].abs()
            values.append((clean - error - sizes * 2.0**-50).squeeze(1) + change)
        return torch.cat(values) if values else eps.new_zeros(0)
