"""The last check: what the deployed file says against a certificate takes it away."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from certification.made import small_case
from laws import seeded
from onnx import TensorProto, helper, numpy_helper

import lipcert
from lipcert.certification.file_check import FileCheck, probes
from lipcert.loading import DeployedFile, with_preprocessing
from lipcert.network import Network
from lipcert.options import Epsilon, Options
from lipcert.run.model import Model

EPS = (Epsilon.parse("0.1"),)


class File:
    """Says what it is told to of each point, or what a network does."""

    tolerance = 1e-4

    def __init__(self, answer, *, double: bool = False) -> None:
        self.answer, self.double = answer, double

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.seen = pixels
        return self.answer(torch.from_numpy(pixels)).numpy()


def known(seed: int = 0) -> tuple[Network, torch.Tensor, torch.Tensor]:
    network, x, _ = small_case(seed)
    return network, x, network.logits(x).argmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [False, True])
def test_probes_lie_in_the_ball_exactly_and_in_the_type(dtype: torch.dtype, images: bool) -> None:
    network, x, labels = known()
    radius = torch.tensor([4e-9, 1e-7, 1e-3, 0.2, 3.0, 1e-300], dtype=torch.float64)
    found = probes(
        network.to(dtype=dtype), x, labels, radius, towards=x.flip(0), pixel_domain=images
    )
    assert found.shape == (6, 8, *x.shape[1:])
    assert torch.equal(found[:, 0], x)
    assert torch.equal(found.to(dtype).double(), found)
    for points, sample, limit in zip(found, x, radius, strict=True):
        for point in points:
            ends = zip(point.flatten().tolist(), sample.flatten().tolist(), strict=True)
            square = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in ends)
            assert square <= Fraction(float(limit)) ** 2
    if images:
        assert ((found >= 0) & (found <= 1)).all()
    else:
        far = (found[2:5, 1:] - x[2:5, None]).flatten(2).norm(dim=2) / radius[2:5, None]
        assert (far > 0.99).all()


def test_probes_have_small_margins() -> None:
    """Far below those of as many random points of the same sphere."""
    network, x, labels = known()
    radius = torch.full((len(x),), 0.5, dtype=torch.float64)
    found = probes(network, x, labels, radius, towards=x)
    way = torch.randn(found.shape, generator=seeded(1), dtype=torch.float64)
    random = x[:, None] + 0.5 * way / way.flatten(2).norm(dim=2)[:, :, None, None]

    def least(points: torch.Tensor) -> torch.Tensor:
        logits = network.logits(points.flatten(0, 1)).reshape(*points.shape[:2], -1)
        own = logits.gather(2, labels[:, None, None].expand(-1, points.shape[1], 1))
        return (
            (own - logits).scatter(2, labels[:, None, None].expand_as(own), math.inf).amin((1, 2))
        )

    assert (least(found) <= least(random)).all()


def said(answer, *, deployed: str = "float32", double: bool = False, method: str = "auto"):
    network, x, labels = known()
    file = File(answer, double=double)
    check = FileCheck(file, network, Options(EPS, deployed=deployed, method=method))  # type: ignore[arg-type]
    radius = torch.full((len(x),), 0.05, dtype=torch.float64)
    return check.contradictions(x, labels, radius, x), file, (network, x, labels)


def test_the_network_itself_is_no_contradiction() -> None:
    network, *_ = known()
    found, file, (_, x, _) = said(lambda points: network.logits(points))
    assert found == {}
    assert len(file.seen) == 8 * len(x)


def test_other_classes_ties_and_no_numbers_are_told() -> None:
    network, x, labels = known()

    def answer(points: torch.Tensor) -> torch.Tensor:
        logits = network.logits(points).reshape(len(x), 8, -1)
        logits[1, 3, (labels[1] + 1) % 3] = 1e3
        logits[2, 0] = 0.5
        logits[3, 7, 0] = math.nan
        logits[4, 5, labels[4]] = math.inf
        return logits.flatten(0, 1)

    found, *_ = said(answer)
    assert found.keys() == {1, 2, 3, 4}
    assert f"class {int((labels[1] + 1) % 3)} at a distance of 0.0" in found[1]
    assert "a tie at a distance of 0, inside" in found[2]
    assert "no finite logits" in found[3]
    assert "no finite logits" in found[4]


@pytest.mark.parametrize(("deployed", "double", "strict"), [
    ("float32", False, True), ("float16", False, True), ("bfloat16", True, True),
    ("float64", True, True), ("float64", False, False), ("real", False, False),
    ("real", True, False),
])  # fmt: skip
def test_rounding_that_a_claim_leaves_out_contradicts_nothing(
    deployed: str, double: bool, strict: bool
) -> None:
    """Another class by less than both logits may round is one only where rounding is covered."""
    network, x, labels = known()

    def answer(share: float):
        def logits(points: torch.Tensor) -> torch.Tensor:
            found = torch.zeros(len(points), network.classes, dtype=torch.float64)
            own = labels.repeat_interleave(8)[:, None]
            return found.scatter(1, own, 1.0).scatter(1, (own + 1) % 3, 1 + share)

        return logits

    for share, against in ((1e-7, strict), (1e-3, True), (0.0, strict), (math.nan, True)):
        found, *_ = said(answer(share), deployed=deployed, double=double)
        assert len(found) == (len(x) if against else 0)


# Files -------------------------------------------------------------------------------------------


def ramp(limit: float | None) -> onnx.ModelProto:
    """``(min(3 x, limit), 2.9 x)`` of the first of two values: where the limit is reached the other
    class overtakes, and nothing is to be seen of that before."""
    weights = {"w": np.array([[3.0, 2.9], [0.0, 0.0]], np.float32),
               "m": np.array([limit or 0.0, 1e9], np.float32)}  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    nodes.append(helper.make_node("Min", ["a", "m"], ["y"]) if limit is not None
                 else helper.make_node("Identity", ["a"], ["y"]))  # fmt: skip
    graph = helper.make_graph(
        nodes, "ramp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def misread(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A file whose limit the reading has lost."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.onnx"
    path.write_bytes(ramp(None).SerializeToString())
    model = lipcert.load(path)
    loaded = replace(model.loaded, runtime_bytes=ramp(2.55).SerializeToString())
    return Model(loaded, model.preprocessing)


IMAGES = np.array([[0.2, 0.5], [0.5, 0.3], [0.3, 0.9], [0.49, 0.1]], np.float32)
SAFE = [0, 2]


@pytest.mark.parametrize("method", ["global", "local", "auto fast", "auto standard"])
def test_a_limit_that_was_lost_is_found_in_the_file(misread: Model, method: str) -> None:
    """Samples whose balls reach it are errors, by every method; all others keep their results."""
    kind, _, effort = method.partition(" ")
    result = lipcert.certify(
        misread, IMAGES, np.zeros(4, np.int64), ["0.05", "0.4"], method=kind,
        effort=effort or "fast", threads=1,
    )  # fmt: skip
    wrong = [sample.index for sample in result.samples if sample.verdict == "error"]
    assert wrong == [1, 3]
    for sample in result.samples:
        if sample.index in SAFE:
            assert sample.radius > 0.05
            assert "0.05" in sample.certified
            continue
        assert sample.radius == 0
        assert sample.certified == ()
        assert sample.lipschitz is None
        assert sample.attack_radius is None
        assert sample.decided_by == "file"
        assert "the deployed file gives class 1" in sample.message
        assert sample.failure_probability == result.samples[0].failure_probability
    assert result.summary["verdicts"]["error"] == 2
    [rung] = [rung for rung in result.certificate.cascade if rung["rung"] == "file"]
    assert rung["samples"] == 4
    assert rung["decided"] == 2


def test_estimates_claim_nothing_that_a_file_could_contradict(misread: Model) -> None:
    result = lipcert.certify(
        misread, IMAGES, np.zeros(4, np.int64), "0.4", norms="estimate", method="local", threads=1
    )
    assert all("file" not in sample.rungs for sample in result.samples)


def test_a_copy_of_a_file_opens_a_session_of_its_own(misread: Model) -> None:
    network = with_preprocessing(misread.loaded.network, image_shape=(2,))
    file = DeployedFile(misread.loaded, network)
    before = file(IMAGES)
    copy = pickle.loads(pickle.dumps(file))  # noqa: S301
    np.testing.assert_array_equal(copy(IMAGES), before)
    weights, limits = np.float32([3.0, 2.9]), np.float32([2.55, 1e9])
    np.testing.assert_array_equal(before, np.minimum(IMAGES[:, :1] * weights, limits))
