"""The check against the deployed file finds every network that is not the deployed one."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from load_models import DOUBLE, FLOAT, Case
from onnx import TensorProto, numpy_helper

from lipcert.errors import CannotCertify
from lipcert.loading import (
    DeployedFile,
    LoadedModel,
    cross_check,
    deployed_logits,
    load_model,
    with_preprocessing,
)
from lipcert.loading.second_reader import second_logits
from lipcert.network import Network
from lipcert.network.operators import Dense

IMAGE = (3, 4, 4)
DENSE: Any = [("Flatten", "x", "f", {}), ("Gemm", "f w b", "z", {"transB": 1})]
WEIGHTS: dict[str, Any] = {"w": (5, 48), "b": (5,)}


def loaded(
    folder: Path,
    last: str = "Relu",
    *,
    nodes: Any = DENSE,
    batch: int | str = "N",
    kind: int = FLOAT,
) -> LoadedModel:
    model = Case("m", [*nodes, (last, "z", "y", {})], (1, *IMAGE), 13, WEIGHTS).model(kind)
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    if isinstance(batch, int):
        dim.dim_value = batch
    path = folder / "model.onnx"
    onnx.save(model, path)
    return load_model(path)


def pixels(count: int = 9) -> Any:
    return np.random.default_rng(0).random((count, *IMAGE)).astype(np.float32)


def test_what_rounding_to_16_bits_could_hide_is_found(tmp_path: Path) -> None:
    made = loaded(tmp_path)
    model = onnx.ModelProto.FromString(made.runtime_bytes)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    half = load_model(tmp_path / "half.onnx")
    assert half.half
    found = cross_check(half, half.network, pixels())
    assert 1e-5 < found.max_relative_difference < 2e-3
    # Less than what 16 bits round, and more than float32 does.
    other = replace(half, network=changed(half.network, 1e-3))
    with pytest.raises(CannotCertify, match="onnxruntime in float32"):
        cross_check(other, other.network, pixels())


def changed(network: Network, by: float) -> Network:
    """The same network with one weight moved."""
    nodes = list(network.nodes)
    [place] = [i for i, node in enumerate(nodes) if isinstance(node.kind, Dense)]
    kind: Any = nodes[place].kind
    weight = kind.weight.clone()
    weight[0] += by
    nodes[place] = replace(nodes[place], kind=replace(kind, weight=weight))
    return Network(tuple(nodes))


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("kind", [FLOAT, DOUBLE])
def test_a_faithful_network_passes(tmp_path: Path, batch: int | str, kind: int) -> None:
    model = loaded(tmp_path, batch=batch, kind=kind)
    net = with_preprocessing(model.network, image_shape=IMAGE, mean=[0.4, 0.5, 0.6], std=[0.2])
    check = cross_check(model, net, pixels())
    assert check.samples == 9
    assert check.max_relative_difference < (1e-5 if kind == FLOAT else 1e-12)
    assert check.onnx2torch_note == "compared"
    assert check.onnx2torch is not None
    assert check.onnx2torch < 1e-5


def test_a_changed_network_is_refused(tmp_path: Path) -> None:
    model = loaded(tmp_path, "Identity")
    with pytest.raises(CannotCertify, match=r"model\.onnx: on sample \d the logits differ"):
        cross_check(model, changed(model.network, 1e-2), pixels()[:, None])


def test_no_samples_check_nothing(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    with pytest.raises(CannotCertify, match="no samples"):
        cross_check(model, model.network, pixels(0)[:, None])


@pytest.mark.parametrize("last", ["Softmax", "LogSoftmax"])
def test_the_softmax_is_put_back(tmp_path: Path, last: str) -> None:
    model = loaded(tmp_path, last)
    assert model.stripped == last
    assert cross_check(model, model.network, pixels()).max_relative_difference < 1e-5


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = loaded(tmp_path, "Identity")
    with pytest.raises(CannotCertify, match="not finite"):
        cross_check(model, model.network, pixels() * np.float32(np.inf))


def test_another_opinion_of_the_second_reader_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tmp_path, "Identity")
    monkeypatch.setattr(
        importlib.import_module("lipcert.loading.cross_check"),
        "second_logits",
        lambda content, inputs: ([np.ones((1, 5), np.float32) for _ in inputs], "compared"),
    )
    with pytest.raises(CannotCertify, match="differ from onnx2torch's"):
        cross_check(model, model.network, pixels())


def test_the_second_reader_may_fail(tmp_path: Path) -> None:
    model = loaded(tmp_path, nodes=[*DENSE[:1], ("Gemm", "f w b", "g", {"transB": 1}),
                                    ("HardSigmoid", "g", "z", {})])  # fmt: skip
    check = cross_check(model, model.network, pixels())
    assert check.onnx2torch is None or check.onnx2torch < 1e-5
    assert second_logits(b"", [pixels()])[0] is None
    split = Case("s", [("Relu", "x", "r", {}), ("Split", "r", "a y", {"axis": 1})], (1, 4), 13)
    values, note = second_logits(split.model().SerializeToString(), [np.ones((1, 4), np.float32)])
    assert values is None
    assert note == "not available: the output is one result of several"


@pytest.mark.parametrize("batch", ["N", 1])
def test_the_deployed_file_runs_on_a_whole_set(tmp_path: Path, batch: int | str) -> None:
    model = loaded(tmp_path, batch=batch)
    net = with_preprocessing(model.network, image_shape=IMAGE, std=[0.5])
    x = pixels(30)
    found = deployed_logits(model, net, x, batch=8)
    expected = net.logits(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


MIXING = [*DENSE[:1], ("Gemm", "f w b", "g", {"transB": 1}),
          ("ReduceMean", "g", "m", {"axes": [0]}), ("Add", "g m", "z", {})]  # fmt: skip


def test_a_file_that_mixes_its_samples_is_refused_but_for_a_batch_of_one(tmp_path: Path) -> None:
    """A mean over the batch axis is the identity for one sample, and wrong for several."""
    with pytest.raises(CannotCertify, match="ReduceMean-13 at m: mixes the samples of a batch"):
        loaded(tmp_path, nodes=MIXING)
    single = Case("m", [*MIXING, ("Relu", "z", "y", {})], (1, *IMAGE), 13, WEIGHTS, batch=1)
    onnx.save(single.model(), tmp_path / "single.onnx")
    model = load_model(tmp_path / "single.onnx")
    assert not model.any_batch
    x = pixels()
    found = deployed_logits(model, model.network, x)
    np.testing.assert_allclose(
        found, model.network.logits(torch.from_numpy(x).double()).numpy(), rtol=1e-4, atol=1e-5
    )
    assert cross_check(model, model.network, x).samples == len(x)


def test_a_file_that_onnxruntime_mixes_is_refused(tmp_path: Path) -> None:
    """Whatever the reading says: the file itself is run in batches."""
    single = Case("m", [*MIXING, ("Relu", "z", "y", {})], (1, *IMAGE), 13, WEIGHTS, batch=1)
    onnx.save(single.model(), tmp_path / "single.onnx")
    free = Case("m", single.nodes, single.shape, 13, WEIGHTS).model().SerializeToString()
    model = replace(load_model(tmp_path / "single.onnx"), runtime_bytes=free, any_batch=True)
    with pytest.raises(CannotCertify, match="depends on the other samples"):
        cross_check(model, model.network, pixels())


def test_a_baked_batch_of_one_runs_one_by_one(tmp_path: Path) -> None:
    baked = [("Reshape", "x s", "f", {}), *DENSE[1:]]
    case = Case(
        "m", [*baked, ("Relu", "z", "y", {})], (1, *IMAGE), 13, WEIGHTS | {"s": np.array([1, 48])}
    )
    path = tmp_path / "model.onnx"
    onnx.save(case.model(), path)
    model = load_model(path)
    x = pixels()
    found = deployed_logits(model, model.network, x)
    assert found.shape == (9, 5)
    assert cross_check(model, model.network, x).samples == 9


def test_a_network_of_another_model_is_not_taken(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    with pytest.raises(ValueError, match="not the model's"):
        DeployedFile(model, Network(model.network.nodes[:2]))
