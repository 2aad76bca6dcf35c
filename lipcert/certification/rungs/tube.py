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
from lipcert.certification.pace import PACES, TubePace
from lipcert.certification.rungs.base import SMALLEST_BALL
from lipcert.certification.samples import Samples
from lipcert.certification.search import largest_radius, on_grid
from lipcert.certification.warm_start import WarmStart
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import Network, ancestors, lower, simplify
from lipcert.norms import Account
from lipcert.options import Effort, Options

# Networks whose activations are computed from more values than this, in all, are deep. Counted over
# pretrained networks: shallow ones have at most 2^19, ResNet-20 and its like 2^21.7 and more.
_DEEP = 2.0**20
# What all tangents of the samples that are followed at once may take, in bytes.
_MEMORY = 3.0 * 2**30
# Fewer projections than this assure next to nothing.
_FEWEST = 256
# A radius that could not be proven is tried again so much smaller.
_SMALLER = 0.85
# Remainders of joints grow at once where a guess was a little too far: they get more tries, and
# these are further apart.
_MORE_TRIES, _MUCH_SMALLER = 2, 0.65
# Where a search begins, of the distance of the attack, and how far beyond a guess an eps is tried.
_FIRST_GUESS, _NEAR = 0.005, 1.2
_GUESSED_CLASSES = 3


def is_deep(network: Network) -> bool:
    """Whether the tube is to be taken: how many values lead to all activations, counted for each,
    is what chains of norms would cost. Not where a layer is so large that memory has no room for
    as many tangents of one sample as assure something. A network with joints has no other bound."""
    if network.joints:
        return True
    simple = simplify(lower(simplify(network)))
    sizes = [math.prod(node.shape) for node in simple.nodes]
    work = sum(sizes[j] for sink in simple.sinks for j in ancestors(simple, sink))
    return work > _DEEP and _room(simple) >= _FEWEST


def _tries(pace: TubePace, network: Network) -> int:
    return pace.tries + (_MORE_TRIES if network.joints else 0)


def _room(network: Network) -> int:
    """Says for how many projections of one sample, of two tangents each, memory has room.

    At every node the tangents of all that is read there or later lie in memory beside its own, and
    half as much again for what is drawn there, or sorted."""
    sizes = [math.prod(node.shape) for node in network.nodes]
    last = {j: i for i, node in enumerate(network.nodes) for j in node.inputs}
    held, most = 0.0, 0.0
    for i, node in enumerate(network.nodes):
        held += sizes[i]
        most = max(most, held + sizes[i] / 2)
        held -= sum(sizes[j] for j in set(node.inputs) if last[j] == i)
    return int(_MEMORY / (most * 2 * 8))


