"""A measured order of sums: what the runtime rounds stays within what is charged for it, and
certificates that rest on it hold in that runtime."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import in_ball
from laws import dense_twin, seeded, uniform
from loading.test_load_summation import constants, saved
from onnx import helper, numpy_helper
from torch import Tensor

from lipcert.certification import Certifier
from lipcert.certification.deployed import Deployment
from lipcert.loading import DeployedFile
from lipcert.loading.model import LoadedModel
from lipcert.loading.summation import measured
from lipcert.network import Network
from lipcert.options import Epsilon, Options
from lipcert.rounding import SINGLE

WEIGHTS = ["random", "cancelling", "spread"]


def weighted(folder: Path, kind: str) -> LoadedModel:
    """Two convolutions and two layers of Gemm, long sums in all of them."""
    node, rng = helper.make_node, np.random.default_rng(4)
    tensors = constants(
        w1=(8, 3, 3, 3), b1=(8,), w2=(8, 8, 3, 3), w3=(24, 200), b3=(24,), w4=(3, 24), b4=(3,)
    )
    for tensor in tensors:
        given = numpy_helper.to_array(tensor)
        if given.ndim > 1:
            made = given.reshape(len(given), -1) / np.float32(given[0].size ** 0.5)
            half = made.shape[1] // 2
            if kind == "cancelling":
                made[:, half : 2 * half] = -made[:, :half] * np.float32(1 + 1e-5)
            elif kind == "spread":
                made = made * (np.float32(2) ** rng.integers(-12, 3, made.shape))
            tensor.CopyFrom(
                numpy_helper.from_array(made.reshape(given.shape).astype(np.float32), tensor.name)
            )
    return saved(
        folder,
        [
            node("Conv", ["x", "w1", "b1"], ["a"], name="one", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "w2"], ["c"], name="two", strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["d"]),
            node("Flatten", ["d"], ["f"]),
            node("Gemm", ["f", "w3", "b3"], ["e"], name="three", transB=1),
            node("Relu", ["e"], ["s"]),
            node("Gemm", ["s", "w4", "b4"], ["y"], name="four", transB=1),
        ],
        (1, 3, 10, 10), tensors,
    )  # fmt: skip


@pytest.fixture(scope="module", params=WEIGHTS)
def both(request, tmp_path_factory) -> tuple[LoadedModel, LoadedModel]:
    model = weighted(tmp_path_factory.mktemp("sums"), request.param)
    return model, measured(model)


def exact_logits(network: Network, sample: Tensor) -> Tensor:
    """In rational numbers, every operator written out as a matrix; ``(K,)``."""
    value = [Fraction(v) for v in sample.flatten().tolist()]
    for i, node in enumerate(network.nodes[1:], 1):
        operator = network.operators.get(i)
        if operator is None:
            value = [max(v, Fraction(0)) for v in value]
            continue
        if operator.entries() is not None:
            rows = [[(k, Fraction(w)) for k, w in enumerate(row) if w]
                    for row in dense_twin(operator).tolist()]  # fmt: skip
            value = [sum((w * value[k] for k, w in row), Fraction(0)) for row in rows]
        if operator.bias is not None:
            shift = operator.bias.expand(node.shape).flatten().tolist()
            value = [v + Fraction(b) for v, b in zip(value, shift, strict=True)]
    return torch.tensor([float(v) for v in value], dtype=torch.float64)


def errors(network: Network, x: Tensor, eps: float) -> Tensor:
    """The most that every margin may be off, ``(B, K)``."""
    deployment = Deployment.of(network, arithmetic=SINGLE, softmax=False)
    centre = deployment.centre(x)
    labels = centre.logits.argmax(1)
    return deployment.pair_errors(centre, labels, torch.full((len(x),), eps).double())


def test_the_runtime_stays_within_what_is_charged(both):
    """At random points of balls, and near the samples. One is held against rational numbers, the
    others against float64, which errs a hundred million times less."""
    model, known = both
    generator = seeded(2)
    x = uniform((4, *model.network.in_shape), generator).float().double()
    file = DeployedFile(known, known.network)
    labels = model.network.logits(x).argmax(1)
    charged = errors(known.network, x, 0.05)
    worst = 0.0
    for step in range(18):
        points = in_ball(x, torch.full((4,), 0.05).double(), generator).float().double()
        if step % 3 == 0:
            points = (x * (1 + 2.0**-23 * step)).float().double()
        theirs = torch.from_numpy(file(points.numpy().reshape(4, *model.network.in_shape[1:])))
        ours = model.network.logits(points)
        if step == 0:
            rational = exact_logits(model.network, points[0])
            torch.testing.assert_close(ours[0], rational, rtol=0, atol=1e-12)
        margins = [
            logits.gather(1, labels[:, None]) - logits for logits in (ours, theirs.reshape_as(ours))
        ]
        off = (margins[0] - margins[1]).abs()
        assert bool((off <= charged).all())
        worst = max(worst, float(((off + 1e-300) / charged).nan_to_num(0).max()))
    assert worst > 1e-4


def test_charges_are_never_above_those_of_any_order(both):
    model, known = both
    x = uniform((4, *model.network.in_shape), seeded(3)).float().double()
    for eps in (0.0, 1e-3, 0.1):
        less, more = errors(known.network, x, eps), errors(model.network, x, eps)
        assert bool((less <= more).all())
    assert (
        float((errors(known.network, x, 0.0).amax(1) / errors(model.network, x, 0.0).amax(1)).max())
        < 0.6
    )


def test_radii_are_not_below_those_of_any_order(both):
    """And the runtime keeps its class at points inside of them, on the way to where it changes."""
    model, known = both
    x = uniform((3, *model.network.in_shape), seeded(3)).float()
    labels = model.network.logits(x.double()).argmax(1)
    radii = []
    for loaded, summation in ((model, "any"), (known, "measured")):
        options = Options(
            (Epsilon.parse("0.01"),), effort="fast", norms="deterministic", seed=1,
            summation=summation,
        )  # fmt: skip
        file = DeployedFile(loaded, loaded.network)
        certifier = Certifier(
            loaded.network, options, samples=3, softmax=False, file=file, device="cpu"
        )
        found = certifier(x, labels, range(3))
        radii.append([sample.radius for sample in found])
        assert all(sample.verdict != "error" for sample in found)
        assert sum(float(sample.radius or 0) for sample in found) > 0
    step = 1 - 1e-3  # of two searches
    assert all(b >= a * step for a, b in zip(*radii, strict=True))
