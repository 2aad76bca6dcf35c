"""From a batch of samples to their verdicts and radii."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds import Bound, GlobalBound, Layers, LocalBound
from lipcert.certificate import Sample, Verdict
from lipcert.certification.assured import AssuredNorms
from lipcert.certification.attack import nearest
from lipcert.certification.backward import Backward, BackwardBatch
from lipcert.certification.batch import Batch, Tools
from lipcert.certification.deployed import Deployment
from lipcert.certification.ieee import ieee_arithmetic
from lipcert.errors import CannotCertify, InternalError, UsageError
from lipcert.network import Network, Node, Segment, simplify
from lipcert.network.operators import Diagonal
from lipcert.options import Options
from lipcert.rounding import FORMATS

# What bounds the local constant, and for the published methods the margins too.
_BOUNDS: dict[str, type[Bound]] = {"global": GlobalBound, "local": LocalBound, "auto": LocalBound}
# An eps this far above the guessed radius is tried by itself: more steps may do it.
_NEAR = 3.0
# Norms and slopes for the radius are sought this far above the guess, which took few steps.
_AIM = 1.0
_SMALLEST_BALL = 1e-30


@dataclass(frozen=True)
class LayerNorm:
    """One segment's norm, for people: from ``source`` to ``sink``, with what it rests on."""

    source: str
    sink: str
    operator: str
    value: float
    assurance: str


