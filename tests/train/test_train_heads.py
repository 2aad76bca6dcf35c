"""Files that end in a head that reading leaves out, or in an activation, are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lipcert
from lipcert.cli.main import main
from lipcert.errors import InternalError
from lipcert.loading.cross_check import as_deployed
from lipcert.options import Epsilon, Options
from lipcert.run import DataSource, Execution, Preprocessing
from lipcert.run.progress import Watch
from lipcert.train.export import export
from lipcert.train.finetune import FineTuning, finetune
from lipcert.train.recipe import Recipe
from lipcert.train.trainable import Trainable
from lipcert.train.watch import TrainingWatch

QUICK = (
    "--data", "digits", "--eps", "0.3", "--epochs", "1", "--train-limit", "128", "--batch-size",
    "64", "--threads", "1", "--limit", "2", "--effort", "fast", "--quiet", "--preset", "published",
)  # fmt: skip
HEADS = {
    "Softmax": [("Softmax", {"axis": 1})],
    "LogSoftmax": [("LogSoftmax", {"axis": 1})],
    "Softmax, reshaped": [("Softmax", {"axis": 1}), ("Unsqueeze", {})],
    "Relu": [("Relu", {})],
    "Sigmoid": [("Sigmoid", {})],
}


def with_head(head: str) -> onnx.ModelProto:
    """A small network of digits with this at its end."""
    random = np.random.default_rng(0)
    tensors = {
        "a.w": random.standard_normal((16, 64)) / 8, "a.b": np.zeros(16),
        "b.w": random.standard_normal((10, 16)) / 4, "b.b": np.full(10, 0.5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "a.w", "a.b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b.w", "b.b"], ["l0"], transB=1),
    ]
    for k, (kind, attributes) in enumerate(HEADS[head]):
        inputs = [f"l{k}", *(["axes"] if kind == "Unsqueeze" else [])]
        nodes.append(helper.make_node(kind, inputs, [f"l{k + 1}"], **attributes))
    nodes[-1].output[0] = "y"
    made = [numpy_helper.from_array(t.astype(np.float32), name) for name, t in tensors.items()]
    made.append(numpy_helper.from_array(np.array([2]), "axes"))
    shape = ["N", 10, 1] if HEADS[head][-1][0] == "Unsqueeze" else ["N", 10]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        made,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("head", HEADS)
def test_an_epoch_ends_well_and_can_be_resumed(tmp_path: Path, capsys, head: str) -> None:
    path, folder = tmp_path / "model.onnx", tmp_path / "run"
    onnx.save(with_head(head), path)
    run = ["finetune", str(path), *QUICK, "--output", str(folder)]
    assert main(run) == 0, capsys.readouterr().err
    tuned = lipcert.load(folder / "model.onnx")
    stripped = HEADS[head][0][0] if head == "Sigmoid" or "oftmax" in head else None
    assert tuned.loaded.stripped == stripped
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["results"]["after"]["n"] == 2
    # A threshold on the logits themselves would make ties of them.
    thresholds = [name for name in recipe["parameters"] if name.endswith(".theta")]
    assert thresholds == ["r.theta"]
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    assert main([*run, "--resume"]) == 0, capsys.readouterr().err
    assert (folder / "model.onnx").read_bytes() == content


@pytest.mark.parametrize("head", HEADS)
def test_a_file_that_was_exported_otherwise_is_found(tmp_path: Path, head: str) -> None:
    trainable = Trainable(with_head(head), "model.onnx", lambda network: network)
    samples = torch.rand(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = trainable.weights()
    export(trainable, weights, tmp_path, samples)
    moved = dict(weights)
    moved["b.b"] = weights["b.b"] + torch.linspace(-0.3, 0.3, 10)
    trainable.exported = lambda given: Trainable.exported(trainable, moved)  # type: ignore[method-assign]
    with pytest.raises(InternalError, match="differs by"):
        export(trainable, weights, tmp_path, samples)


def test_every_head_that_is_left_out_is_put_back() -> None:
    logits = np.array([[1.0, 2.0, -3.0]])
    assert (as_deployed(None, logits) == logits).all()
    softmax = as_deployed("Softmax", logits)
    assert np.allclose(softmax, np.exp(logits) / np.exp(logits).sum())
    assert np.allclose(as_deployed("LogSoftmax", logits), np.log(softmax))
    assert np.allclose(as_deployed("Sigmoid", logits), 1 / (1 + np.exp(-logits)))
    with pytest.raises(InternalError, match="no rule puts back"):
        as_deployed("Hardmax", logits)


class Interrupted(Watch):
    """Ctrl-C or SIGTERM as the operator norms of the tuned file are bounded."""

    def stage(self, text: str) -> None:
        if "norms" in text:
            raise KeyboardInterrupt


def test_an_interrupt_after_the_training_says_what_is_kept(tmp_path: Path) -> None:
    onnx.save(with_head("Softmax"), path := tmp_path / "model.onnx")
    folder, eps = tmp_path / "run", Epsilon.parse("0.3")
    job = FineTuning(
        model=path, weights=None, arch=None, data=DataSource("digits", limit=2), train_data=None,
        preprocessing=Preprocessing(),
        recipe=Recipe(eps=eps, epochs=1, ramp=0.5, limit=128, batch_size=64),
        options=Options(eps=(eps,), effort="fast"), execution=Execution(threads=1, output=folder),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt, match=r"model\.onnx: .* --resume"):
        finetune(job, TrainingWatch(), Interrupted())
    assert (folder / "model.onnx").is_file()
    # Nothing was certified yet, so that other options may be chosen now.
    again = replace(
        job, options=Options(eps=(eps,), failure_probability=0.0),
        execution=replace(job.execution, resume=True),
    )  # fmt: skip
    record = finetune(again, TrainingWatch())
    assert record["results"]["after"]["failure_probability"] == 0.0
