"""Intervals of outputs: what a network of real outputs gives anywhere in a ball.

With a constant 0 as its first output, then every output ``f_i``, then every ``−f_i``, the margins
of that 0 are ``−f_i`` and ``f_i``: a lower bound of the first gives the upper end of an interval,
one of the second the lower end. So the boxes, duals and tubes that certify classes give intervals
too, and what the deployed arithmetic adds is taken off them as off any margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.certification.analysis import Analysis
from lipcert.certification.duals import Duals
from lipcert.certification.ieee import check_device, ieee_arithmetic
from lipcert.certification.margins import MarginProver, Region
from lipcert.certification.rungs.base import SMALLEST_BALL
from lipcert.certification.rungs.plan import is_deep
from lipcert.certification.rungs.tube import TubeRadius, check_joints
from lipcert.certification.samples import Samples
from lipcert.certification.search import largest_radius
from lipcert.certification.warm_start import WarmStart
from lipcert.errors import CannotCertify
from lipcert.network import Network, Node
from lipcert.network.operators import Diagonal, Select
from lipcert.norms import Budget
from lipcert.numbers import OUT64
from lipcert.options import Options
from lipcert.rounding import gamma

# Radii that a search looks at, and how near it comes.
TRIALS, _RESOLUTION = 8, 1.02
# Steps from each of two beginnings towards each end of an interval, as shares of the radius.
_STRIDES = tuple(0.5 * 0.85**step for step in range(20))
_WITHIN = 1 - 2.0**-20


@dataclass(frozen=True, eq=False)
class Intervals:
    """Of ``B`` samples in balls of one radius: ``lower`` and ``upper`` ends of every output,
    ``(B, m)``, infinite where nothing is proven."""

    lower: Tensor
    upper: Tensor

    def within(self, target: Tensor, tolerance: float) -> Tensor:
        """How far the intervals stay inside ``target ± tolerance``, ``(B,)``, rounded down:
        positive where every point of them does."""
        left = torch.minimum(target + tolerance - self.upper, self.lower - target + tolerance)
        sizes = target.abs() + tolerance + torch.maximum(self.lower.abs(), self.upper.abs())
        return (left - OUT64.error(sizes, 8)).nan_to_num(-math.inf, math.inf, -math.inf).amin(1)


class Encloser:
    """Encloses the outputs of one network over balls around its samples.

    ``network`` takes the data and is as the file has it; ``outputs``: which of its values count;
    ``samples``: how many there are in all; ``searched``: a radius is sought for each of them. The
    others as in ``Certifier``.
    """

    @ieee_arithmetic()
    def __init__(
        self,
        network: Network,
        outputs: tuple[int, ...],
        options: Options,
        *,
        samples: int,
        searched: bool = False,
        reach: float | None = None,
        key: int,
    ) -> None:
        for wrong, said in (
            (options.method != "auto", f"--method {options.method}: bounds margins of classes"),
            (options.estimate, "--norms estimate: bounds nothing"),
            (not options.radii, "--no-radii: there are no verdicts on classes"),
        ):
            if wrong:
                raise CannotCertify(f"{said}; leave it out")
        check_device("cpu")
        self.options, self.outputs = options, outputs
        probability = 0.0 if options.deterministic else options.failure_probability
        self.budget = Budget(key, probability=probability, samples=samples)
        signed = both_signs(network, outputs)
        self.analysis = analysis = Analysis.of(
            signed, options, self.budget, device="cpu", reach=reach, softmax=False
        )
        preparations = len(options.eps) + (TRIALS if searched else 0)
        self.tube: TubeRadius | None = None
        self.duals: Duals | None = None
        if analysis.loaded.joints:
            check_joints(analysis.loaded, options)
        if is_deep(analysis.loaded) and not options.deterministic:
            self.tube = TubeRadius.of(analysis, 1.0, preparations)
        else:
            self.duals = Duals.of(analysis, 1.0, preparations)

    @ieee_arithmetic()
    def batch(self, pixels: Tensor, indices: list[int]) -> Samples:
        """The samples ``(B, …)`` with these numbers, their coins opened."""
        first = torch.zeros(len(pixels), dtype=torch.int64)
        allowance = self.budget.open(torch.tensor(indices, dtype=torch.int64))
        samples = Samples.of(self.analysis, pixels.double(), first, allowance)
        network = None if self.tube is None else self.tube.prover.layers.network
        return samples.anchored if network is None else samples.anchored_in(network)

    @ieee_arithmetic()
    def enclose(self, samples: Samples, eps: Tensor, number: int = 0) -> Intervals:
        """Intervals in the balls of radius ``eps`` ``(B,)``; ``number``: of this attempt."""
        at = eps.clamp(min=SMALLEST_BALL)
        held = torch.ones_like(at) > 0
        if self.tube is not None:
            tube, some = self.tube, torch.arange(len(samples))
            parts = [
                self._within(tube.prover, part, *tube.region(part, at[rows], number))
                for rows in torch.split(some, tube.at_once)
                for part in [samples.select(rows)]
            ]
            margins = torch.cat(parts)
        else:
            assert self.duals is not None
            pace = self.analysis.pace
            region = self.duals.prepare(samples, at, pace.refine or pace.boxes)
            margins = self._within(self.duals.prover, samples, region, held)
        upper, lower = margins[:, 1:].chunk(2, 1)
        return Intervals(lower, -upper)

    def _within(
        self, prover: MarginProver, samples: Samples, region: Region, held: Tensor
    ) -> Tensor:
        """Lower bounds of all margins as deployed, ``(B, 1 + 2m)``; −∞ of samples that are not
        ``held``, ``(B,)``, in the region."""
        needed = region.needed
        best = torch.full_like(needed, -math.inf)
        if not prover.layers.network.joints:
            best = prover.anchored_margins(samples, region.state) - needed
        objectives, others = prover.objectives(samples, torch.ones_like(needed) > 0)
        found, place = None, (objectives.rows, others)
        for steps in self.analysis.pace.stages:
            start = WarmStart.none(samples.clean) if found is None else found
            _, found = prover.optimised(
                samples, region.state, objectives, others, start, steps
            )  # fmt: skip
            value = prover.certified(samples, region.state, objectives, others, found)
            slack = value - needed[place]
            # The difference is rounded.
            slack = slack - OUT64.error(value.abs() + needed[place].abs(), 2)
            best[place] = torch.fmax(best[place], slack)
        best = best.nan_to_num(-math.inf, math.inf, -math.inf)
        return best.masked_fill(~held[:, None], -math.inf)

    def radius(self, samples: Samples, target: Tensor, tolerance: float) -> Tensor:
        """The largest radius found at which every output stays within ``tolerance`` of ``target``
        ``(B, m)``, −1 where there is none: ``(B,)``."""
        trials = iter(range(len(self.options.eps), len(self.options.eps) + TRIALS))
        largest = torch.full_like(target[:, 0], self.options.largest.rounded_up)

        def slack(eps: Tensor, asked: Tensor) -> Tensor:
            found = self.enclose(samples, eps, next(trials)).within(target, tolerance)
            return torch.where(asked, found, math.nan)

        values = self.values(samples.x)
        clean = tolerance - (values - target).abs().amax(1)
        limit = torch.full_like(largest, self.analysis.reach)
        return largest_radius(
            slack, largest.clamp(min=1e-6), clean=clean, limit=limit, resolution=_RESOLUTION,
            steps=TRIALS,
        )  # fmt: skip

    @torch.no_grad()
    def values(self, x: Tensor) -> Tensor:
        """The outputs that count at ``x`` ``(B, …)``, in float64: ``(B, m)``."""
        return self.analysis.loaded.logits(x.double())[:, 1 : 1 + len(self.outputs)]

    def reached(
        self, x: Tensor, eps: float, *, pixel_domain: bool, most: int
    ) -> tuple[Tensor, Tensor]:
        """Points of the balls ``(B, t, *shape)``, in the deployed arithmetic's own type, at which
        outputs, ``most`` of them, are as small and as great as an attack makes them, the sample
        first; and all outputs there, ``(B, t, m)``: an interval that is proven has them."""
        network, m = self.analysis.attacked, len(self.outputs)
        chosen = torch.arange(min(m, most)) * m // min(m, most)
        ends = torch.cat([1 + chosen, 1 + m + chosen])
        ball = _Ball(x, eps, network.anchor.dtype, pixel_domain)
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).double()
        points = [ball.points(torch.zeros_like(x)[:, None])]
        for begin in (0.0, 0.5):
            offset = (begin * eps * noise / noise.norm()).expand(len(x), len(ends), *x.shape[1:])
            for stride in _STRIDES if eps > 0 else ():
                with torch.enable_grad():
                    at = (x[:, None] + offset).to(ball.dtype).flatten(0, 1).requires_grad_()
                    outputs = network.logits(at).reshape(len(x), len(ends), -1)
                    sought = outputs[:, torch.arange(len(ends)), ends].sum()
                    (slope,) = torch.autograd.grad(sought, at)
                slope = slope.double().reshape(offset.shape).nan_to_num(0.0, 0.0, 0.0)
                step = stride * 2 * eps * slope / _wide(_length(slope), slope)
                offset = ball.inside(offset + step)
            points.append(ball.points(offset))
        made = torch.cat(points, 1)
        with torch.no_grad():
            outputs = network.logits(made.flatten(0, 1).to(ball.dtype)).double()
        return made, outputs.reshape(*made.shape[:2], -1)[:, :, 1 : 1 + m]


@dataclass(frozen=True, eq=False)
class _Ball:
    """Points within ``eps`` of ``x`` ``(B, *shape)`` float64, whose values a type holds."""

    x: Tensor
    eps: float
    dtype: torch.dtype
    images: bool

    def inside(self, offset: Tensor) -> Tensor:
        """Offsets ``(B, t, *shape)``, drawn in to the ball and to images."""
        share = (self.eps * _WITHIN / _length(offset)).clamp(max=1)
        offset = offset * _wide(share, offset)
        if not self.images:
            return offset
        return (self.x[:, None] + offset).clamp(0, 1) - self.x[:, None]

    def points(self, offset: Tensor) -> Tensor:
        """The points at offsets; the samples where rounding would leave the ball."""
        found = (self.x[:, None] + self.inside(offset)).to(self.dtype).double()
        if self.images:
            found = found.clamp(0, 1)
        excess = 1 + gamma(self.x[0].numel() + 4)
        far = (found - self.x[:, None]).flatten(2).norm(dim=2) * excess > self.eps
        return torch.where(_wide(far, found), self.x[:, None], found)


def _length(offset: Tensor) -> Tensor:
    length: Tensor = offset.flatten(2).norm(dim=2).clamp(min=1e-300)
    return length


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(*values.shape, *(1,) * (like.dim() - values.dim()))


def both_signs(network: Network, outputs: tuple[int, ...]) -> Network:
    """The network with the outputs ``0, f_i …, −f_i …``. Only the sign is a computation, and an
    exact one."""
    shape = network.nodes[-1].shape
    m, places = len(outputs), torch.tensor([-1, *outputs, *outputs])
    select = Select.of(places[None], shape)
    signs = torch.ones(1, 1 + 2 * m, dtype=torch.float64)
    signs[:, 1 + m :] = -1
    nodes = network.nodes
    nodes = (*nodes, Node(select, (len(nodes) - 1,), (1, 1 + 2 * m), "outputs"))
    nodes = (*nodes, Node(Diagonal.of(signs, None, (1, 1 + 2 * m)), (len(nodes) - 1,),
                          (1, 1 + 2 * m), "both signs"))  # fmt: skip
    return replace(network, nodes=nodes)