class Certifier:
    """Certifies batches of samples of one network under one set of options.

    ``network`` takes pixels in [0, 1] and is as the file has it; ``samples`` is how many the whole
    run has, over all shards, for the union bound; ``softmax`` says that the file's own last Softmax
    was stripped. The shared norms are computed here, once.
    """

    @ieee_arithmetic()
    def __init__(
        self,
        network: Network,
        options: Options,
        *,
        samples: int,
        device: str = "cpu",
        softmax: bool = False,
    ) -> None:
        if network.classes < 2:
            raise CannotCertify(
                "the network has one output: a certificate compares classes, so give a model "
                "with one logit for each class"
            )
        self.options = options
        # Rewritten where it was loaded, then moved.
        loaded = _with_a_number(network.to(device="cpu", dtype=torch.float64))
        network = loaded.to(device=device)
        layers = Layers.of(simplify(loaded).to(device=device))
        both = options.method == "auto"
        share = 0.5 if both else 1.0
        # At most: one at the largest eps, one for the radius, and one at every eps.
        self.norms = AssuredNorms(
            layers.edges,
            options,
            samples=samples,
            preparations=len(options.eps) + 2,
            share=share,
        )
        bound = _BOUNDS[options.method].of(layers, self.norms.shared)
        single = layers.network.to(dtype=torch.float32)
        rough = type(bound).of(Layers.of(single), self.norms.rough(single))
        arithmetic = FORMATS.get(options.deployed)
        deployment = Deployment.of(network, arithmetic=arithmetic, softmax=softmax)
        self.tools = Tools(bound, rough, self.norms, deployment)
        self.backward = (
            Backward(loaded, options, deployment, device=device, samples=samples, share=share)
            if both
            else None
        )
        # Attacked in the arithmetic that certificates cover; those of a narrower one cover float32.
        double = options.deployed in ("float64", "real")
        self.attacked = network.to(dtype=torch.float64 if double else torch.float32)

    @property
    def global_failure_probability(self) -> float:
        """What the shared norms spend of the run's failure probability."""
        backward = self.backward.norms.spent_shared if self.backward else 0.0
        return self.norms.spent_shared + backward

    @property
    @ieee_arithmetic()
    def layer_norms(self) -> list[LayerNorm]:
        """The norm of every segment between activations, then that of the rows to the logits."""
        layers = self.tools.bound.layers
        rows = [_described(norm.segment, norm.norm.value, norm.norm.assurance)
                for norm in self.norms.shared.values()]  # fmt: skip
        for source, matrix in layers.last.items():
            value = float(layers.last_norm(source, matrix.new_ones(1, matrix.shape[1]))[0])
            segment = Segment(layers.network, source, layers.network.output)
            rows.append(_described(segment, value, "deterministic"))
        return rows

    @property
    @ieee_arithmetic()
    def product(self) -> float:
        """An upper bound of the network's Lipschitz constant: the product of its norms."""
        return self.tools.bound.replaced(GlobalBound).product

    @ieee_arithmetic()
    def __call__(self, pixels: Tensor, labels: Tensor, indices: Sequence[int]) -> list[Sample]:
        """One batch: pixels ``(B, …)`` in [0, 1], labels ``(B,)``, the samples' numbers."""
        begun = time.perf_counter()
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
            torch.tensor(indices, dtype=torch.int64, device=device),
        )
        found = self._findings(batch)
        seconds = (time.perf_counter() - begun) / max(1, len(indices))
        return [self._sample(found, row, index, seconds) for row, index in enumerate(indices)]

    def _findings(self, batch: Batch) -> Findings:
        logits, options = batch.centre.logits, self.options
        prediction = logits.argmax(1)
        others = logits.scatter(1, prediction[:, None], -math.inf).amax(1)
        margin = logits.gather(1, prediction[:, None]).squeeze(1) - others
        margin = torch.where(torch.isfinite(logits).all(1), margin, math.nan)
        correct = torch.isfinite(margin) & (prediction == batch.labels)

        # Around every sample: the local constant at the largest eps, and the verdict there.
        top = torch.full_like(margin, options.largest.rounded_up)
        ball = top.clamp(min=_SMALLEST_BALL)
        prepared = batch.prepare(ball, 0)
        constant = batch.constant(ball, prepared)
        radius = torch.where(correct & batch.holds(top, prepared), top, -1)

        spent = torch.full_like(margin, self.norms.spent_by_preparation)
        attacked = torch.full_like(margin, math.inf)
        rung = torch.zeros_like(batch.labels)
        deployed = batch.charged
        rows = correct.nonzero().flatten()
        if rows.numel():
            found = Found(radius[rows], spent[rows], attacked[rows], rung[rows], deployed[rows])
            if self.backward is None:
                self._published(batch.subset(rows), found, ball[rows])
            else:
                self._backward(self.backward, batch.subset(rows), found, ball[rows])
            radius[rows], spent[rows] = found.radius, found.spent
            attacked[rows], rung[rows] = found.attacked, found.rung
            deployed[rows] = found.deployed
        return Findings(
            prediction, batch.labels, margin, radius, constant, spent, attacked, rung, deployed
        )

    def _published(self, part: Batch, found: Found, ball: Tensor) -> None:
        """The radius by the method alone."""
        found.improve(part.largest_certified(ball, 1), 0, part.charged)
        found.spent += self.norms.spent_by_preparation
        for number, eps in enumerate(self.options.eps, start=2):
            # A little above what was found, norms prepared for this very eps may do it.
            near = torch.full_like(found.radius, eps.rounded_up)
            tried = (found.radius < near) & (near <= 1.1 * found.radius.clamp(min=0))
            if bool((tried & (near < ball)).any()):
                prepared = part.prepare(near.clamp(min=_SMALLEST_BALL), number)
                held = torch.where(tried & part.holds(near, prepared), near, -1.0)
                found.improve(held, 0, part.charged)
                found.spent += tried * self.norms.spent_by_preparation

    def _backward(self, tools: Backward, part: Batch, found: Found, ball: Tensor) -> None:
        """Attack, then the radius by the duals, then each eps that is still within reach."""
        pace = tools.pace
        attack = nearest(
            self.attacked, part.x, part.labels, steps=pace.attack_steps,
            restarts=pace.attack_restarts, seed=self.options.seed, dtype=self.attacked.anchor.dtype,
            pixel_domain=self.options.pixel_domain,
        )  # fmt: skip
        found.attacked = attack.radius
        every = BackwardBatch(tools, part.x, part.labels, part.streams)
        limit = attack.radius.clamp(max=part.diameter)
        guess = every.guess(torch.minimum(ball, limit / 3), limit)
        sure = guess > 0
        top = torch.where(sure, guess * _AIM, torch.minimum(ball, limit)).clamp(min=_SMALLEST_BALL)
        found.improve(every.radius(top, 0), 1, every.charged)
        found.spent += every.spent
        for number, eps in enumerate(self.options.eps):
            near = torch.full_like(found.radius, eps.rounded_up)
            for refine in (False, True) if pace.refine is not None else (False,):
                open_ = (found.radius < near) & (near < attack.radius)
                rows = (open_ & (near <= _NEAR * guess)).nonzero().flatten()
                if not rows.numel():
                    break
                some = every.subset(rows)
                at = near[rows].clamp(min=_SMALLEST_BALL)
                _, state = some.prepare(at, 1 + 2 * number + refine, refine=refine)
                better = found.radius.clone()
                better[rows] = torch.where(some.proven(at, state), near[rows], -1.0)
                charged = found.deployed.clone()
                charged[rows] = some.charged
                found.improve(better, 2 if refine else 1, charged)
                found.spent[rows] += some.spent
        if self.options.estimate:
            # Estimates bound nothing: an attack may well be nearer.
            return
        broken = found.radius >= found.attacked
        if bool(broken.any()):
            row = int(broken.nonzero()[0])
            raise InternalError(
                f"sample {int(part.streams[row])}: an attack found a misclassified point at "
                f"{float(found.attacked[row])}, inside the certified radius "
                f"{float(found.radius[row])}; please report this"
            )

    def _sample(self, found: Findings, row: int, index: int, seconds: float) -> Sample:
        estimate = self.options.estimate
        prediction, label = int(found.prediction[row]), int(found.label[row])
        margin, radius = float(found.margin[row]), float(found.radius[row])
        reached = tuple(eps.text for eps in self.options.eps if radius >= eps.rounded_up)
        constant = float(found.constant[row])
        known = constant if math.isfinite(constant) else None
        attacked = float(found.attacked[row]) if self.backward else None
        deployed = float(found.deployed[row])
        verdict, message = self._verdict(margin, prediction == label, reached, attacked, deployed)
        rungs = ("local", "dual", "refined") if self.backward else (self.options.method,)
        return Sample(
            index=index,
            label=label,
            prediction=prediction,
            verdict=verdict,
            margin=margin,
            radius=None if estimate else max(0.0, radius),
            lipschitz=None if estimate else known,
            method=rungs[int(found.rung[row])],
            seconds=seconds,
            certified=() if estimate else reached,
            failure_probability=float(found.spent[row]),
            deployed_error=None if estimate or prediction != label else deployed,
            radius_estimate=max(0.0, radius) if estimate else None,
            lipschitz_estimate=known if estimate else None,
            estimated=reached if estimate else (),
            attack_radius=attacked,
            message=message,
        )

    def _verdict(
        self,
        margin: float,
        correct: bool,
        reached: tuple[str, ...],
        attacked: float | None,
        deployed: float,
    ) -> tuple[Verdict, str | None]:
        if not math.isfinite(margin):
            return "error", "the logits are not finite numbers"
        if not correct:
            return "misclassified", None
        if self.options.largest.text in reached:
            return ("estimated" if self.options.estimate else "certified"), None
        if attacked is not None and attacked <= self.options.largest.rounded_down:
            return "falsified", None
        if not (reached or math.isfinite(deployed)):
            return "unknown", f"a value could overflow {self.options.deployed} in the ball"
        return "unknown", None


