"""Deep networks: radii by sketched tubes, and duals from the boxes that these prove.

Norms of chains, layer after layer, take as long as the square of the depth and lose all that
balls cannot see. A tube (``lipcert.bounds.sketch``) takes one pass of random tangents for all
layers together. A radius is sought with claims alone, which are cheap; it counts once fresh coins
have proven the claim, and the duals all margins, from the boxes that were proven.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from lipcert.bounds import AnchoredBound, Layers, Prepared, Propagation
from lipcert.bounds.anchored import select, to_dtype
from lipcert.bounds.noise import NoiseSweep
from lipcert.bounds.sketch import Assurance, Claim, Tube
from lipcert.certification.backward import Backward, BackwardBatch, Ready
from lipcert.certification.batch import Batch
from lipcert.certification.deployed import Deployment
from lipcert.certification.findings import Findings
from lipcert.certification.pace import PACES
from lipcert.certification.search import largest_radius, on_grid
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import Network, ancestors, lower, simplify
from lipcert.norms import Budget
from lipcert.options import Options

# Networks whose activations are computed from more values than this, in all, are deep. Counted over
# pretrained networks: shallow ones have at most 2^19, ResNet-20 and its like 2^21.7 and more.
_DEEP = 2.0**20
# What all tangents of the samples that are followed at once may take, in bytes.
_MEMORY = 3.0 * 2**30
# Nodes whose tangents are held at the same time, a branch's among them.
_HELD = 4
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
_SMALLEST_BALL = 1e-30


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


def _room(network: Network) -> int:
    """How many projections of one sample memory has room for, each with two tangents."""
    largest = max(math.prod(node.shape) for node in network.nodes)
    return int(_MEMORY / (_HELD * largest * 2 * 8))


def joints_of(network: Network) -> str:
    """What joints a network has, and where the first of each kind is, for people."""
    first: dict[str, str] = {}
    for i in network.joints:
        node = network.nodes[i]
        first.setdefault(type(node.kind).__name__, node.origin)
    return ", ".join(f"{kind} at {origin}" for kind, origin in first.items())


class TubeBound:
    """The tube of one network under one set of options, and what its margins are proven with."""

    def __init__(
        self, network: Network, options: Options, deployment: Deployment, *,
        device: str, budget: Budget, part: float,
    ) -> None:  # fmt: skip
        self.pace, self.deployment, self.options = PACES[options.effort], deployment, options
        simple = simplify(lower(simplify(network))).to(device=device)
        if simple.joints and _room(simple) < _FEWEST:
            raise CannotCertify(
                f"{joints_of(network)}: layers are so large that memory has no room for the "
                "random tangents that prove them"
            )
        rough = simple.to_guess_by()
        constants = [math.inf] * len(simple.nodes)
        self.bound = AnchoredBound(
            Layers.of(simple), {}, constants, Propagation.of(simple, constants),
            rough=rough, chains=False, refinement=None, images=options.pixel_domain,
        )  # fmt: skip
        self.dual, self.guide = self.bound.duals
        self.noise = deployment.noise(simple)
        self.tube = Tube(simple, rough)
        self.tries = self.pace.tube.tries + (_MORE_TRIES if simple.joints else 0)
        self.smaller = _MUCH_SMALLER if simple.joints else _SMALLER
        widths = sum(math.prod(simple.nodes[sink].shape) for sink in simple.sinks)
        # Drawn at the input and at every activation; of each neuron two statistics may fail.
        self.account = budget.account(
            part,
            preparations=self.tries + len(options.eps),
            draws=len(simple.sources),
            events=2 * widths,
        )
        room = _room(simple)
        count = min(self.pace.tube.projections, room)
        try:
            self.assurance = Assurance.of(count, self.account.single)
        except ValueError as error:
            raise UsageError(
                f"--failure-probability {options.failure_probability:g}: is too small for this "
                f"deep network at --effort {options.effort}: {error}; choose a larger one, or "
                "--norms deterministic"
            ) from error
        self.at_once = max(1, room // self.assurance.count)

    def climb(self, batch: Batch, findings: Findings, rows: Tensor, limit: Tensor) -> None:
        """The radius of each sample up to ``limit``, ``(B,)``, then each eps that is near it.

        ``batch``: the correctly classified samples, ``rows`` of the ``findings``.
        """
        for some in torch.split(torch.arange(len(rows), device=rows.device), self.at_once):
            if findings.seconds_left(rows[some]) > 0:
                self._climb(batch.subset(some), findings, rows[some], limit[some])
        findings.passed("tube", rows)

    def _climb(self, batch: Batch, findings: Findings, rows: Tensor, limit: Tensor) -> None:
        # It has all that margins are proven with; norms it has none.
        tools = cast(Backward, self)
        every = BackwardBatch(tools, batch.x, batch.labels, batch.allowance, batch.deployed)
        guess, tries = self._guess(every, limit), self.tries
        aim = on_grid(torch.where(guess > 0, guess, limit).clamp(min=_SMALLEST_BALL))
        open_ = torch.ones_like(aim) > 0
        for number in range(tries):
            if not bool(open_.any()) or findings.seconds_left(rows[open_]) <= 0:
                break
            open_ = open_ & ~self._prove(every, findings, rows, aim, number, open_)
            aim = on_grid(torch.where(open_, aim * self.smaller, aim))
        for number, eps in enumerate(self.options.eps, start=tries):
            near = torch.full_like(limit, eps.rounded_up)
            known = findings.radius[rows]
            wanted = (known < near) & (near < limit) & (near <= _NEAR * guess.maximum(known))
            if bool(wanted.any()) and findings.seconds_left(rows[wanted]) > 0:
                self._prove(every, findings, rows, near, number, wanted)

    def _guess(self, every: BackwardBatch, limit: Tensor) -> Tensor:
        """About the largest radius that could be proven, by claims of few projections."""
        clean = every.clean.amin(1)

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            chosen = asked.nonzero().flatten()
            part, found = every.subset(chosen), torch.full_like(eps, math.nan)
            claim, sweep = self._claim(part, eps[chosen], self.pace.tube.guesses, 0)
            needed = part.needed(claim.eps, claim.state, sweep)
            which = torch.zeros_like(needed) > 0
            nearest = part.clean.topk(min(_GUESSED_CLASSES, part.clean.shape[1] - 1), largest=False)
            forms, others = part.forms(which.scatter(1, nearest.indices, True))
            start = self.guide.start(
                select(to_dtype(claim.state, torch.float32), forms.rows), forms.to(torch.float32)
            )
            values = part.certified(claim.state, forms, others, start)
            least = torch.full_like(needed, math.inf)
            least[forms.rows, others] = values - needed[forms.rows, others]
            found[chosen] = least.amin(1)
            return found

        start = (limit * _FIRST_GUESS).clamp(min=_SMALLEST_BALL)
        return largest_radius(
            slack, start, clean=clean, limit=limit, resolution=1.05, steps=self.pace.tube.searches
        )

    def _claim(
        self, part: BackwardBatch, eps: Tensor, count: int, number: int
    ) -> tuple[Claim, NoiseSweep | None]:
        sweep = None if self.noise is None else self.noise.over(eps)
        coins = part.allowance.guesses.projections(number)
        rounding = None if sweep is None else sweep.before
        claim = self.tube.claim(part.centre, eps, self.assurance, coins, count, rounding)
        return claim, sweep

    def _prove(
        self, every: BackwardBatch, findings: Findings, rows: Tensor, eps: Tensor, number: int,
        wanted: Tensor,
    ) -> Tensor:  # fmt: skip
        """Which of the samples ``wanted`` are proven at ``eps``: ``(B,)``."""
        chosen = wanted.nonzero().flatten()
        part = every.subset(chosen)
        claim, sweep = self._claim(part, eps[chosen], self.pace.tube.claims, number)
        coins = part.allowance.preparation(self.account)
        proof = self.tube.prove(part.centre, claim, self.assurance, coins)
        state = proof.state
        if self.options.pixel_domain:
            x = state[0]
            state = state | {0: replace(x, lower=x.lower.clamp(0, 1), upper=x.upper.clamp(0, 1))}
        # Roundings in front of the logits, of runs within the claim.
        needed = part.needed(claim.eps, claim.state, sweep)
        margins = part.verdict(Ready(Prepared(), state, needed))
        proven = proof.held & margins.proven
        findings.improve(rows[chosen], torch.where(proven, eps[chosen], -1.0), 1, part.charged)
        return torch.zeros_like(wanted).index_put((chosen,), proven)
