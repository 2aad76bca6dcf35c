"""The duals of the lowered network: what is prepared for them at a radius, with the run's norms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds import AnchoredBound, FactPlan, Facts, Layers
from lipcert.bounds.boxes import Centre
from lipcert.bounds.facts import NoiseOf
from lipcert.bounds.refined import Refinement
from lipcert.bounds.state import Noised, State
from lipcert.certification.analysis import Analysis
from lipcert.certification.assured import EXCESS, AssuredNorms
from lipcert.certification.margins import MarginProver, Region
from lipcert.certification.samples import Samples
from lipcert.norms import Allowance, GramMap, SegmentNorms
from lipcert.numbers import Box

# How far above the truth norms may be where they take long.
_ROUGHLY = 0.04


@dataclass(frozen=True, eq=False)
class Duals:
    """``bound`` and its ``norms`` are of the lowered network; ``guide``, of its copy in float32,
    counts on estimated norms. Randomised norms aim ``excess`` above the truth."""

    prover: MarginProver
    bound: AnchoredBound
    guide: AnchoredBound
    norms: AssuredNorms
    excess: float

    @classmethod
    def of(cls, analysis: Analysis, part: float, preparations: int | None = None) -> Duals:
        """``part``: how much of the run's failure probability their norms may spend; how often each
        sample may be prepared, as often as the rungs do by default."""
        pace, options = analysis.pace, analysis.options
        layers, guide = Layers.of(analysis.lowered), analysis.lowered_guide
        # Without coins the matrix-free norms are too coarse for chains.
        plan = FactPlan(
            narrow=128 if pace.own_norms else 0,
            chains=pace.own_norms and not options.deterministic,
            refinement=pace.boxes,
        )
        edges = [(edge.source, edge.sink) for edge in layers.edges]
        own = edges if pace.coupled else plan.own_edges(layers) if pace.own_norms else ()
        if preparations is None:
            # The radius, again further out or nearer, and at every eps with boxes refined or not.
            preparations = 1 + pace.again + 2 * len(options.eps)
        norms = AssuredNorms(
            layers.edges,
            options,
            analysis.budget,
            preparations=preparations,
            own=own,
            chain_norms=len(plan.wide(layers)),
            part=part,
            guide=guide,
        )
        bound = replace(
            AnchoredBound.of(layers, norms.shared), rough=guide, plan=plan,
            images=options.pixel_domain,
        )  # fmt: skip
        # Estimates cost so little that no layer's chain needs its rows.
        estimated = replace(
            AnchoredBound.of(Layers.of(guide), norms.shared_over(guide)),
            plan=FactPlan(narrow=0, chains=pace.own_norms, refinement=pace.boxes),
            images=options.pixel_domain,
        )  # fmt: skip
        excess = EXCESS if plan.chain_work(layers) <= pace.chain_work else _ROUGHLY
        return cls(MarginProver.of(analysis, layers, bound.duals), bound, estimated, norms, excess)

    @property
    def analysis(self) -> Analysis:
        return self.prover.analysis

    def estimated(
        self, allowance: Allowance, centre: Centre, eps: Tensor, refinement: Refinement | None,
        noise_of: NoiseOf | None,
    ) -> tuple[Facts, State]:  # fmt: skip
        """Finds facts and state in float32, by estimated norms, which are too small if anything."""

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return self.norms.guessed(norm, mapping, allowance)

        plan = replace(self.guide.plan, refinement=refinement)
        return self.guide.prepare_state(centre, eps.float(), norm_of, noise_of, plan)

    def prepare(self, samples: Samples, eps: Tensor, refinement: Refinement | None) -> Region:
        """Finds norms with the run's assurance, and what follows from them at radii ``(B,)``."""
        preparation = samples.allowance.preparation(self.norms.account)

        def norm_of(norm: SegmentNorms | None, mapping: GramMap, which: int) -> Tensor:
            return self.norms.local(norm, mapping, preparation, which, self.excess)

        ball, noise = samples.ball(eps), self.prover.noise
        sweep = None if noise is None else noise.over(ball)
        facts, state = self.bound.prepare_state(
            samples.centre, ball, norm_of, None if sweep is None else sweep.before,
            replace(self.bound.plan, refinement=refinement),
        )  # fmt: skip
        return Region(facts, state, *self.prover.needed(samples, eps, state, sweep))

    def nearer(self, samples: Samples, eps: Tensor, region: Region, again: Tensor) -> Region:
        """Gives the region at radii below those where all was prepared. The rounding of the
        deployed network is found ``again``, ``(B,)``, or taken as it was there."""
        bound, ball, noise = self.bound, samples.ball(eps), self.prover.noise
        if not bool(again.any()):
            return replace(region, state=bound.state(samples.centre, ball, region.facts))
        sweep = None if noise is None else noise.over(ball)

        def noise_of(node: int, state: State, box: Box) -> Noised:
            assert sweep is not None
            return sweep.before(node, state, box).where(again, math.inf)

        state = bound.state(samples.centre, ball, region.facts, noise_of if sweep else None)
        needed, deployed = self.prover.needed(samples, eps, state, sweep)
        return Region(
            region.facts,
            state,
            torch.where(again[:, None], needed, region.needed),
            torch.where(again, deployed, region.deployed),
        )
