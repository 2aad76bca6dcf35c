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
from lipcert.certification.batch import Batch, Tools
from lipcert.certification.deployed import Deployment
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import Network, Segment, simplify
from lipcert.options import Options

_BOUNDS: dict[str, type[Bound]] = {"global": GlobalBound, "local": LocalBound}
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
        _exact_arithmetic()
        self.options = options
        network = network.to(device=device, dtype=torch.float64)
        layers = Layers.of(simplify(network))
        # At most: one at the largest eps, one for the radius, and one at every eps.
        self.norms = AssuredNorms(
            layers.edges, options, samples=samples, preparations=len(options.eps) + 2
        )
        bound = _BOUNDS[options.method].of(layers, self.norms.shared)
        single = layers.network.to(dtype=torch.float32)
        rough = type(bound).of(Layers.of(single), self.norms.rough(single))
        covered = options.deployed == "float32"
        deployment = Deployment.of(network, covered=covered, softmax=softmax)
        self.tools = Tools(bound, rough, self.norms, deployment)

    @property
    def global_failure_probability(self) -> float:
        """What the shared norms spend of the run's failure probability."""
        return self.norms.spent_shared

    @property
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
    def product(self) -> float:
        """An upper bound of the network's Lipschitz constant: the product of its norms."""
        return self.tools.bound.replaced(GlobalBound).product

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
        used = torch.ones_like(margin)

        rows = correct.nonzero().flatten()
        if rows.numel():
            part = batch.subset(rows)
            found = torch.maximum(radius[rows], part.largest_certified(ball[rows], 1))
            used[rows] += 1
            for number, eps in enumerate(options.eps, start=2):
                # A little above what was found, norms prepared for this very eps may do it.
                near = torch.full_like(found, eps.rounded_up)
                open_ = (found < near) & (near <= 1.1 * found.clamp(min=0)) & (near < top[rows])
                if bool(open_.any()):
                    prepared = part.prepare(near.clamp(min=_SMALLEST_BALL), number)
                    found = torch.where(open_ & part.holds(near, prepared), near, found)
                    used[rows] += open_
            radius[rows] = found
        spent = used * self.norms.spent_by_preparation
        return Findings(prediction, batch.labels, margin, radius, constant, spent)

    def _sample(self, found: Findings, row: int, index: int, seconds: float) -> Sample:
        estimate = self.options.estimate
        prediction, label = int(found.prediction[row]), int(found.label[row])
        margin, radius = float(found.margin[row]), float(found.radius[row])
        reached = tuple(eps.text for eps in self.options.eps if radius >= eps.rounded_up)
        constant = float(found.constant[row])
        known = constant if math.isfinite(constant) else None
        verdict, message = self._verdict(margin, prediction == label, reached)
        return Sample(
            index=index,
            label=label,
            prediction=prediction,
            verdict=verdict,
            margin=margin,
            radius=None if estimate else max(0.0, radius),
            lipschitz=None if estimate else known,
            method=self.options.method,
            seconds=seconds,
            certified=() if estimate else reached,
            failure_probability=float(found.spent[row]),
            radius_estimate=max(0.0, radius) if estimate else None,
            lipschitz_estimate=known if estimate else None,
            estimated=reached if estimate else (),
            message=message,
        )

    def _verdict(
        self, margin: float, correct: bool, reached: tuple[str, ...]
    ) -> tuple[Verdict, str | None]:
        if not math.isfinite(margin):
            return "error", "the logits are not finite numbers"
        if not correct:
            return "misclassified", None
        if self.options.largest.text in reached:
            return ("estimated" if self.options.estimate else "certified"), None
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


def _described(segment: Segment, value: float, assurance: str) -> LayerNorm:
    nodes = segment.network.nodes
    kinds = ", ".join(type(nodes[i].kind).__name__ for i in segment.path) or "identity"
    source, sink = (nodes[i].origin or f"node {i}" for i in (segment.source, segment.sink))
    return LayerNorm(source, sink, kinds, value, assurance)


def _exact_arithmetic() -> None:
    """No reduced precision anywhere, whatever the defaults of this build or the user's settings."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
