"""From a certificate to an audit: each claim of a sample by a road of its own.

- The file itself, in onnxruntime, gives the prediction; the auditor's own reading of it the margin.
- Attacks from the certified boundary look for what must not be there, and for the counterexample
  that a falsified sample must have.
- The auditor's own bound tries to prove the radius once more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lipcert.audit.attack import Ball, broken, candidates
from lipcert.audit.audited_model import SINGLE, AuditedModel
from lipcert.audit.claims import Claims, Record, radius_of
from lipcert.audit.dual import Dual
from lipcert.audit.proofs.check import Claim, Outcome
from lipcert.audit.reach import Norms
from lipcert.audit.report import Audited, Finding

Array = NDArray[Any]

# Relative to the largest logit: two evaluations in float64 of one function.
DOUBLE = 1e-9
# Of so many places in the ball.
_JACOBIANS = 4


@dataclass(frozen=True)
class Effort:
    """How many points an attack begins from, and how many steps it takes from each."""

    restarts: int = 32
    steps: int = 40


# Of a sample whose proof holds what lies beyond it is attacked, and the file in onnxruntime.
_LITTLE = Effort(restarts=8, steps=10)


class Auditor:
    """Audits single samples of one certificate.

    ``image_shape``: (C, H, W) or (features,). ``proofs``: a file of proofs, which takes the place
    of the own bound. Where the ``model`` has no own reading samples are attacked at random points
    only, and where it has no own bound they are not proven once more.
    """

    def __init__(
        self, claims: Claims, model: onnx.ModelProto, image_shape: tuple[int, ...], effort: Effort,
        proofs: Path | None = None,
    ) -> None:  # fmt: skip
        self.claims, self.effort = claims, effort
        self.model = AuditedModel(claims, model, image_shape, proofs)
        self.rule, self._proofs, self._norms = self.model.rule, proofs, Norms()
        self._proven: dict[int, Outcome] = {}

    @property
    def risk(self) -> float:
        """What the checker's norms may fail with, over its own coins."""
        return self.model.checker.coins.spent if self.model.checker else 0.0

    def replay(self, samples: Sequence[Record], images: Array) -> None:
        """The proofs of these samples, all at once; each is asked for later."""
        if self.model.checker is None:
            return
        self._proven |= self.model.checker({
            sample["index"]: Claim(image.reshape(-1), sample["label"], self._least(sample, image))
            for sample, image in zip(samples, images, strict=True)
            if sample["verdict"] != "error" and radius_of(sample) > 0
        })  # fmt: skip

    def _least(self, sample: Record, image: Array) -> float:
        """The largest eps that the sample is certified at, rounded up, or else its radius."""
        eps = self.claims.eps
        exact = max((eps[text] for text in sample["certified"]), default=None)
        return self._finite(radius_of(sample), image) if exact is None else _rounded_up(exact)

    def __call__(
        self, sample: Record, image: Array, seed: int, counterexample: Array | None
    ) -> Audited:
        """One sample, its image (float32 pixels), and the counterexample saved for it, if any."""
        begun = time.perf_counter()
        radius = radius_of(sample)
        findings = [self._prediction(sample, image)]
        findings += self._margin(sample, image)
        points, proven = 0, None
        if sample["verdict"] != "error" and radius > 0:
            proven_by = self._proven.get(sample["index"])
            effort = _LITTLE if proven_by is not None and proven_by.proven else self.effort
            points, attacked = self._attack(sample, image, radius, seed, effort)
            robust = attacked
            if attacked.outcome != "contradicted":
                proven, robust = self._prove(sample, image)
            findings = [robust, *findings]
            findings += self._constant(sample, image, seed)
        if sample["verdict"] == "falsified":
            findings = [self._falsified(sample, image, seed, counterexample), *findings]
        return Audited(
            index=sample["index"],
            verdict=sample["verdict"],
            radius=sample["radius"],
            findings=tuple(findings),
            proven_radius=proven,
            points=points,
            seconds=time.perf_counter() - begun,
        )

    def _prediction(self, sample: Record, image: Array) -> Finding:
        logits = self.model.deployed(image[None])
        competing = self.rule.competing(logits)[0]
        found, claimed = int(competing.argmax()), sample["prediction"]
        claim = f"prediction {claimed}, label {sample['label']}"
        if sample["verdict"] == "error":
            return Finding(claim, "not contradicted", "an error claims nothing")
        if self.rule.top_k > 1:
            return self._best(sample, logits)
        if found == claimed and np.isfinite(logits).all():
            return Finding(claim, "confirmed", "onnxruntime")
        tie = logits[0, found] - logits[0, claimed] <= SINGLE * np.abs(logits).max()
        if tie and not sample["certified"]:
            return Finding(claim, "not contradicted", f"a near tie with {found} in onnxruntime")
        return Finding(claim, "contradicted", f"onnxruntime predicts {found}")

    def _best(self, sample: Record, logits: Array) -> Finding:
        """Whether the classes that are called the best are, and the label among them or not."""
        top, label = sample["top"], sample["label"]
        claim = f"the best classes {top}, label {label}"
        competing = self.rule.competing(logits)[0]
        level = np.sort(competing)[-self.rule.top_k]
        right = bool((self.rule.lead(logits, label) > 0)[0]) == (label in top)
        if np.isfinite(logits).all() and right and (competing[top] >= level).all():
            return Finding(claim, "confirmed", "onnxruntime")
        near = (competing[top] >= level - SINGLE * np.abs(logits).max()).all()
        if near and not sample["certified"]:
            return Finding(claim, "not contradicted", "near ties in onnxruntime")
        if near and right:
            return Finding(claim, "confirmed", "onnxruntime, but for near ties of others")
        found = np.argsort(-competing, kind="stable")[: self.rule.top_k].tolist()
        return Finding(claim, "contradicted", f"onnxruntime's best classes are {found}")

    def _margin(self, sample: Record, image: Array) -> list[Finding]:
        claimed = sample["margin"]
        if not self.model.is_read or claimed is None or sample["verdict"] == "error":
            return []
        logits = self.model.exact(image[None])
        of = sample["label"] if self.rule.top_k > 1 else sample["prediction"]
        found = float(self.rule.lead(logits, of)[0])
        same = abs(found - claimed) <= DOUBLE * max(1.0, float(np.abs(logits).max()))
        by = f"{found:.12g} by the own reading in float64"
        return [Finding(f"margin {claimed:.12g}", "confirmed" if same else "contradicted", by)]

    def _attack(
        self, sample: Record, image: Array, radius: float, seed: int, effort: Effort
    ) -> tuple[int, Finding]:
        """Nothing within the certified radius may be classified otherwise."""
        radius = self._finite(radius, image)
        ball = Ball(image, sample["label"], radius, self.claims.pixel_domain, self.model.covers)
        points = self._points(ball, seed, effort)
        point = broken(self.model.covered, ball, points)
        claim = f"radius {radius:.9g}"
        if point is None:
            return len(points), Finding(claim, "not contradicted", f"{len(points)} points attacked")
        distance = float(np.linalg.norm(point.astype(np.float64) - image))
        by = f"a point at {distance:.9g} is not classified as {sample['label']}"
        if not self.rule.plain:
            by = f"at a point at {distance:.9g} the claim does not hold"
        return len(points), Finding(claim, "contradicted", by)

    def _finite(self, radius: float, image: Array) -> float:
        """For an infinite radius, one as large as any that was asked for or two images differ by;
        a finite one as it is."""
        if math.isfinite(radius):
            return radius
        return max(math.sqrt(image.size), float(self.claims.eps[self.claims.largest]))

    def _points(self, ball: Ball, seed: int, effort: Effort) -> Array:
        logits = None if not self.model.is_read else self.model.logits
        found = candidates(logits, ball, restarts=effort.restarts, steps=effort.steps, seed=seed)
        # Points right on the boundary, where no gradient leads.
        return np.concatenate([
            found, candidates(None, ball, restarts=effort.restarts, steps=0, seed=seed + 1)
        ])  # fmt: skip

    def _prove(self, sample: Record, image: Array) -> tuple[float | None, Finding]:
        """The largest eps that is certified, or else the radius, by its proof or the own bound."""
        least = self._least(sample, image)
        claim = f"no change within {least:.9g} alters the class"
        if not self.rule.plain:
            claim = f"no change within {least:.9g} breaks the claim"
        attacked = "attacked; proofs" if self._proofs else "attacked; own bound"
        missing = Finding(claim, "not contradicted", f"{attacked} {self.model.bound}")
        if self._proofs is not None:
            proven = self._proven.get(sample["index"])
            if proven is None:
                return None, missing
            if proven.proven:
                return least, Finding(claim, "confirmed", f"its proof: {proven.reason}")
            return None, Finding(claim, "not contradicted", f"attacked; {proven.reason}")
        if self.model.program is None:
            return None, missing
        dual = Dual(
            self.model.program, image.reshape(-1), least, self._norms,
            pixel_domain=self.claims.pixel_domain,
        )  # fmt: skip
        enough = math.inf if self.rule.margin else 0.0
        found = dual.margins(
            sample["label"], self.model.arithmetic, softmax=self.model.softmax, enough=enough
        )  # fmt: skip
        smallest = self.rule.proven(found)
        if smallest > 0:
            return least, Finding(claim, "confirmed", f"own bound: margins above {smallest:.4g}")
        return None, Finding(claim, "not contradicted", f"attacked; own bound {smallest:.4g}")

    def _constant(self, sample: Record, image: Array, seed: int) -> list[Finding]:
        """The local Lipschitz constant is at least the norm of every Jacobian in the ball."""
        claimed = sample["lipschitz"]
        if claimed is None or not self.model.is_read:
            return []
        random = np.random.default_rng(seed + 2)
        largest = float(self.claims.eps[self.claims.largest])
        noise = random.standard_normal((_JACOBIANS, *image.shape))
        length = np.linalg.norm(noise.reshape(_JACOBIANS, -1), axis=1)
        shares = np.linspace(0, 0.999 * largest, _JACOBIANS) / length
        places = image + noise * shares.reshape(-1, *(1,) * image.ndim)
        jacobian: Callable[..., Any] = torch.func.jacrev(lambda x: self.model.logits(x[None])[0])
        found = torch.stack([jacobian(torch.from_numpy(place)) for place in places])
        norm = float(torch.linalg.matrix_norm(found.flatten(2), ord=2).max())
        holds = norm <= claimed * (1 + 1e-9)
        by = f"the norm of a Jacobian is {norm:.6g}"
        outcome = Finding(f"Lipschitz constant {claimed:.6g}", "not contradicted", by)
        return [outcome if holds else Finding(outcome.claim, "contradicted", by)]

    def _falsified(
        self, sample: Record, image: Array, seed: int, counterexample: Array | None
    ) -> Finding:
        """The counterexample saved beside the certificate, or one of the auditor's own."""
        text = self.claims.largest
        claim = f"falsified at eps {text}"
        radius = float(self.claims.eps[text])
        ball = Ball(image, sample["label"], radius, self.claims.pixel_domain, self.model.covers)
        if counterexample is None:
            points = self._points(ball, seed, self.effort)
            point = broken(self.model.covered, ball, points)
            if point is None:
                return Finding(claim, "not contradicted", "no counterexample is saved or found")
            return Finding(claim, "confirmed", "another counterexample, found in onnxruntime")
        if counterexample.shape != image.shape:
            shape = list(counterexample.shape)
            return Finding(claim, "contradicted", f"the counterexample saved is of shape {shape}")
        counterexample = counterexample.astype(np.float32)
        if not ball.contains(counterexample):
            distance = float(np.linalg.norm(counterexample.astype(np.float64) - image))
            return Finding(
                claim, "contradicted", f"the counterexample saved lies at {distance:.9g}"
            )
        if broken(self.model.covered, ball, counterexample[None]) is None:
            return Finding(claim, "contradicted", "the counterexample saved is classified rightly")
        return Finding(claim, "confirmed", "the counterexample saved, in onnxruntime")


def _rounded_up(value: Fraction) -> float:
    nearest = float(value)
    return nearest if nearest >= value else math.nextafter(nearest, math.inf)