@dataclass(frozen=True, eq=False)
class Findings:
    """A batch's results, one row a sample; the radius is −1 where nothing is certified."""

    prediction: Tensor
    label: Tensor
    margin: Tensor
    radius: Tensor
    constant: Tensor
    spent: Tensor
    attacked: Tensor
    rung: Tensor
    deployed: Tensor


@dataclass(eq=False)
class Found:
    """What is known of correctly classified samples so far: ``(B,)`` each."""

    radius: Tensor
    spent: Tensor
    attacked: Tensor
    rung: Tensor
    deployed: Tensor

    def improve(self, radius: Tensor, rung: int, deployed: Tensor) -> None:
        """Keep the larger radius, which rung it is from, and the deployed error it exceeds."""
        better = radius > self.radius
        self.radius = torch.where(better, radius, self.radius)
        self.rung = torch.where(better, rung, self.rung)
        self.deployed = torch.where(better, deployed, self.deployed)


def _with_a_number(network: Network) -> Network:
    """A network that only moves pixels has no tensor to tell its type: scale its logits by 1."""
    if network.parameters:
        return network
    shape = network.nodes[-1].shape
    unit = Diagonal.of(torch.ones(shape, dtype=torch.float64), None, shape)
    return Network((*network.nodes, Node(unit, (network.output,), shape, "logits")))


def _described(segment: Segment, value: float, assurance: str) -> LayerNorm:
    nodes = segment.network.nodes
    kinds = ", ".join(type(nodes[i].kind).__name__ for i in segment.path) or "identity"
    source, sink = (nodes[i].origin or f"node {i}" for i in (segment.source, segment.sink))
    return LayerNorm(source, sink, kinds, value, assurance)
