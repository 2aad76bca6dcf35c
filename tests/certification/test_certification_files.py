"""Files made against the reader: no certificate holds where onnxruntime flips the file's class.

Each of these was certified once, with a point of another class, a tie, or a value that is not
finite inside the ball.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certification.file_cases import FLOAT, LEVELS, certified, file_of, flipped
from onnx import ModelProto

METHODS = ("global", "local", "auto")
SIGNS = [[1.0, -1.0]]


@dataclass(frozen=True)
class Made:
    """A file, a sample, and a point at which onnxruntime gives another class, a tie, or no
    number."""

    model: ModelProto
    x: float
    flip: float
    deployed: tuple[str, ...] = ("float64", "real")

    @property
    def distance(self) -> float:
        return abs(self.flip - self.x)


def gelu(root: float, **more: Any) -> ModelProto:
    lines = ["d = Div x r", "e = Erf d", "a = Add e one", "m = Mul x a", "g = Mul m half",
             "t = MatMul g w", "y = Add t b"]  # fmt: skip
    bias = float(np.float32(0.5 * 0.5 * (1 + ERF)))
    return file_of(lines, FLOAT, r=root, one=1.0, half=0.5, w=SIGNS, b=[-bias, bias], **more)


def merged(weight: float, scale: float, up: float, *, norm: bool) -> ModelProto:
    """``weight · (up x)``, times ``scale``, in a convolution and a batch norm or a product behind
    it, which onnxruntime merges; then back to ``x``, less .3."""
    middle = "n = BatchNormalization c s o o v" if norm else "n = Mul c s"
    lines = ["a = Mul x up", "i = Unsqueeze a axis", "c = Conv i u", middle, "q = Squeeze n axis",
             "b = Mul q back", "d = Sub b h", "y = MatMul d w"]  # fmt: skip
    return file_of(
        lines, FLOAT, axis=np.array([1]), up=up, u=[[[weight]]], s=[scale] if norm else [[[scale]]],
        o=[0.0], v=[1.0], back=1 / (weight * scale * up), h=0.3, w=SIGNS,
        attributes={"n": {"epsilon": 0.0} if norm else {}},
    )  # fmt: skip


# erf(0.5 / √2).
ERF = 0.3829249225480262
ROOT = float(np.float32(np.sqrt(2.0)))
LAST = ("e = MatMul d w", "y = Add e b")
SINGLE = {"w": np.array(SIGNS, np.float32), "b": np.array([-0.5, 0.5], np.float32)}

CASES = {
    # Limits that a float64 file can pass: the sample lies beside a step back behind the limit.
    "upper limit beyond float32": Made(
        file_of(["z = Mul x big", "c = Min z limit", "n = Sub z c", "d = Mul n small", *LAST],
                big=1e40, limit=0.6e40, small=-1e-39, w=SIGNS, b=[0.5, -0.5]), 0.55, 0.7),
    "clip beyond float32": Made(
        file_of(["z = Mul x big", "c = Clip z low limit", "n = Sub z c", "d = Mul n small", *LAST],
                big=1e40, low=-1e40, limit=0.6e40, small=-1e-39, w=SIGNS, b=[0.5, -0.5]),
        0.55, 0.7),
    "lower limit beyond float32": Made(
        file_of(["z = Mul x big", "c = Max z limit", "n = Sub z c", "d = Mul n small", *LAST],
                big=-1e40, limit=-0.6e40, small=1e-39, w=SIGNS, b=[0.5, -0.5]), 0.55, 0.7),
    # Casts.
    "a cast and back": Made(
        file_of(["z = Add x one", "f = Float z", "g = Double f", "d = Sub g c", *LAST],
                one=1.0, c=1.5, w=SIGNS, b=[-1e-9, 0.0]), 0.5 + 6.2e-8, 0.5 + 5.2e-8),
    "layers in float32": Made(
        file_of(["f = Float x", "e = MatMul f w", "q = Add e b", "y = Double q"], **SINGLE),
        0.5 + 4e-8, 0.5 + 2e-8),
    "a cast of the logits": Made(
        file_of(["e = MatMul x w", "q = Add e b", "y = Float q"], leaves=FLOAT, w=SIGNS,
                b=[1.0, 1.0]), 2e-7, 1e-9),
    "a softmax in float64, cast to float32": Made(
        file_of(["e = MatMul x w", "s = Softmax e", "y = Float s"], leaves=FLOAT, w=SIGNS),
        1e-7, 1e-9),
    "a log softmax, cast": Made(
        file_of(["e = MatMul x w", "s = LogSoftmax e", "y = Float s"], leaves=FLOAT, w=SIGNS),
        1e-7, 1e-9),
    "a softmax in float32": Made(
        file_of(["e = MatMul x w", "y = Softmax e"], FLOAT, w=SIGNS), 1e-7, 1e-9),
    "a file of float32, wider inside": Made(
        file_of(["d = Double x", "e = MatMul d w", "q = Add e b", "y = Float q"], FLOAT,
                w=np.array(SIGNS), b=np.array([1.0, 1.0])), 2e-7, 1e-9),
    "a cast that overflows": Made(
        file_of(["z = Mul x big", "f = Float z", "g = Double f", "d = Mul g small", *LAST],
                big=4e38, small=0.25e-38, w=SIGNS, b=[-0.5, 0.5]), 0.8, 0.9),
    "a cast that underflows": Made(
        file_of(["z = Mul x small", "f = Float z", "g = Double f", "d = Mul g big", *LAST],
                big=1e45, small=1e-45, w=SIGNS, b=[-0.6, 0.6]), 0.75, 0.69),
    "a cast like a constant": Made(
        file_of(["z = Add x one", "f = CastLike z single", "g = CastLike f z", "d = Sub g c",
                 *LAST],
                one=1.0, c=1.5, w=SIGNS, b=[-1e-9, 0.0], single=np.zeros(1, np.float32)),
        0.5 + 6.2e-8, 0.5 + 5.2e-8),
    # Activations written out, whose constants are float32 numbers.
    "a GELU of float32": Made(gelu(ROOT * (1 + 2.0**-23)), 0.5 + 1e-7, 0.5, ("real",)),
    "a gate that overflows": Made(
        file_of(["z = Mul x big", "a = Add z three", "c = Clip a none six", "m = Mul z c",
                 "h = Div m six", "d = Mul h small", *LAST], FLOAT, big=1e38, three=3.0, none=0.0,
                six=6.0, small=1e-38, w=SIGNS, b=[-0.2, 0.2]), 0.5, 0.7),
    # Scales: sums that overflow before their factor; what leaves the range once it is merged.
    "a factor of a product": Made(
        file_of(["z = Mul x four", "h = Gemm z u", "d = Sub h c", "y = MatMul d w"], FLOAT,
                four=4.0, u=[[1e38]], c=2.8, w=SIGNS, attributes={"h": {"alpha": 1e-38}}),
        0.8, 0.86, ("float32",)),
    "a batch norm that makes weights underflow": Made(
        merged(1e-25, 1e-25, 1e20, norm=True), 0.5, 0.51, ("float32",)),
    "a batch norm that makes weights overflow": Made(
        merged(1e30, 1e30, 1e-25, norm=True), 0.5, 0.51, ("float32",)),
    "a scale that makes weights underflow": Made(
        merged(1e-30, 1e-20, 1e30, norm=False), 0.5, 0.51, ("float32",)),
    "a scale that makes weights overflow": Made(
        merged(1e30, 1e30, 1e-25, norm=False), 0.5, 0.51, ("float32",)),
    # A slope that overflows at the end.
    "a slope that overflows": Made(
        file_of(["c = Sub x shift", "t = MatMul c w", "y = PRelu t s"], FLOAT, shift=0.5,
                w=[[1e5, -1e5]], s=[1e34]), 0.75, 0.9, ("float32",)),
}  # fmt: skip


def radius(case: Made, method: str, deployed: str, folder: Path) -> float:
    eps = format(max(case.distance, 1e-12), ".17g")
    return certified(case.model, [case.x], folder, deployed=deployed, method=method, eps=eps).radius


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_no_certificate_reaches_a_flip(name: str, method: str, tmp_path: Path) -> None:
    case = CASES[name]
    point = np.array([[case.flip]])
    assert any(flipped(case.model, [case.x], point, level).all() for level in LEVELS)
    for deployed in case.deployed:
        assert radius(case, method, deployed, tmp_path) < case.distance
