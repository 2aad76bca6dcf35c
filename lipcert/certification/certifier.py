"""From a batch of samples to their verdicts and radii."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.bounds import Bound, GlobalBound, Layers, LocalBound
from lipcert.certificate import Sample, Verdict
from lipcert.certification.assured import AssuredNorms
from lipcert.certification.attack import nearest
from lipcert.certification.backward import Backward, BackwardBatch
from lipcert.certification.batch import Batch, Tools
from lipcert.certification.deployed import Deployment
from lipcert.certification.layer_norms import LayerNorm, layer_norms
from lipcert.certification.ledger import Ledger
from lipcert.errors import CannotCertify, InternalError, UsageError
from lipcert.network import Network, simplify
from lipcert.options import Epsilon, Options

# What bounds the local constant, and for the published methods the margins too.
_BOUNDS: dict[str, type[Bound]] = {"global": GlobalBound, "local": LocalBound, "auto": LocalBound}
# An eps this far above the guessed radius is tried by itself: more steps may do it.
_NEAR = 3.0
# Norms and slopes for the radius are sought this far above the guess, which took few steps.
_AIM = 1.0
_SMALLEST_BALL = 1e-30


class Certifier:
    """Certifies batches of samples of one network under one set of options.

    ``network`` takes pixels in [0, 1] and is as the file has it; ``samples`` is how many the whole
    run has, over all shards, for the union bound; ``softmax`` says that the file's own last Softmax
    was stripped. ``counterexamples``, where given, is filled with the points of falsified samples,
    by their numbers. The shared norms are computed here, once.
    """

    def __init__(
        self,
        network: Network,
        options: Options,
        *,
        samples: int,
        device: str = "cpu",
        softmax: bool = False,
        counterexamples: dict[int, NDArray[Any]] | None = None,
    ) -> None:
        if network.classes < 2:
            raise CannotCertify(
                "the network has one output: a certificate compares classes, so give a model "
                "with one logit for each class"
            )
        _exact_arithmetic()
        self.options, self.counterexamples = options, counterexamples
        # Rewritten where it was loaded, then moved.
        loaded = network.to(device="cpu", dtype=torch.float64)
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
        covered = options.deployed == "float32"
        deployment = Deployment.of(network, covered=covered, softmax=softmax)
        self.tools = Tools(bound, rough, self.norms, deployment)
        self.backward = (
            Backward(loaded, options, deployment, device=device, samples=samples, share=share)
            if both
            else None
        )
        # Attacked in the arithmetic that certificates cover.
        self.attacked = network.to(dtype=torch.float32 if covered else torch.float64)

    @property
    def rungs(self) -> tuple[str, ...]:
        """The rungs that find radii, by the number that ``Found.improve`` is given."""
        return ("local", "dual", "refined") if self.backward else (self.options.method,)

    @property
    def global_failure_probability(self) -> float:
        """What the shared norms spend of the run's failure probability."""
        backward = self.backward.norms.spent_shared if self.backward else 0.0
        return self.norms.spent_shared + backward

    @property
    def layer_norms(self) -> list[LayerNorm]:
        """The norm of every segment between activations, then that of the rows to the logits."""
        return layer_norms(self.tools.bound.layers, self.norms.shared)

    @property
    def product(self) -> float:
        """An upper bound of the network's Lipschitz constant: the product of its norms."""
        return self.tools.bound.replaced(GlobalBound).product

    def __call__(self, pixels: Tensor, labels: Tensor, indices: Sequence[int]) -> list[Sample]:
        """One batch: pixels ``(B, …)`` in [0, 1], labels ``(B,)``, the samples' numbers."""
        ledger = Ledger(len(indices))
        layers = self.tools.bound.layers
        device = layers.network.anchor.device
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < layers.network.classes:
            raise UsageError(
                f"a label outside 0 … {layers.network.classes - 1}, the classes of the network: "
                "the data set does not belong to this model"
            )
        batch = Batch(
            self.tools,
            pixels.to(device, torch.float64),
            labels.to(device, torch.int64),
            torch.tensor(indices, dtype=torch.int64, device=device),
        )
        found = self._findings(batch, ledger)
        samples = [self._sample(found, row, index) for row, index in enumerate(indices)]
        if self.counterexamples is not None:
            for row, sample in enumerate(samples):
                if sample.verdict == "falsified":
                    # The dtype that was attacked holds them exactly.
                    point = found.points[row].to(self.attacked.anchor.dtype)
                    self.counterexamples[sample.index] = point.cpu().numpy()
        return samples

    def _findings(self, batch: Batch, ledger: Ledger) -> Findings:
        logits, options = batch.centre.logits, self.options
        prediction = logits.argmax(1)
        others = logits.scatter(1, prediction[:, None], -math.inf).amax(1)
        margin = logits.gather(1, prediction[:, None]).squeeze(1) - others
        margin = torch.where(torch.isfinite(logits).all(1), margin, math.nan)
        correct = torch.isfinite(margin) & (prediction == batch.labels)
        everyone = torch.arange(len(correct))
        ledger.passed("prediction", everyone, ~correct)

        # Around every sample: the local constant at the largest eps, and the verdict there.
        top = torch.full_like(margin, options.largest.rounded_up)
        ball = top.clamp(min=_SMALLEST_BALL)
        prepared = batch.prepare(ball, 0)
        constant = batch.constant(ball, prepared)
        radius = torch.where(correct & batch.holds(top, prepared), top, -1)
        ledger.passed(self.rungs[0], everyone, radius >= top)

        spent = torch.full_like(margin, self.norms.spent_by_preparation)
        attacked, points = torch.full_like(margin, math.inf), batch.x
        rung = torch.zeros_like(batch.labels)
        rows = correct.nonzero().flatten()
        if rows.numel():
            found = Found(
                radius[rows], spent[rows], attacked[rows], rung[rows], rows, options.largest, ledger
            )
            if self.backward is None:
                self._published(batch.subset(rows), found, ball[rows])
            else:
                self._backward(self.backward, batch.subset(rows), found, ball[rows])
            radius[rows], spent[rows] = found.radius, found.spent
            attacked[rows], rung[rows] = found.attacked, found.rung
            if found.points is not None:
                points = batch.x.index_copy(0, rows, found.points)
        return Findings(
            prediction, batch.labels, margin, radius, constant, spent, attacked, rung, ledger,
            prepared.fixed, points,
        )  # fmt: skip

    def _published(self, part: Batch, found: Found, ball: Tensor) -> None:
        """The radius by the method alone."""
        found.improve(part.largest_certified(ball, 1), 0)
        found.spent += self.norms.spent_by_preparation
        for number, eps in enumerate(self.options.eps, start=2):
            # A little above what was found, norms prepared for this very eps may do it.
            near = torch.full_like(found.radius, eps.rounded_up)
            tried = (found.radius < near) & (near <= 1.1 * found.radius.clamp(min=0))
            if bool((tried & (near < ball)).any()):
                prepared = part.prepare(near.clamp(min=_SMALLEST_BALL), number)
                found.improve(torch.where(tried & part.holds(near, prepared), near, -1.0), 0)
                found.spent += tried * self.norms.spent_by_preparation
        found.passed(self.rungs[0])

    def _backward(self, tools: Backward, part: Batch, found: Found, ball: Tensor) -> None:
        """Attack, then the radius by the duals, then each eps that is still within reach."""
        pace = tools.pace
        attack = nearest(
            self.attacked, part.x, part.labels, steps=pace.attack_steps,
            restarts=pace.attack_restarts, seed=self.options.seed, dtype=self.attacked.anchor.dtype,
            pixel_domain=self.options.pixel_domain,
        )  # fmt: skip
        found.attacked, found.points = attack.radius, attack.points
        found.passed("attack")
        every = BackwardBatch(tools, part.x, part.labels, part.streams)
        limit = attack.radius.clamp(max=part.diameter)
        guess = every.guess(torch.minimum(ball, limit / 3), limit)
        sure = guess > 0
        top = torch.where(sure, guess * _AIM, torch.minimum(ball, limit)).clamp(min=_SMALLEST_BALL)
        found.improve(every.radius(top, 0), 1)
        found.spent += every.spent
        found.passed("dual")
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
                found.improve(better, 2 if refine else 1)
                found.spent[rows] += some.spent
                found.passed("refined" if refine else "dual", rows)
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

    def _sample(self, found: Findings, row: int, index: int) -> Sample:
        estimate = self.options.estimate
        prediction, label = int(found.prediction[row]), int(found.label[row])
        margin, radius = float(found.margin[row]), float(found.radius[row])
        reached = tuple(eps.text for eps in self.options.eps if radius >= eps.rounded_up)
        constant = float(found.constant[row])
        known = constant if math.isfinite(constant) else None
        attacked = float(found.attacked[row]) if self.backward else None
        verdict, message = self._verdict(margin, prediction == label, reached, attacked)
        seconds, fixed = found.ledger.seconds(row), found.fixed
        return Sample(
            index=index,
            label=label,
            prediction=prediction,
            verdict=verdict,
            margin=margin,
            radius=None if estimate else max(0.0, radius),
            lipschitz=None if estimate else known,
            method=self.rungs[int(found.rung[row])],
            seconds=sum(seconds.values()),
            rungs=seconds,
            decided_by=found.ledger.decided(row),
            certified=() if estimate else reached,
            failure_probability=float(found.spent[row]),
            radius_estimate=max(0.0, radius) if estimate else None,
            lipschitz_estimate=known if estimate else None,
            estimated=reached if estimate else (),
            attack_radius=attacked,
            eliminated=() if fixed is None or verdict == "error" else tuple(fixed[row].tolist()),
            message=message,
        )

    def _verdict(
        self, margin: float, correct: bool, reached: tuple[str, ...], attacked: float | None
    ) -> tuple[Verdict, str | None]:
        if not math.isfinite(margin):
            return "error", "the logits are not finite numbers"
        if not correct:
            return "misclassified", None
        if self.options.largest.text in reached:
            return ("estimated" if self.options.estimate else "certified"), None
        if attacked is not None and attacked <= self.options.largest.rounded_down:
            return "falsified", None
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
    ledger: Ledger
    fixed: Tensor | None
    points: Tensor


@dataclass(eq=False)
class Found:
    """What is known of correctly classified samples so far: ``(B,)`` each; ``rows`` of the batch.

    A sample is decided when it is certified or falsified at ``eps``, the largest."""

    radius: Tensor
    spent: Tensor
    attacked: Tensor
    rung: Tensor
    rows: Tensor
    eps: Epsilon
    ledger: Ledger
    points: Tensor | None = None

    def improve(self, radius: Tensor, rung: int) -> None:
        """Keep the larger radius, and which rung it is from."""
        better = radius > self.radius
        self.radius = torch.where(better, radius, self.radius)
        self.rung = torch.where(better, rung, self.rung)

    def passed(self, rung: str, some: Tensor | None = None) -> None:
        """All, or ``some`` ``(n,)`` of the samples, have been through that rung since last time."""
        decided = (self.radius >= self.eps.rounded_up) | (self.attacked <= self.eps.rounded_down)
        chosen = slice(None) if some is None else some
        self.ledger.passed(rung, self.rows[chosen], decided[chosen])


def _exact_arithmetic() -> None:
    """No reduced precision anywhere, whatever the defaults of this build or the user's settings."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
