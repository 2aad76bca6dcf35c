"""Faults of the original implementation of local Lipschitz bounds, each with a test that a program
that had it would fail."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from attacks import smallest_margins
from certification.test_certification_certifier import certify, linear, options, random_case
from laws import norm_coins, normal, seeded
from onnx import TensorProto, helper, numpy_helper

from lipcert.bounds import Layers
from lipcert.certification import Certifier
from lipcert.certification.analysis import Analysis
from lipcert.certification.findings import Findings, Step
from lipcert.certification.published import Published
from lipcert.certification.rungs import Rung, ladder
from lipcert.certification.samples import Samples
from lipcert.loading import load_model, normalisation_found, with_preprocessing
from lipcert.network import NetworkBuilder, Segment, simplify
from lipcert.network.activations import relu
from lipcert.network.operators import Dense
from lipcert.norms import SegmentNorms, WeightedMap, power_iteration
from lipcert.norms.coins import unit_vectors


def dense_segment(matrix: torch.Tensor) -> Segment:
    builder = NetworkBuilder((matrix.shape[1],))
    node = builder.operator(Dense.of(matrix, None, (matrix.shape[1],)), 0)
    return Segment(builder.build(node), 0, 1)


def test_1_norms_are_not_power_iteration_from_below() -> None:
    """A slowly falling spectrum, on which even 100 power steps stay below the norm."""
    matrix = torch.diag(torch.linspace(1, 0.97, 300, dtype=torch.float64))
    segment = dense_segment(matrix)
    ones = torch.ones(20, 300, dtype=torch.float64)
    mapping = WeightedMap(segment, ones, ones)
    for steps in (2, 100):
        start = unit_vectors(0, torch.arange(20), 0, ones)
        assert (power_iteration(mapping, start, steps) < 1).all()
    norms = SegmentNorms.of(segment, norm_coins(1e-10), matrix_side=0)
    bound = norms.randomised(mapping, norm_coins(1e-12, 20, first=1000))
    assert norms.norm.value >= 1
    assert (bound >= 1).all()


def test_2_overflow_and_nan_are_never_certified() -> None:
    """22 random layers with huge weights: their norms overflow when squared."""
    builder, generator = NetworkBuilder((1, 8)), seeded(0)
    node = 0
    for _ in range(21):
        weight = normal((8, 8), generator) * 1e15
        node = builder.operator(Dense.of(weight, None, (1, 8)), node)
        node = builder.activation(relu(), node)
    node = builder.operator(Dense.of(normal((3, 8), generator) * 1e15, None, (1, 8)), node)
    network = builder.build(node)
    x = torch.rand(10, 1, 8, generator=generator, dtype=torch.float64)
    labels = network.logits(x).nan_to_num().argmax(1)
    for method in ("local", "global"):
        for norms in ("randomised", "deterministic", "estimate"):
            for sample in certify(network, x, labels, options(method=method, norms=norms)):
                assert sample.verdict in ("unknown", "error", "misclassified")
                assert not sample.certified
                assert not sample.estimated
                assert not sample.radius
                assert not sample.radius_estimate


def test_3_a_zero_vector_is_not_kept_for_the_next_sample() -> None:
    """A sample whose neurons are all dead comes first; the same certifier then sees a live one."""
    builder = NetworkBuilder((1, 3))
    node = builder.operator(Dense.of(torch.eye(3).double() * 4, -torch.ones(3).double(), (1, 3)), 0)
    node = builder.activation(relu(), node)
    out = torch.tensor([[1.0, 1, 1], [-1, -1, -1]], dtype=torch.float64)
    shift = torch.tensor([0.01, 0.0], dtype=torch.float64)
    node = builder.operator(Dense.of(out, shift, (1, 3)), node)
    network = builder.build(node)
    dead = torch.zeros(1, 1, 3, dtype=torch.float64)
    live = torch.full((1, 1, 3), 0.26, dtype=torch.float64)
    certifier = Certifier(network, options("0.1"), samples=2)
    (first,) = certifier(dead, torch.tensor([0]), [0])
    (second,) = certifier(live, torch.tensor([0]), [1])
    (alone,) = Certifier(network, options("0.1"), samples=2)(live, torch.tensor([0]), [1])
    assert first.verdict == "certified"
    assert second == replace(alone, seconds=second.seconds, rungs=second.rungs)
    assert second.lipschitz is not None
    assert second.lipschitz >= 4 * math.sqrt(6)


def test_4_ties_are_not_certified() -> None:
    twins = linear([[1.0, 2.0], [1.0, 2.0], [-5.0, -5.0]], [0.5, 0.5, 0.0])
    x = torch.full((1, 1, 2), 0.5, dtype=torch.float64)
    for given in (options("0"), options("0", deployed="real"), options("0", norms="deterministic")):
        for label in (0, 1):
            (sample,) = certify(twins, x, torch.tensor([label]), given)
            assert sample.verdict in ("unknown", "misclassified")
            assert sample.radius == 0


def test_5_eps_is_in_pixels_whatever_the_normalisation() -> None:
    """Dividing by a standard deviation of 0.1 makes the network ten times as steep in pixels."""
    cases = (random_case(seed) for seed in range(20))
    network, x, _ = next(case for case in cases if normalisation_found(case[0]) is None)
    plain = with_preprocessing(network, image_shape=network.in_shape[1:])
    steep = with_preprocessing(
        network, image_shape=network.in_shape[1:], mean=[0.2, 0.3], std=[0.1, 0.1]
    )
    # The same points of the network's own input, seen from pixels.
    shift = torch.tensor([0.2, 0.3], dtype=torch.float64).reshape(1, 1, 2, 1, 1)
    pixels = x * 0.1 + shift
    labels = plain.logits(x).argmax(1)
    wide = certify(plain, x, labels, options("0.3", method="local"))
    narrow = certify(steep, pixels, labels, options("0.03", method="local"))
    for one, ten in zip(wide, narrow, strict=True):
        assert one.radius is not None
        assert ten.radius == pytest.approx(one.radius / 10, rel=0.02)
    radius = torch.tensor([s.radius for s in narrow], dtype=torch.float64)
    found = smallest_margins(steep, pixels, labels, radius)
    assert (found[radius > 0] > 0).all()


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_6_padding_modes_count(tmp_path: Path, mode: str) -> None:
    """Reflected pixels are read twice: the norm is that of the padded map, not of zero padding."""
    weight = normal((3, 2, 3, 3), seeded(1)).float().numpy()
    pads = numpy_helper.from_array(torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]).numpy(), "pads")
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], mode=mode),
        helper.make_node("Conv", ["p", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 75])],
        [numpy_helper.from_array(weight, "w"), pads],
    )
    path = tmp_path / "padded.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    network = simplify(load_model(path).network)
    (rows,) = Layers.of(network).last.values()
    unit = torch.eye(50, dtype=torch.float64).reshape(50, 1, 2, 5, 5)
    truth = float(torch.linalg.matrix_norm(network.logits(unit).mT, ord=2))
    assert float(torch.linalg.matrix_norm(rows, ord=2)) == pytest.approx(truth)
    norms = SegmentNorms.of(Segment(network, 0, network.output), norm_coins(1e-9))
    assert truth <= norms.norm.value <= 1.001 * truth


@pytest.mark.parametrize("factor", [1e-12, 1e-100])
def test_7_no_guard_in_a_denominator_lowers_a_norm(factor: float) -> None:
    for side in (256, 0):
        segment = dense_segment(torch.eye(20, dtype=torch.float64) * factor)
        norms = SegmentNorms.of(segment, norm_coins(1e-9), matrix_side=side)
        ones = torch.ones(2, 20, dtype=torch.float64)
        mapping = WeightedMap(segment, ones, ones)
        local = norms.randomised(mapping, norm_coins(1e-9, 2, first=1000))
        assert norms.norm.value >= factor
        assert (local >= factor).all()


def test_8_reduced_precision_is_off_and_the_analysis_in_double() -> None:
    seen: list[tuple[bool, bool, str]] = []

    class Noted:
        name = "noted"

        def climb(self, samples: Samples, known: Findings) -> Step:
            seen.append(
                (
                    torch.backends.cuda.matmul.allow_tf32,
                    torch.backends.cudnn.allow_tf32,
                    torch.get_float32_matmul_precision(),
                )
            )
            return Step(self.name, torch.arange(0))

    def rungs(analysis: Analysis, published: Published) -> tuple[Rung, ...]:
        return *ladder(analysis, published), Noted()

    network, x, labels = random_case(0)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    try:
        single = network.to(dtype=torch.float32)
        certifier = Certifier(single, options(), samples=1, rungs=rungs)
        certifier(x[:1].float(), labels[:1], [0])
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    assert seen == [(False, False, "highest")]
    assert certifier.analysis.simplified.anchor.dtype == torch.float64
    assert certifier.analysis.lowered.anchor.dtype == torch.float64


def test_9_training_never_looks_at_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's training sees the training split alone; what it returns is its last state."""
    script = Path(__file__).parents[1] / "examples" / "train_digits.py"
    spec = importlib.util.spec_from_file_location("train_digits", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked: list[str] = []
    trained: list[list[str]] = []
    load, train = module.load_dataset, module.train

    def noted(name: str, *, split: str):
        asked.append(split)
        return load(name, split=split)

    def training(*arguments, **others):
        model = train(*arguments, **others)
        trained.append(list(asked))
        return model

    monkeypatch.setattr(module, "load_dataset", noted)
    monkeypatch.setattr(module, "train", training)
    monkeypatch.setattr(module, "export", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["train_digits.py", "--epochs", "1"])
    module.main()
    assert trained == [["train"]]
    assert "test" in asked
