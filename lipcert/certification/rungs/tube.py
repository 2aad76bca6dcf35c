"""Deep networks: radii by sketched tubes, and duals from the boxes that these prove.

Norms of chains, layer after layer, take as long as the square of the depth and lose all that
balls cannot see. A tube (``lipcert.bounds.sketch``) takes one pass of random tangents for all
layers together. A radius is sought with claims alone, which are cheap; it counts once fresh coins
have proven the claim, and the duals all margins, from the boxes that were proven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds import Facts, Layers
from lipcert.bounds.claims import Claim
from lipcert.bounds.dual import DualBound
from lipcert.bounds.noise import NoiseSweep
from lipcert.bounds.projections import ProjectionAssurance
from lipcert.bounds.sketch import Tube
from lipcert.bounds.state import select, to_dtype
from lipcert.certification.analysis import Analysis
from lipcert.certification.findings import Findings, Step
from lipcert.certification.margins import MarginProver, Region
from lipcert.certification.pace import TubePace
from lipcert.certification.rungs.base import SMALLEST_BALL
from lipcert.certification.rungs.plan import TubePlan, not_within
from lipcert.certification.samples import Samples
from lipcert.certification.search import largest_radius, on_grid
from lipcert.certification.warm_start import WarmStart
from lipcert.chunks import fitting, slices
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import Network
from lipcert.norms import Account
from lipcert.options import Options

# A radius that could not be proven is tried again so much smaller.
_SMALLER = 0.9
# Remainders of joints grow at once where a guess was a little too far: they get more tries, and
# these are further apart.
_MORE_TRIES, _MUCH_SMALLER = 2, 0.65
# How often a radius is taken back by a claim that is as fine as the proof, before any is begun.
_CLAIMS = 3
# What could not be proven is claimed so much wider at the next try: a claim of few projections may
# be too narrow at hundreds of neurons, nearer by as well.
_WIDER = 1.15
# A claim and a proof cost more than what is left out by aiming so much shorter than was guessed.
_SHORT = 0.96
# Where another bound leads so far to the attack no tube is asked: of deep networks that were not
# trained for small constants they reach some hundredths of that distance.
SETTLED = 0.25
# Where a search begins, of the distance of the attack, and how far beyond a guess an eps is tried.
_FIRST_GUESS, _NEAR = 0.005, 1.04
_GUESSED_CLASSES = 3


def _tries(pace: TubePace, network: Network) -> int:
    return pace.tries + (_MORE_TRIES if network.joints else 0)


@dataclass(frozen=True)
class Nothing:
    """Says of every sample that nothing is certified yet: first of all, where the tube is the only
    bound."""

    name: str = "tube"

    def climb(self, samples: Samples, known: Findings) -> Step:
        return Step(
            self.name,
            torch.arange(len(samples), device=known.radius.device),
            radius=torch.full_like(known.radius, -1.0),
            deployed=torch.full_like(known.radius, math.nan),
        )


def check_joints(network: Network, options: Options) -> None:
    """Joints have one bound, the tube, which is nothing without coins and in less than float64:
    raises ``CannotCertify`` where the options ask for another."""
    for wrong, choice in (
        (options.method != "auto", "--method auto"),
        (options.deterministic, "--norms randomised"),
        (options.estimate, "--norms randomised"),
        (options.dtype != "float64", "--dtype float64"),
    ):
        if wrong:
            raise CannotCertify(
                f"the network has joints ({network.joints_told}), which only random projections of "
                f"its derivative bound: choose {choice}"
            )


@dataclass(frozen=True, eq=False)
class TubeRadius:
    """Finds the radius of each sample, with as many tangents as ``plan`` says. ``assurance`` says
    what a proof assures, ``account`` is that of its coins."""

    prover: MarginProver
    tube: Tube
    account: Account
    assurance: ProjectionAssurance
    plan: TubePlan
    name: str = "tube"

    @classmethod
    def of(cls, analysis: Analysis, part: float, preparations: int | None = None) -> TubeRadius:
        """``part``: how much of the run's failure probability the projections may spend; how often
        each sample may be proven, as often as ``climb`` does by default."""
        analysis = analysis.kept
        options, pace, network = analysis.options, analysis.pace.tube, analysis.lowered_double
        guide, images = network.to_guess_by(), options.pixel_domain
        plan = TubePlan.of(network, pace)
        if plan is None:
            raise CannotCertify(not_within(network, options, pace))
        duals = DualBound(network, images=images), DualBound(guide, images=images)
        widths = sum(math.prod(network.nodes[sink].shape) for sink in network.sinks)
        # Drawn at the input and at every activation and joint, at most for each tangent by itself;
        # of each neuron one statistic may fail, or two where rows are measured by chance too.
        account = analysis.budget.account(
            part,
            preparations=preparations or _tries(pace, network),
            draws=len(network.sources) * plan.projections,
            events=widths if plan.rows.exact else 2 * widths,
        )
        try:
            assurance = ProjectionAssurance.of(plan.projections, account.single)
        except ValueError as error:
            raise UsageError(
                f"--failure-probability {options.failure_probability:g}: is too small for this "
                f"deep network at --effort {options.effort}: {error}; choose a larger one, or "
                "--norms deterministic"
            ) from error
        prover = MarginProver.of(analysis, Layers.of(network), duals)
        return cls(prover, Tube(network, guide), account, assurance, plan)

    @property
    def at_once(self) -> int:
        """How many samples are followed at once: each one's tangents fill much memory."""
        return fitting(self.plan.memory, self.prover.layers.network.anchor.device)

    def climb(self, samples: Samples, known: Findings) -> Step:
        limit = known.attacked.clamp(max=self.prover.analysis.reach)
        rows = (known.correct & ~(known.radius >= SETTLED * limit)).nonzero().flatten()
        radius, limit = torch.full_like(known.radius[rows], -1), limit[rows]
        deployed, late = torch.full_like(radius, math.nan), torch.zeros_like(radius) > 0
        for part in slices(len(rows), self.at_once):
            some = torch.arange(len(rows), device=rows.device)[part]
            if known.seconds_left <= 0:
                late[some] = True
                continue
            chosen = samples.select(rows[some]).of_analysis(self.prover.analysis)
            chosen = chosen.anchored_in(self.prover.layers.network)
            before = known.radius[rows[some]]
            radius[some], deployed[some], late[some] = self._climb(
                chosen, limit[some], before, known
            )
        late = late & (radius < 0)
        return Step(self.name, rows, radius=radius, deployed=deployed, late=rows[late])

    def _climb(
        self, samples: Samples, limit: Tensor, before: Tensor, known: Findings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Radii above those known ``before``, with their deployed errors, else −1; and where time
        did not suffice: ``(B,)`` each. Samples go side by side, each as it would alone."""
        radius = torch.full_like(before, -1.0)
        deployed, late = torch.full_like(before, math.nan), torch.zeros_like(before) > 0
        guess = self._guess(samples, limit)
        aim = torch.where(guess > 0, _SHORT * guess, limit)
        aim = on_grid(aim.clamp(min=SMALLEST_BALL))
        for eps in known.options.eps:
            near = torch.full_like(limit, eps.rounded_up)
            tried = (aim < near) & (near < limit) & (near <= _NEAR * guess)
            aim = torch.where(tried, near, aim)
        network = self.prover.layers.network
        smaller = _MUCH_SMALLER if network.joints else _SMALLER
        rows = torch.arange(len(before), device=before.device)
        for number in range(_tries(self.prover.analysis.pace.tube, network)):
            some = samples.select(rows)
            claim, sweep = self._claim(some, aim[rows], number)
            for _ in range(_CLAIMS):
                if known.seconds_left <= 0:
                    break
                short = ~(self._slack(some, claim, sweep) > 0)
                if not bool(short.any()):
                    break
                # Claims at the same radius are the same again.
                aim[rows] = torch.where(short, on_grid(aim[rows] * smaller), aim[rows])
                claim, sweep = self._claim(some, aim[rows], number)
            further = (~(aim[rows] <= before[rows])).nonzero().flatten()
            if len(further) < len(rows):
                # Only what gains by a proof spends coins on one.
                rows, some = rows[further], some.select(further)
                if not len(rows):
                    break
                claim, sweep = self._claim(some, aim[rows], number)
            if known.seconds_left <= 0:
                late[rows] = True
                break
            proven, error = self._prove(some, claim, sweep)
            deployed[rows] = torch.where(proven | deployed[rows].isnan(), error, deployed[rows])
            radius[rows] = torch.where(proven, aim[rows], radius[rows])
            rows = rows[(~proven).nonzero().flatten()]
            if not len(rows):
                break
            aim[rows] = on_grid(aim[rows] * smaller)
        return radius, deployed, late

    def _guess(self, sample: Samples, limit: Tensor) -> Tensor:
        """Guesses the largest radii that could be proven, by claims of few projections."""
        pace = self.prover.analysis.pace.tube
        rows = replace(self.plan.rows, guessed=self.plan.claims)

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            sweep = self._sweep(eps)
            coins = sample.allowance.guesses.projections(0)
            claim = self.tube.claim(
                sample.centre, eps, self.assurance, coins, self.plan.guesses,
                None if sweep is None else sweep.before, rows,
            )  # fmt: skip
            return self._slack(sample, claim, sweep)

        start = on_grid((limit * _FIRST_GUESS).clamp(min=SMALLEST_BALL))
        return largest_radius(
            slack, start, clean=sample.decisive, limit=limit, resolution=1.05,
            steps=pace.searches,
        )  # fmt: skip

    def _slack(self, sample: Samples, claim: Claim, sweep: NoiseSweep | None) -> Tensor:
        """How far the least margins would be above what they have to exceed, by duals that are not
        optimised: ``(B,)``."""
        prover, head = self.prover, self.prover.analysis.head
        needed, _ = prover.needed(sample, claim.eps, claim.state, sweep)
        nearest = head.nearest(sample.clean, _GUESSED_CLASSES)
        which = (torch.zeros_like(needed) > 0).scatter(1, nearest, True)
        objectives, others = prover.objectives(sample, which)
        start = prover.guide.start(
            select(to_dtype(claim.expected, torch.float32), objectives.rows),
            objectives.to(torch.float32),
        )
        values = prover.certified(sample, claim.expected, objectives, others, start)
        least = prover.untold(sample)
        least[objectives.rows, others] = values - needed[objectives.rows, others]
        return head.least(least, sample.labels)

    def _sweep(self, eps: Tensor) -> NoiseSweep | None:
        return None if self.prover.noise is None else self.prover.noise.over(eps)

    def _claim(self, sample: Samples, eps: Tensor, number: int) -> tuple[Claim, NoiseSweep | None]:
        """A claim that is to be proven, with the roundings that it was made with."""
        sweep, plan = self._sweep(eps), self.plan
        coins = sample.allowance.guesses.projections(1 + number)
        rounding = None if sweep is None else sweep.before
        claim = self.tube.claim(
            sample.centre, eps, self.assurance, coins, plan.claims, rounding,
            replace(plan.rows, wider=_WIDER**number),
        )  # fmt: skip
        return claim, sweep

    def _prove(
        self, sample: Samples, claim: Claim, sweep: NoiseSweep | None
    ) -> tuple[Tensor, Tensor]:
        """Says which samples are proven where it was claimed, and the deployed error
        there: ``(B,)`` each."""
        region, held = self._region(sample, claim, sweep)
        rows = torch.arange(len(sample), device=held.device)
        open_ = self.prover.verdict(sample, region, WarmStart.none(sample.clean), rows)
        return held & open_.proven, region.deployed

    def region(self, samples: Samples, eps: Tensor, number: int) -> tuple[Region, Tensor]:
        """Proves boxes of the balls of radius ``eps``, with coins of its own; ``number``: of the
        attempt. Which samples it holds for: ``(B,)``."""
        samples = samples.of_analysis(self.prover.analysis)
        return self._region(samples, *self._claim(samples, eps, number))

    def _region(
        self, samples: Samples, claim: Claim, sweep: NoiseSweep | None
    ) -> tuple[Region, Tensor]:
        prover = self.prover
        coins = samples.allowance.preparation(self.account)
        proof = self.tube.prove(samples.centre, claim, self.assurance, coins)
        state = proof.state
        if prover.analysis.options.pixel_domain:
            x = state[0]
            state = state | {0: replace(x, lower=x.lower.clamp(0, 1), upper=x.upper.clamp(0, 1))}
        # Roundings in front of the logits, of runs within the claim.
        needed, deployed = prover.needed(samples, claim.eps, claim.state, sweep)
        return Region(Facts(), state, needed, deployed), proof.held
