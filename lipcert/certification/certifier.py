"""From a batch of samples to their verdicts and radii."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.certificate import Sample
from lipcert.certification.analysis import Analysis
from lipcert.certification.file_check import File, FileCheck
from lipcert.certification.findings import Findings, Step
from lipcert.certification.heads import Head
from lipcert.certification.ieee import check_device, ieee_arithmetic
from lipcert.certification.layer_norms import LayerNorm, layer_norms
from lipcert.certification.published import Published
from lipcert.certification.rungs import Rung, ladder
from lipcert.certification.rungs.base import SMALLEST_BALL
from lipcert.certification.rungs.local import Largest
from lipcert.certification.samples import Samples
from lipcert.coins import Coins
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import Network
from lipcert.norms import Budget
from lipcert.options import Options

# The rungs of a run, in the order in which its samples climb them.
Ladder = Callable[[Analysis, Published], Sequence[Rung]]


class Certifier:
    """Certifies batches of samples of one network under one set of options.

    ``network`` takes the data, pixels in [0, 1] for images, and is as the file has it; ``samples``
    is how many the whole run has, over all ``shards``, for the union bound; ``softmax`` says that
    the file's own last Softmax was stripped. ``counterexamples``, where given, is filled with the
    points of falsified samples, by their numbers. ``reach``: how far two samples can be apart, for
    data that do not lie in [0, 1]; no larger radius is sought. ``key``: 128 bits that all coins
    follow from; those of the options' seed if None, and fresh ones without a seed. ``file``: what
    is deployed, run at points inside every certified radius. ``rungs`` makes the rungs, by default
    those of the options' method. The shared norms are computed here, once.
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
        rungs: Ladder = ladder,
    ) -> None:
        if network.classes < 2:
            raise CannotCertify(
                "the network has one output: a certificate compares classes, so give a model "
                "with one logit for each class"
            )
        check_device(device)
        Head.of(options).check(network.classes)
        if options.margin and network.each:
            raise CannotCertify(
                "--margin: the file ends in a Sigmoid of each output, whose outputs are no "
                "probabilities of a softmax; leave --margin out"
            )
        self.options, self.counterexamples = options, counterexamples
        self.budget = Budget(
            Coins.of(options.seed).seed if key is None else key,
            probability=0.0 if options.deterministic else options.failure_probability,
            samples=samples,
            shards=shards,
            device=device,
        )
        self.analysis = Analysis.of(
            network, options, self.budget, device=device, reach=reach, softmax=softmax
        )
        self.published = Published.of(self.analysis)
        self.ladder = tuple(rungs(self.analysis, self.published))
        self.file_check = None
        if file is not None:
            self.file_check = FileCheck(file, self.analysis.deployed, options, softmax=softmax)

    @property
    def rungs(self) -> tuple[str, ...]:
        """The names of the rungs, in order."""
        return tuple(dict.fromkeys(rung.name for rung in self.ladder))

    @property
    def global_failure_probability(self) -> float:
        """What the shared norms spend of the run's failure probability."""
        return self.budget.spent_shared

    @property
    @ieee_arithmetic()
    def layer_norms(self) -> list[LayerNorm]:
        """The norm of every segment between activations, then that of the rows to the logits."""
        return layer_norms(self.published.layers, self.published.norms.shared)

    @ieee_arithmetic()
    def layer_norms_asked(self, samples: Iterable[Sample]) -> list[LayerNorm]:
        """The same as far as these samples asked for them: of a deep network's, whose tubes need
        none, only some do."""
        lazy = any(isinstance(rung, Largest) and rung.share is not None for rung in self.ladder)
        if not lazy or any(sample.eliminated for sample in samples):
            return self.layer_norms
        return layer_norms(self.published.layers, None)

    @property
    @ieee_arithmetic()
    def product(self) -> float:
        """An upper bound of the network's Lipschitz constant: the product of its norms."""
        return self.published.product

    @ieee_arithmetic()
    def __call__(self, pixels: Tensor, labels: Tensor, indices: Sequence[int]) -> list[Sample]:
        """One batch: pixels ``(B, …)`` in [0, 1], labels ``(B,)``, the samples' numbers."""
        network = self.analysis.simplified
        device = network.anchor.device
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < network.classes:
            raise UsageError(
                f"a label outside 0 … {network.classes - 1}, the classes of the network: "
                "the data set does not belong to this model"
            )
        classes = self.options.only_classes
        if classes is not None and not set(labels.tolist()) <= set(classes):
            raise UsageError(
                "--only-classes: there are samples of other classes; leave them out, as lipcert "
                "certify does"
            )
        if self.options.pixel_domain and not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise UsageError("--pixel-domain: the data have pixels outside [0, 1]")
        batch = Samples.of(
            self.analysis,
            pixels.to(device, torch.float64),
            labels.to(device, torch.int64),
            self.budget.open(torch.tensor(indices, dtype=torch.int64, device=device)),
        )
        found = self._findings(batch)
        found = self._run_the_file(batch, found)
        samples = found.samples(indices)
        if self.counterexamples is not None:
            rows = [row for row, sample in enumerate(samples) if sample.verdict == "falsified"]
            # The dtype that was attacked holds them exactly.
            points = found.points.to(self.analysis.attacked.anchor.dtype).cpu()[rows].numpy()
            self.counterexamples |= zip((indices[row] for row in rows), points, strict=True)
        return samples

    def _findings(self, batch: Samples) -> Findings:
        known = Findings.of(batch.x, batch.logits, batch.labels, self.options)
        for rung in self.ladder:
            known = known.after(rung.climb(batch, known))
        deployed = known.deployed
        rows = (known.correct & (known.radius < 0)).nonzero().flatten()
        # Where there are joints only the tube knows it, and verdicts alone do not say it.
        if rows.numel() and not self.analysis.loaded.joints and self.options.radii:
            # What stood against a certificate, in the ball of the largest eps.
            ball = torch.full_like(deployed[rows], self.options.largest.rounded_up)
            error = self.published.rounding(batch.select(rows), ball.clamp(min=SMALLEST_BALL))
            deployed = deployed.index_copy(0, rows, error)
        known = replace(known, deployed=deployed, spent=batch.allowance.spent)
        known.check(batch.allowance.streams)
        return known

    def _run_the_file(self, batch: Samples, known: Findings) -> Findings:
        """Takes back what the deployed file contradicts; estimates claim nothing."""
        rows = (known.correct & (known.radius >= 0)).nonzero().flatten()
        if self.file_check is None or self.options.estimate or not rows.numel():
            return known
        found = self.file_check.contradictions(
            batch.x[rows], batch.labels[rows], known.radius[rows], known.points[rows]
        )
        against = {int(rows[place]): message for place, message in found.items()}
        return known.after(Step("file", rows, contradicted=against))