def tangents(network: Network, effort: Effort) -> int:
    """How many tangents go through a deep network for one sample, at the least: two for each
    projection of the search, of a claim and, twice as long in float64, of its proof."""
    pace = PACES[effort].tube
    proven = min(pace.projections, _room(network))
    return 2 * (pace.searches * pace.guesses + pace.claims + 2 * proven)


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
    """Finds the radius of each sample, then decides each eps that is near it, for ``at_once``
    samples together. ``assurance`` says what a proof assures, ``account`` is that of its coins."""

    prover: MarginProver
    tube: Tube
    account: Account
    assurance: ProjectionAssurance
    at_once: int
    name: str = "tube"

    @classmethod
    def of(cls, analysis: Analysis, part: float, preparations: int | None = None) -> TubeRadius:
        """``part``: how much of the run's failure probability the projections may spend; how often
        each sample may be proven, as often as ``climb`` does by default."""
        options, pace, network = analysis.options, analysis.pace.tube, analysis.lowered_double
        guide, images = network.to_guess_by(), options.pixel_domain
        if network.joints and _room(network) < _FEWEST:
            raise CannotCertify(
                f"{network.joints_told}: layers are so large that memory has no room for the "
                "random tangents that prove them"
            )
        duals = DualBound(network, images=images), DualBound(guide, images=images)
        widths = sum(math.prod(network.nodes[sink].shape) for sink in network.sinks)
        # Drawn at the input and at every activation; of each neuron two statistics may fail.
        account = analysis.budget.account(
            part,
            preparations=preparations or _tries(pace, network) + len(options.eps),
            draws=len(network.sources),
            events=2 * widths,
        )
        room = _room(network)
        try:
            assurance = ProjectionAssurance.of(min(pace.projections, room), account.single)
        except ValueError as error:
            raise UsageError(
                f"--failure-probability {options.failure_probability:g}: is too small for this "
                f"deep network at --effort {options.effort}: {error}; choose a larger one, or "
                "--norms deterministic"
            ) from error
        prover = MarginProver.of(analysis, Layers.of(network), duals)
        at_once = max(1, room // assurance.count)
        return cls(prover, Tube(network, guide), account, assurance, at_once)

    def climb(self, samples: Samples, known: Findings) -> Step:
        rows = known.correct.nonzero().flatten()
        if known.seconds_left <= 0:
            return Step(self.name, rows[:0], late=rows)
        radius = torch.full_like(known.radius[rows], -1)
        deployed, late = torch.full_like(radius, math.nan), torch.zeros_like(radius) > 0
        limit = known.attacked[rows].clamp(max=self.prover.analysis.reach)
        for some in torch.split(torch.arange(len(rows), device=rows.device), self.at_once):
            if known.seconds_left <= 0:
                late[some] = True
                continue
            part = samples.select(rows[some]).anchored_in(self.prover.layers.network)
            radius[some], deployed[some], late[some] = self._climb(
                part, limit[some], known.radius[rows[some]], known
            )
        return Step(self.name, rows, radius=radius, deployed=deployed, late=rows[late])

    def _climb(
        self, samples: Samples, limit: Tensor, before: Tensor, known: Findings
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Radii above those known ``before``, with their deployed errors, else −1; and which of
        them time did not suffice for: ``(B,)`` each."""
        pace = self.prover.analysis.pace.tube
        radius, deployed = before.clone(), torch.full_like(before, math.nan)
        late = torch.zeros_like(before) > 0
        guess = self._guess(samples, limit)
        aim = on_grid(torch.where(guess > 0, guess, limit).clamp(min=SMALLEST_BALL))

        def prove(eps: Tensor, number: int, wanted: Tensor) -> Tensor:
            """Which of the samples ``wanted`` are proven at ``eps``: ``(B,)``."""
            chosen = wanted.nonzero().flatten()
            at = eps[chosen]
            proven, error = self._prove(samples.select(chosen), at, number)
            better = proven & (at > radius[chosen])
            told = better | deployed[chosen].isnan()
            deployed[chosen] = torch.where(told, error, deployed[chosen])
            radius[chosen] = torch.where(better, at, radius[chosen])
            return torch.zeros_like(wanted).index_put((chosen,), proven)

        open_ = torch.ones_like(aim) > 0
        network = self.prover.layers.network
        tries, smaller = _tries(pace, network), _MUCH_SMALLER if network.joints else _SMALLER
        for number in range(tries):
            if not bool(open_.any()):
                break
            if known.seconds_left <= 0:
                late = late | open_
                break
            open_ = open_ & ~prove(aim, number, open_)
            aim = on_grid(torch.where(open_, aim * smaller, aim))
        for number, eps in enumerate(known.options.eps, start=tries):
            near = torch.full_like(limit, eps.rounded_up)
            wanted = (radius < near) & (near < limit) & (near <= _NEAR * guess.maximum(radius))
            if bool(wanted.any()):
                if known.seconds_left <= 0:
                    late = late | wanted
                else:
                    prove(near, number, wanted)
        return torch.where(radius > before, radius, -1.0), deployed, late

    def _guess(self, samples: Samples, limit: Tensor) -> Tensor:
        """Guesses the largest radius that could be proven, by claims of few projections."""
        head = self.prover.analysis.head
        prover, pace = self.prover, self.prover.analysis.pace.tube

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            chosen = asked.nonzero().flatten()
            part, found = samples.select(chosen), torch.full_like(eps, math.nan)
            claim, sweep = self._claim(part, eps[chosen], pace.guesses, 0)
            needed, _ = prover.needed(part, claim.eps, claim.state, sweep)
            which = torch.zeros_like(needed) > 0
            nearest = head.nearest(part.clean, _GUESSED_CLASSES)
            objectives, others = prover.objectives(part, which.scatter(1, nearest, True))
            start = prover.guide.start(
                select(to_dtype(claim.state, torch.float32), objectives.rows),
                objectives.to(torch.float32),
            )
            values = prover.certified(part, claim.state, objectives, others, start)
            least = prover.untold(part)
            least[objectives.rows, others] = values - needed[objectives.rows, others]
            found[chosen] = head.least(least, part.labels)
            return found

        start = (limit * _FIRST_GUESS).clamp(min=SMALLEST_BALL)
        return largest_radius(
            slack, start, clean=samples.decisive, limit=limit, resolution=1.05,
            steps=pace.searches,
        )  # fmt: skip

    def _claim(
        self, samples: Samples, eps: Tensor, count: int, number: int
    ) -> tuple[Claim, NoiseSweep | None]:
        sweep = None if self.prover.noise is None else self.prover.noise.over(eps)
        coins = samples.allowance.guesses.projections(number)
        rounding = None if sweep is None else sweep.before
        claim = self.tube.claim(samples.centre, eps, self.assurance, coins, count, rounding)
        return claim, sweep

    def _prove(self, samples: Samples, eps: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Says whether samples are proven at ``eps``, and the deployed errors there: ``(B,)``
        each."""
        region, held = self.region(samples, eps, number)
        rows = torch.arange(len(samples), device=eps.device)
        start = WarmStart.none(samples.clean)
        open_ = self.prover.verdict(samples, region, start, rows)
        return held & open_.proven, region.deployed

    def region(self, samples: Samples, eps: Tensor, number: int) -> tuple[Region, Tensor]:
        """Proves boxes of the balls of radius ``eps``, with coins of its own; ``number``: of the
        attempt. Which samples it holds for: ``(B,)``."""
        prover, pace = self.prover, self.prover.analysis.pace.tube
        claim, sweep = self._claim(samples, eps, pace.claims, number)
        coins = samples.allowance.preparation(self.account)
        proof = self.tube.prove(samples.centre, claim, self.assurance, coins)
        state = proof.state
        if prover.analysis.options.pixel_domain:
            x = state[0]
            state = state | {0: replace(x, lower=x.lower.clamp(0, 1), upper=x.upper.clamp(0, 1))}
        # Roundings in front of the logits, of runs within the claim.
        needed, deployed = prover.needed(samples, claim.eps, claim.state, sweep)
        return Region(Facts(), state, needed, deployed), proof.held
