"""Intervals of regression models: what onnxruntime, attacks and exact linear algebra say."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from laws import normal, seeded, uniform
from onnx import TensorProto, helper, numpy_helper

import lipcert
from lipcert.certification.intervals import Encloser, Intervals
from lipcert.cli.main import main
from lipcert.errors import CannotCertify, UsageError
from lipcert.network import NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.joints import Product
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options
from lipcert.run.intervals import enclosing, rows

Array = np.ndarray
REPORT = Path(lipcert.__file__).parent / "report"
SCHEMA = json.loads((REPORT / "intervals.schema.json").read_text())


def regressor(path: Path, outputs: int, *, hidden: int = 24, tail: str | None = None) -> Path:
    """Two hidden layers of ReLU, or none at all."""
    random, sizes = np.random.default_rng(outputs), [6, hidden, hidden, outputs]
    sizes = sizes if hidden else [6, outputs]
    nodes, arrays, name = [], {}, "x"
    for k, (before, after) in enumerate(pairwise(sizes)):
        arrays[f"W{k}"] = random.normal(size=(after, before)) * (1.4 / before**0.5)
        arrays[f"b{k}"] = random.normal(size=after) / 4
        nodes.append(helper.make_node("Gemm", [name, f"W{k}", f"b{k}"], [f"z{k}"], transB=1))
        name = f"z{k}"
        if k < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [name], [f"a{k}"]))
            name = f"a{k}"
    if tail:
        nodes.append(helper.make_node(tail, [name], ["end"]))
        name = "end"
    graph = helper.make_graph(
        nodes, "regressor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(a.astype(np.float32), k) for k, a in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("regression")
    for outputs in (1, 2):
        regressor(made / f"mlp{outputs}.onnx", outputs)
        regressor(made / f"linear{outputs}.onnx", outputs, hidden=0)
    regressor(made / "soft.onnx", 3, tail="Softmax")
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    y = run(made / "mlp2.onnx", x) + np.random.default_rng(1).normal(size=(7, 2)) / 20
    np.savez(made / "data.npz", x=x, y=y)
    np.save(made / "x.npy", x)
    np.save(made / "y.npy", y)
    return made


def run(path: Path, x: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: x.astype(np.float32)})[0]


def in_ball(x: Array, eps: float, seed: int) -> Array:
    """Points of float32 within eps, most of them near the sphere."""
    random = np.random.default_rng(seed)
    way = random.normal(size=x.shape)
    way *= (eps * (1 - 1e-6) * random.random((len(x), 1)) ** 0.05) / np.linalg.norm(
        way, axis=1, keepdims=True
    )
    points = (x + way).astype(np.float32)
    assert (np.linalg.norm(points.astype(np.float64) - x, axis=1) <= eps).all()
    return points


HOW: list[dict[str, Any]] = [
    {"effort": "fast"}, {}, {"effort": "max"}, {"norms": "deterministic"}, {"dtype": "float32"},
    {"deployed": "float64"}, {"deployed": "bfloat16"},
]  # fmt: skip


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_no_run_of_the_file_leaves_an_interval(folder, outputs, how) -> None:
    path = folder / f"mlp{outputs}.onnx"
    with np.load(folder / "data.npz") as data:
        x = data["x"]
    found = lipcert.intervals(lipcert.load(path), x, ["0.05", "0.3"], seed=0, **how)
    assert [sample.index for sample in found.samples] == list(range(7))
    for eps in (0.05, 0.3):
        pairs = np.array([sample.intervals[str(eps)] for sample in found.samples])
        seen = np.array([sample.reached[str(eps)] for sample in found.samples])
        assert pairs.shape == (7, outputs, 2)
        assert np.isfinite(pairs).all()
        assert (pairs[..., 0] <= seen[..., 0]).all()
        assert (seen[..., 1] <= pairs[..., 1]).all()
        for seed in range(30):
            given = run(path, in_ball(x, eps, seed))
            assert (pairs[..., 0] <= given).all()
            assert (given <= pairs[..., 1]).all()
        # It is no empty claim: the attack reaches most of it.
        if how.get("deployed") != "bfloat16":
            widths = np.diff(pairs)[..., 0]
            assert (np.diff(seen)[..., 0] / widths).mean() > (0.5 if eps < 0.1 else 0.2)
    values = np.array([sample.value for sample in found.samples])
    np.testing.assert_allclose(values, run(path, x), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp2", "linear2"])
def test_rounding_of_the_file_is_inside_where_nothing_else_is(folder, name) -> None:
    with np.load(folder / "data.npz") as data:
        x = data["x"]
    path, how = folder / f"{name}.onnx", {"effort": "fast", "seed": 0}
    found = lipcert.intervals(lipcert.load(path), x, ["0", "1e-9"], **how)
    real = lipcert.intervals(lipcert.load(path), x, "0", deployed="real", **how)
    given, outside = run(path, x), 0
    for sample, exact, values in zip(found.samples, real.samples, given, strict=True):
        assert sample.verdict is None
        for eps in ("0", "1e-9"):
            low, high = np.array(sample.intervals[eps]).T
            assert ((low <= values) & (values <= high)).all()
            assert (high - low < 1e-3).all()
        low, high = np.array(exact.intervals["0"]).T
        assert (high - low < 1e-12).all()
        outside += int(((values < low) | (values > high)).sum())
    # What real numbers give is another claim.
    assert outside >= 5


@pytest.mark.parametrize("outputs", [1, 2])
def test_intervals_and_radii_of_linear_models_are_the_exact_ones(folder, outputs) -> None:
    path = folder / f"linear{outputs}.onnx"
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    norm = np.linalg.norm(weights["W0"].astype(np.float64), axis=1)
    with np.load(folder / "data.npz") as data:
        x = data["x"]
    exact = x.astype(np.float64) @ weights["W0"].T.astype(np.float64) + weights["b0"]
    targets = exact + 0.1
    found = lipcert.intervals(
        lipcert.load(path), x, ["0.2", "0.01"], targets=targets, tolerance=0.4, deployed="real"
    )
    for sample, value in zip(found.samples, exact, strict=True):
        ends = np.array(sample.intervals["0.2"])
        assert (ends[:, 0] <= value - 0.2 * norm).all()
        assert (ends[:, 1] >= value + 0.2 * norm).all()
        np.testing.assert_allclose(np.diff(ends)[:, 0], 0.4 * norm, rtol=1e-5)
        np.testing.assert_allclose(np.diff(sample.reached["0.2"])[:, 0], 0.4 * norm, rtol=1e-4)
        radius = 0.3 / norm.max()
        assert sample.radius is not None
        assert 0.97 * radius <= sample.radius <= radius * (1 + 1e-9)
        assert sample.certified == tuple(e for e in ("0.2", "0.01") if float(e) <= sample.radius)
        expected = "certified" if radius > 0.2 else "falsified"
        assert sample.verdict == expected


def test_verdicts_fit_targets(folder) -> None:
    with np.load(folder / "data.npz") as data:
        x, y = data["x"], data["y"].copy()
    y[0] += 10
    model = lipcert.load(folder / "mlp2.onnx")
    found = lipcert.intervals(model, x, ["0.02", "0.4"], targets=y, tolerance=0.5, effort="fast")
    first = found.samples[0]
    assert (first.verdict, first.radius, first.certified) == ("outside", 0.0, ())
    verdicts = [sample.verdict for sample in found.samples]
    assert "falsified" in verdicts or "certified" in verdicts
    for sample in found.samples[1:]:
        seen, target = np.array(sample.reached["0.4"]), y[sample.index][:, None]
        far = np.abs(seen - target).max() > 0.5
        assert sample.radius is not None
        assert (sample.verdict == "certified") <= (not far)
        assert sample.verdict == "falsified" or not far
        assert ("0.4" in sample.certified) == (sample.verdict == "certified")
        for seed in range(20 if sample.radius > 0 else 0):
            given = run(folder / "mlp2.onnx", in_ball(x[[sample.index]], sample.radius, seed))
            assert np.abs(given - y[sample.index]).max() <= 0.5
    summary = found.record["summary"]
    assert summary["certified_count"]["0.4"] == verdicts.count("certified")
    assert found.to_json()["samples"][0]["verdict"] == "outside"


def test_joints_are_enclosed_by_their_tube() -> None:
    generator, builder = seeded(19), NetworkBuilder((1, 5))

    def dense(node: int, size: int) -> int:
        weight = (normal((size, builder.shape(node)[-1]), generator) / 3).float().double()
        bias = (normal((size,), generator) / 4).float().double()
        return builder.operator(Dense.of(weight, bias, builder.shape(node)), node)

    gate = builder.activation(relu(), dense(0, 8))
    node = builder.joint(Product((1, 8), (1, 8)), [gate, dense(0, 8)])
    network = builder.build(dense(node, 2))
    x = uniform((3, 1, 5), generator).float().double()
    options = Options(eps=(Epsilon.parse("0.01"),), effort="fast", seed=0)
    encloser = Encloser(network, (0, 1), options, samples=3, key=7)
    samples = encloser.batch(x, [0, 1, 2])
    found = encloser.enclose(samples, torch.full((3,), 0.01, dtype=torch.float64))
    _, seen = encloser.reached(x, 0.01, pixel_domain=False, most=2)
    assert bool((found.lower[:, None] <= seen).all())
    assert bool((seen <= found.upper[:, None]).all())
    width = (seen.amax(1) - seen.amin(1)) / (found.upper - found.lower)
    assert bool(width.isfinite().all())
    assert float(width.mean()) > 0.5
    assert 0 < float(samples.allowance.spent.sum()) <= 1e-9


def test_what_touches_the_tolerance_or_is_no_number_is_not_within() -> None:
    inf, nan = math.inf, math.nan
    lower = torch.tensor([[0.5], [0.5], [-inf], [nan], [0.9]], dtype=torch.float64)
    upper = torch.tensor([[1.5], [1.4], [1.0], [1.0], [inf]], dtype=torch.float64)
    target = torch.ones(5, 1, dtype=torch.float64)
    assert (Intervals(lower, upper).within(target, 0.5) > 0).tolist() == [False] * 5
    assert (Intervals(lower, upper).within(target, 0.500001) > 0).tolist() == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_values_that_could_overflow_have_no_interval(folder, tmp_path) -> None:
    model = onnx.load(folder / "mlp2.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("W"):
            values = numpy_helper.to_array(tensor) * np.float32(3e12)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "huge.onnx")
    with np.load(folder / "data.npz") as data:
        x, y = data["x"], data["y"]
    found = lipcert.intervals(
        lipcert.load(tmp_path / "huge.onnx"), x, "60", targets=y, tolerance=1e38, effort="fast"
    )
    record = found.to_json()
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    for sample in record["samples"]:
        assert sample["certified"] == []
        assert [None, None] in sample["intervals"]["60"] or sample["verdict"] == "error"


def test_the_command_writes_all_and_gates(folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "found.json"
    given = ["interval", "mlp2.onnx", "--data", "data.npz", "--eps", "0.01,0.1", "--seed", "1",
             "--effort", "fast"]  # fmt: skip
    assert main([*given, "--tolerance", "2", "--output", str(out), "--min-certified", "0.9"]) == 0
    said = capsys.readouterr().out
    assert "certified within ± 2 at eps 0.1" in said
    record = json.loads(out.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    assert record["model"]["outputs"] == 2
    assert record["options"]["tolerance"] == 2
    assert record["assurance"]["kind"] in ("deterministic", "randomised")
    assert len(record["samples"]) == record["summary"]["n"] == 7
    assert main([*given, "--tolerance", "1e-4", "--min-certified", "90%", "--quiet"]) == 1
    assert "gate failed: 0 of 7 samples" in capsys.readouterr().err
    assert main([*given, "--limit", "2", "--json", "--quiet"]) == 0
    record = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    assert "verdict" not in record["samples"][0]
    assert "certified_count" not in record["summary"]
    again = ["interval", "mlp2.onnx", "--data", "x.npy", "--targets", "y.npy", *given[4:]]
    assert main([*again, "--tolerance", "2", "--json", "--quiet", "--limit", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"][1]["verdict"] == "certified"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["soft.onnx", "--data", "data.npz"], 3, "ends in a Softmax"),
        (["mlp2.onnx", "--data", "data.csv"], 2, "give a .npz or .npy file"),
        (["mlp2.onnx", "--data", "none.npy"], 2, "there is no such file"),
        (["mlp2.onnx", "--data", "x.npy", "--tolerance", "1"], 2, "needs targets"),
        (["mlp2.onnx", "--data", "data.npz", "--tolerance", "0"], 2, "give a number above 0"),
        (["mlp2.onnx", "--data", "data.npz", "--min-certified", "1"], 2, "goes with --tolerance"),
        (
            ["mlp1.onnx", "--data", "data.npz", "--tolerance", "1"],
            2,
            "the targets of shape [7, 2] do not fit the 7 samples and 1 outputs",
        ),
        (["mlp2.onnx", "--data", "x.npy", "--targets", "no.npy"], 2, "--targets no.npy: there is"),
        (["mlp2.onnx", "--data", "data.npz", "--norms", "estimate"], 3, "bounds nothing"),
        (["mlp2.onnx", "--data", "data.npz", "--label-key", "z"], 2, "has no such array"),
        (["mlp2.onnx", "--data", "data.npz", "--pixel-domain"], 2, "no set of images"),
        (["mlp2.onnx", "--data", "data.npz", "--output", "."], 2, "--output .: is a folder"),
        (["mlp2.onnx", "--data", "data.npz", "--output", "x.npy/a"], 2, "x.npy/a: cannot be"),
    ],
)
def test_what_cannot_be_enclosed_is_refused(
    folder, monkeypatch, capsys, arguments, code, said
) -> None:
    monkeypatch.chdir(folder)
    assert main(["interval", *arguments, "--eps", "0.1"]) == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_library_refuses_what_it_does_not_know(folder) -> None:
    model = lipcert.load(folder / "mlp2.onnx")
    with pytest.raises(TypeError, match="workers"):
        lipcert.intervals(model, np.zeros((1, 6), np.float32), 0.1, workers=2)
    with pytest.raises(CannotCertify, match="method"):
        lipcert.intervals(model, np.zeros((1, 6), np.float32), 0.1, method="local")
    nothing = np.full((1, 2), np.nan)
    with pytest.raises(UsageError, match="NaN or infinite"):
        lipcert.intervals(model, np.zeros((1, 6), np.float32), 0.1, targets=nothing, tolerance=1.0)


class Shifted(enclosing.DeployedFile):
    """A file that computes a little more than what was read, by less than a cross-check sees."""

    def __call__(self, pixels: Array, *, batch: int = 256) -> Array:
        found = super().__call__(pixels, batch=batch)
        return found + 5e-5 * np.abs(found).max(1, keepdims=True)


def test_a_file_that_leaves_the_interval_takes_it_back(folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(enclosing, "DeployedFile", Shifted)
    monkeypatch.chdir(folder)
    given = ["interval", "mlp2.onnx", "--data", "data.npz", "--eps", "1e-7", "--json", "--quiet"]
    assert main([*given, "--tolerance", "3"]) == 4
    caught = capsys.readouterr()
    assert "the deployed file gives" in caught.err
    for sample in json.loads(caught.out)["samples"]:
        assert (sample["verdict"], sample["radius"], sample["certified"]) == ("error", 0.0, [])
        assert sample["intervals"]["1e-7"] == [[None, None], [None, None]]


class Contradicted(enclosing.Encloser):
    """One whose attack is outside of what is proven, at the sample of the largest first value."""

    def reached(self, x, eps, *, pixel_domain, most):
        points, seen = super().reached(x, eps, pixel_domain=pixel_domain, most=most)
        return points, seen + 1e3 * chosen(x)[:, None, None]


class Broken(enclosing.Encloser):
    """One that fails at any company of that sample."""

    def enclose(self, samples, eps, number=0):
        if chosen(samples.x).any():
            raise RuntimeError("this one cannot be enclosed")
        return super().enclose(samples, eps, number)


def chosen(x: torch.Tensor) -> torch.Tensor:
    return (x.flatten(1)[:, 0] > 1.3).double()


@pytest.mark.parametrize(
    ("encloser", "said"),
    [
        (Contradicted, "at eps 0.01 an attack left the interval that was proven"),
        (Broken, "RuntimeError: this one cannot be enclosed"),
    ],
)
@pytest.mark.parametrize("judged", [True, False])
def test_a_sample_that_fails_inside_is_an_error_and_all_else_is_kept(
    folder, tmp_path, monkeypatch, capsys, encloser, said, judged
) -> None:
    monkeypatch.chdir(folder)
    with np.load("data.npz") as data:
        (at,) = np.flatnonzero(data["x"][:, 0] > 1.3)
    out = tmp_path / "found.json"
    given = ["interval", "mlp2.onnx", "--data", "data.npz", "--eps", "0.01,0.02", "--seed", "1"]
    given += ["--effort", "fast", *(["--tolerance", "2"] if judged else [])]
    assert main([*given, "--output", str(out), "--quiet"]) == 0
    before = json.loads(out.read_text())["samples"]
    monkeypatch.setattr(enclosing, "Encloser", encloser)
    assert main([*given, "--output", str(out)]) == 4
    told = capsys.readouterr()
    assert f"lipcert: 1 of 7 samples failed; the first, {at}: {said}" in told.err
    assert "FAILED" in told.out
    record = json.loads(out.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    for index, (old, new) in enumerate(zip(before, record["samples"], strict=True)):
        if index != at:
            for eps, pairs in old["intervals"].items():
                np.testing.assert_allclose(new["intervals"][eps], pairs, rtol=1e-9)
            assert new.get("verdict") == old.get("verdict")
            continue
        assert (new["verdict"], new["certified"]) == ("error", [])
        assert new.get("radius", 0.0) == 0.0
        assert said in new["message"]
        np.testing.assert_allclose(new["value"], old["value"], rtol=1e-9)
        assert new["intervals"] == {eps: [[None, None]] * 2 for eps in ("0.01", "0.02")}
    assert record["summary"]["unbounded"] == {"0.01": 1, "0.02": 1}


def test_what_has_no_interval_is_said_in_words(folder) -> None:
    with np.load(folder / "data.npz") as data:
        x = data["x"]
    model = lipcert.load(folder / "linear2.onnx")
    huge = 3e38 * np.ones_like(x)
    found = dict(rows(lipcert.intervals(model, huge[:1], "1")))
    assert found["widest interval at eps 1, mean"] == "no bound for the sample"
    found = dict(rows(lipcert.intervals(model, huge[:3], "1")))
    assert found["widest interval at eps 1, mean"] == "no bound for any of the 3 samples"
    some = np.concatenate([x[:2], huge[:1]])
    found = dict(rows(lipcert.intervals(model, some, "1")))
    assert (
        "over 2 of 3 samples; no bound for the other 1" in found["widest interval at eps 1, mean"]
    )
