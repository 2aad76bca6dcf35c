"""The model of a certificate, as the auditor has it: run by onnxruntime, and read once more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lipcert.audit.arithmetic import FORMATS, Arithmetic
from lipcert.audit.claims import Claims
from lipcert.audit.deployed import Deployed, Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.operators import NotRead
from lipcert.audit.program import Program
from lipcert.audit.proofs.check import Checker
from lipcert.audit.rule import Rule

Array = NDArray[Any]

# Relative to the largest logit: two float32 evaluations of one function.
SINGLE = 1e-4


class AuditedModel:
    """``deployed`` runs the file; ``reading`` and ``bound`` are ``available``, or say why not.

    ``logits`` are those of the own reading, which also makes the ``program`` that the own bound is
    found of, or the ``checker`` of ``proofs``; each is None where it is not available.
    """

    def __init__(
        self, claims: Claims, model: onnx.ModelProto, image_shape: tuple[int, ...],
        proofs: Path | None = None,
    ) -> None:  # fmt: skip
        self.rule = Rule.of(claims.certificate)
        record = claims.certificate["model"]
        self.softmax = record["stripped"] not in (None, "Sigmoid")
        self._preprocessing = Preprocessing.of(record, image_shape)
        self.deployed = Deployed(model, self._preprocessing)
        self._interpreter: Interpreter | None = None
        self.program: Program | None = None
        self.checker: Checker | None = None
        self.arithmetic = Arithmetic.of("real")
        self.reading = self.bound = "available"
        if record["stripped"] == "Sigmoid":
            # The certificate's margins are those before it, which this reading does not know.
            self.reading = self.bound = "not available: a Sigmoid at the end was left out"
            return
        try:
            reading = Interpreter(model, self._preprocessing.shape, softmax=self.softmax)
            self._interpreter = reading
            if claims.deployed not in (*FORMATS, "real"):
                raise NotRead(f"--deployed {claims.deployed}")
            self.arithmetic = Arithmetic.of(claims.deployed, reading.inside, reading.leaves)
            if self.softmax and not self.rule.plain:
                raise NotRead("what a Softmax at the end rounds below its greatest output")
            if proofs is not None and not self.rule.plain:
                raise NotRead("proofs of what the certificate claims")
            if proofs is None:
                self.program = Program(reading, self._preprocessing)
            else:
                self.checker = Checker(
                    reading, self._preprocessing, proofs, len(claims.samples), self.arithmetic,
                    pixel_domain=claims.pixel_domain, softmax=self.softmax,
                )  # fmt: skip
        except NotRead as missing:
            self.bound = f"not available: {missing}"
            self.reading = self.reading if self._interpreter else self.bound

    def check_reading(self, images: Array) -> None:
        """Whether the own reading is the function that onnxruntime runs; else it is not used."""
        if self._interpreter is None:
            return
        try:
            ours, theirs = self.exact(images), self.deployed(images)
        except NotRead as missing:
            self._unread(f"not available: {missing}")
            return
        if self.softmax:
            # Only the order of the classes can be compared, where it is clear.
            same = ours.argmax(1) == theirs.argmax(1)
            worst = 0.0 if (same | (_gap(ours) < SINGLE * np.abs(ours).max(1))).all() else 1.0
        else:
            scale = np.maximum(np.abs(theirs).max(1), 1e-6)
            worst = float((np.abs(ours - theirs).max(1) / scale).max())
        if not worst <= SINGLE:
            self._unread(f"not available: differs from onnxruntime by {worst:.2g}")

    def _unread(self, reason: str) -> None:
        self._interpreter = self.program = self.checker = None
        self.reading = self.bound = reason

    @property
    def is_read(self) -> bool:
        return self._interpreter is not None

    def _inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """The preprocessing, in torch."""
        p = self._preprocessing
        scale, shift = (torch.from_numpy(np.array(v)).to(pixels) for v in (p.scale, p.shift))
        flat = pixels.flatten(1)[:, torch.from_numpy(np.array(p.order))] * scale + shift
        return flat.reshape(len(pixels), *p.shape)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        assert self._interpreter is not None
        return self._interpreter(self._inputs(pixels))

    @torch.no_grad()
    def exact(self, images: Array) -> Array:
        """The own reading in float64."""
        logits: Array = self.logits(torch.from_numpy(images.astype(np.float64))).numpy()
        return logits

    @property
    def covers(self) -> Rule:
        """The rule for what ``covered`` gives."""
        exact = self.arithmetic.unit == 0 and self._interpreter is not None
        return replace(self.rule, ended=False) if exact else self.rule

    def covered(self, images: Array) -> Array:
        """The arithmetic that the certificate covers: the file's own, or real numbers, unless the
        file rounds to types of its own."""
        if self.arithmetic.unit == 0 and self._interpreter is not None:
            return self.exact(images)
        return self.deployed(images)


def _gap(logits: Array) -> Array:
    ordered = np.sort(logits, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])
