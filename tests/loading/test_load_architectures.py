"""Weights alone, of an architecture that has a name."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import load_model
from lipcert.loading.architectures import ARCHITECTURES, build
from lipcert.loading.weights import GRAPH, graph_digest

SHAPE = (1, 16, 16)


def weights(name: str, folder: Path) -> tuple[Path, bytes]:
    model = build(name, SHAPE, 7, seed=3)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    floats = {k: torch.from_numpy(v.copy()) for k, v in tensors.items() if v.dtype == np.float32}
    path = folder / "weights.safetensors"
    save_file({key: value for key, value in floats.items() if value.dim()}, path)
    return path, model.SerializeToString()


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "8c2f"])
def test_weights_fill_the_network_of_that_name(name: str, tmp_path: Path) -> None:
    path, content = weights(name, tmp_path)
    loaded = load_model(path, arch=name, input_shape=SHAPE)
    x = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)
    session = onnxruntime.InferenceSession(content)
    (expected,) = session.run(None, {session.get_inputs()[0].name: x})
    found = loaded.network.logits(torch.from_numpy(x).double()[:, None]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert loaded.format == "safetensors+arch"
    assert list(loaded.files) == [path.name]


def test_names_and_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    path, _ = weights("4c3f", tmp_path)
    with pytest.raises(UsageError, match=r"or one of lip-patch, .*4c3f"):
        load_model(path, arch="5c3f", input_shape=SHAPE)
    with pytest.raises(CannotCertify, match="conv5"):
        load_model(path, arch="6c2f", input_shape=SHAPE)
    save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(CannotCertify, match=r"holds no logits\.bias"):
        load_model(path, arch="4c3f", input_shape=SHAPE)


def test_weights_go_over_the_graph_alone_that_they_were_written_with(tmp_path: Path) -> None:
    """Another activation leaves names and shapes of all tensors as they are."""
    model = build("4c3f", SHAPE, 7, seed=3)
    tensors = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
    }
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, {GRAPH: graph_digest(model)})
    assert load_model(path, arch="4c3f", input_shape=SHAPE).network.classes == 7
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Abs"
    save_file(tensors, path, {GRAPH: graph_digest(model)})
    with pytest.raises(CannotCertify, match="another graph than 4c3f"):
        load_model(path, arch="4c3f", input_shape=SHAPE)
    # What was written before this key had its name says it under another.
    assert GRAPH == "lipcert.graph"
    save_file(tensors, path, {"graph": graph_digest(model)})
    with pytest.raises(CannotCertify, match="another graph than 4c3f"):
        load_model(path, arch="4c3f", input_shape=SHAPE)
    onnx.save(model, tmp_path / "model.onnx")
    assert load_model(tmp_path / "model.onnx", weights=path).network.classes == 7
