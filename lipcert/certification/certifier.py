"""From a batch of samples to their verdicts and radii."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.bounds import Bound, GlobalBound, Layers, LocalBound
from lipcert.certificate import Sample
from lipcert.certification.assured import EXCESS, AssuredNorms
from lipcert.certification.backward import Backward
from lipcert.certification.batch import Batch, Tools
from lipcert.certification.cascade import RUNGS, TUBE_RUNGS, climb
from lipcert.certification.deployed import Deployment
from lipcert.certification.dtype import in_dtype
from lipcert.certification.file_check import File, FileCheck
from lipcert.certification.findings import Findings
from lipcert.certification.ieee import ieee_arithmetic, sums_of_products
from lipcert.certification.layer_norms import LayerNorm, layer_norms
from lipcert.certification.pace import PACES
from lipcert.certification.tube import TubeBound, is_deep, joints_of
from lipcert.coins import Coins
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import Network, Node, keep, simplify
from lipcert.network.operators import Diagonal
from lipcert.norms import Budget
from lipcert.options import Options
from lipcert.rounding import FORMATS

# What bounds the local constant, and for the published methods the margins too.
_BOUNDS: dict[str, type[Bound]] = {"global": GlobalBound, "local": LocalBound, "auto": LocalBound}
_SMALLEST_BALL = 1e-30
# Where better bounds follow, the first local norms need not be so near.
_ROUGHLY = 0.04
# What a search can miss of the largest radius.
_FURTHER = 1.001


class Certifier:
    """Certifies batches of samples of one network under one set of options.

    ``network`` takes the data, pixels in [0, 1] for images, and is as the file has it; ``samples``
    is how many the whole run has, over all ``shards``, for the union bound; ``softmax`` says that
    the file's own last Softmax was stripped. ``counterexamples``, where given, is filled with the
    points of falsified samples, by their numbers. ``reach``: how far two samples can be apart, for
    data that do not lie in [0, 1]; no larger radius is sought. ``key``: 128 bits that all coins
    follow from; those of the options' seed if None, and fresh ones without a seed. ``file``: what
    is deployed, run at points inside every certified radius. The shared norms are computed here,
    once.
    """

    @ieee_arithmetic()
    def __init__(
        self,
        network: Network,
        options: Options,
        *,
        samples: int,
        shards: int = 1,
        device: str = "cpu",
        softmax: bool = False,
        counterexamples: dict[int, NDArray[Any]] | None = None,
        reach: float | None = None,
        key: int | None = None,
        file: File | None = None,
    ) -> None:
        if network.classes < 2:
            raise CannotCertify(
                "the network has one output: a certificate compares classes, so give a model "
                "with one logit for each class"
            )
        self.options, self.counterexamples = options, counterexamples
        key = Coins.of(options.seed).seed if key is None else key
        # Rewritten where it was loaded, then moved.
        loaded = _with_a_number(network.to(device="cpu", dtype=torch.float64))
        if loaded.joints:
            _check_joints(loaded, options)
            loaded = keep(loaded)
        network = loaded.to(device=device)
        simple = in_dtype(simplify(loaded).to(device=device), options)
        # Norms of segments say nothing of what lies behind a joint.
        layers = Layers(simple, (), {}, {}) if loaded.joints else Layers.of(simple)
        both = options.method == "auto"
        part = 0.5 if both else 1.0
        self.budget = Budget(
            key,
            probability=0.0 if options.deterministic else options.failure_probability,
            samples=samples,
            shards=shards,
            device=device,
        )
        # The product of norms takes none of a sample's own.
        own = PACES[options.effort].own_norms if both else options.method == "local"
        # At most: one at the largest eps, one for the radius, and one at every eps.
        self.norms = AssuredNorms(
            layers.edges,
            options,
            self.budget,
            preparations=len(options.eps) + 2,
            own=None if own else (),
            part=part,
        )
        bound = _BOUNDS[options.method].of(layers, self.norms.shared)
        single = layers.network.to_guess_by()
        rough = type(bound).of(Layers.of(single), self.norms.rough(single))
        arithmetic = FORMATS.get(options.deployed)
        # No two images of [0, 1] are further apart.
        cube = math.sqrt(math.prod(network.in_shape))
        reach = cube if reach is None else reach
        deployment = Deployment.of(
            network, arithmetic=arithmetic, softmax=softmax, analysis=layers.network.arithmetic
        )
        self.tools = Tools(bound, rough, self.norms, deployment, reach)
        self.backward: Backward | TubeBound | None = None
        if both:
            # A tube is nothing without coins.
            kind = TubeBound if is_deep(loaded) and not options.deterministic else Backward
            self.backward = kind(
                loaded, options, deployment, device=device, budget=self.budget, part=part
            )
        # Attacked in the arithmetic that certificates cover; those of a narrower one cover float32.
        double = options.deployed in ("float64", "real")
        self.attacked = network.to(dtype=torch.float64 if double else torch.float32)
        self.file_check = None if file is None else FileCheck(file, network, options)

    @property
    def rungs(self) -> tuple[str, ...]:
        """The rungs that find radii, by the number that ``Findings.improve`` is given."""
        if isinstance(self.backward, TubeBound):
            # Of a network with joints nothing is known before.
            joints = self.tools.bound.layers.network.joints
            return TUBE_RUNGS[1:] * 2 if joints else TUBE_RUNGS
        return RUNGS if self.backward else (self.options.method,)

    @property
    def global_failure_probability(self) -> float:
        """What the shared norms spend of the run's failure probability."""
        return self.budget.spent_shared

    @property
    @ieee_arithmetic()
    def layer_norms(self) -> list[LayerNorm]:
        """The norm of every segment between activations, then that of the rows to the logits."""
        return layer_norms(self.tools.bound.layers, self.norms.shared)

    @property
    @ieee_arithmetic()
    def product(self) -> float:
        """An upper bound of the network's Lipschitz constant: the product of its norms; infinite
        where the network has joints."""
        if self.tools.bound.layers.network.joints:
            return math.inf
        return self.tools.bound.replaced(GlobalBound).product

    @ieee_arithmetic()
    def __call__(self, pixels: Tensor, labels: Tensor, indices: Sequence[int]) -> list[Sample]:
        """One batch: pixels ``(B, …)`` in [0, 1], labels ``(B,)``, the samples' numbers."""
        layers = self.tools.bound.layers
        device = layers.network.anchor.device
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < layers.network.classes:
            raise UsageError(
                f"a label outside 0 … {layers.network.classes - 1}, the classes of the network: "
                "the data set does not belong to this model"
            )
        if self.options.pixel_domain and not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise UsageError("--pixel-domain: the data have pixels outside [0, 1]")
        batch = Batch(
            self.tools,
            pixels.to(device, torch.float64),
            labels.to(device, torch.int64),
            self.budget.open(torch.tensor(indices, dtype=torch.int64, device=device)),
        )
        with sums_of_products(self.options.dtype):
            found = self._findings(batch)
        self._run_the_file(batch, found)
        samples = [found.sample(row, index) for row, index in enumerate(indices)]
        if self.counterexamples is not None:
            for row, sample in enumerate(samples):
                if sample.verdict == "falsified":
                    # The dtype that was attacked holds them exactly.
                    point = found.points[row].to(self.attacked.anchor.dtype)
                    self.counterexamples[sample.index] = point.cpu().numpy()
        return samples

    def _findings(self, batch: Batch) -> Findings:
        options = self.options
        findings = Findings(batch.x, batch.logits, batch.labels, options, self.rungs)
        everyone = torch.arange(len(batch.labels), device=batch.labels.device)
        top = torch.full_like(findings.margin, options.largest.rounded_up)
        ball = top.clamp(min=_SMALLEST_BALL)
        if self.tools.bound.layers.network.joints:
            assert self.backward is not None
            findings.passed(self.rungs[0], everyone)
            rows = findings.correct.nonzero().flatten()
            if rows.numel():
                part = batch.subset(rows)
                climb(self.backward, self.attacked, part, findings, rows, seed=self.budget.seed)
            findings.spent = batch.allowance.spent
            findings.check(batch.allowance.streams)
            return findings

        # Around every sample: the local constant at the largest eps, and the verdict there.
        prepared = batch.prepare(ball, _ROUGHLY if self.backward else EXCESS)
        findings.constant, findings.fixed = batch.constant(ball, prepared), prepared.fixed
        held = findings.correct & batch.holds(top, prepared)
        findings.improve(everyone, torch.where(held, top, -1.0), 0, batch.charged)
        findings.passed(self.rungs[0], everyone)

        rows = findings.correct.nonzero().flatten()
        if rows.numel() and self.backward is None:
            self._published(batch.subset(rows), findings, rows, ball[rows])
        elif rows.numel() and self.backward is not None:
            part = batch.subset(rows)
            seed = self.budget.seed
            climb(self.backward, self.attacked, part, findings, rows, seed=seed)
            self._not_below(part, findings, rows, ball[rows])
        rows = (findings.correct & (findings.radius < 0)).nonzero().flatten()
        if rows.numel():
            findings.deployed[rows] = batch.rounding(ball, rows)
        findings.spent = batch.allowance.spent
        findings.check(batch.allowance.streams)
        return findings

    def _run_the_file(self, batch: Batch, findings: Findings) -> None:
        """Takes back what the deployed file contradicts; estimates claim nothing."""
        if self.file_check is None or self.options.estimate:
            return
        rows = (findings.correct & (findings.radius >= 0)).nonzero().flatten()
        if rows.numel():
            found = self.file_check.contradictions(
                batch.x[rows], batch.labels[rows], findings.radius[rows], findings.points[rows]
            )
            findings.contradict(rows, found)

    def _not_below(self, part: Batch, findings: Findings, rows: Tensor, ball: Tensor) -> None:
        """Where the local bound may reach further, by estimates, its own radius is found."""
        known = findings.radius[rows]
        further = torch.where(known > 0, known * _FURTHER, ball).clamp(max=part.diameter)
        better = (part.rough_slack(further) > 0) & (further < findings.attacked[rows])
        chosen = better.nonzero().flatten()
        if chosen.numel():
            some = part.subset(chosen)
            found = some.largest_certified(further[chosen])
            findings.improve(rows[chosen], found, 0, some.charged)
        findings.passed(self.rungs[0], rows)

    def _published(self, part: Batch, findings: Findings, rows: Tensor, ball: Tensor) -> None:
        """The radius by the method alone."""
        findings.improve(rows, part.largest_certified(ball), 0, part.charged)
        for eps in self.options.eps:
            # A little above what was found, norms prepared for this very eps may do it.
            near, known = torch.full_like(ball, eps.rounded_up), findings.radius[rows]
            tried = (known < near) & (near <= 1.1 * known.clamp(min=0))
            chosen = (tried & (near < ball)).nonzero().flatten()
            if chosen.numel():
                some, at = part.subset(chosen), near[chosen]
                prepared = some.prepare(at.clamp(min=_SMALLEST_BALL))
                held = torch.where(some.holds(at, prepared), at, -1.0)
                findings.improve(rows[chosen], held, 0, some.charged)
        findings.passed(self.rungs[0], rows)


def _check_joints(network: Network, options: Options) -> None:
    """Joints have one bound, the tube, which is nothing without coins and in less than float64."""
    for wrong, choice in (
        (options.method != "auto", "--method auto"),
        (options.deterministic, "--norms randomised"),
        (options.estimate, "--norms randomised"),
        (options.dtype != "float64", "--dtype float64"),
    ):
        if wrong:
            raise CannotCertify(
                f"the network has joints ({joints_of(network)}), which only random projections of "
                f"its derivative bound: choose {choice}"
            )


def _with_a_number(network: Network) -> Network:
    """A network that only moves pixels has no tensor to tell its type: scale its logits by 1."""
    if network.parameters:
        return network
    shape = network.nodes[-1].shape
    unit = Diagonal.of(torch.ones(shape, dtype=torch.float64), None, shape)
    logits = Node(unit, (network.output,), shape, "logits")
    return replace(network, nodes=(*network.nodes, logits))
