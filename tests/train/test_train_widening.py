"""What files come as: in float16, with several outputs, with an input of whole numbers."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from train_models import run

import lipcert
from lipcert.cli.main import main
from lipcert.data import load_dataset
from lipcert.loading.widening import widened
from lipcert.train.trainable import Trainable

QUICK = (
    "--data", "digits", "--eps", "0.1", "--epochs", "1", "--train-limit", "160", "--batch-size",
    "32", "--threads", "1", "--limit", "8", "--effort", "fast", "--preset", "published",
)  # fmt: skip
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def weights(scale: float = 1.0) -> dict[str, np.ndarray]:
    """Of one hidden layer of random ReLUs, and a head fitted to the digits."""
    random, digits = np.random.default_rng(0), load_dataset("digits", split="train")
    images = digits.images.reshape(len(digits), -1).astype(np.float64)
    images = images / 255 if images.max() > 1 else images
    w1, b1 = random.standard_normal((32, 64)) / 4, random.standard_normal(32) / 8
    hidden = np.maximum(images @ w1.T + b1, 0)
    hidden = np.concatenate([hidden, np.ones((len(hidden), 1))], 1)
    fit = np.linalg.lstsq(hidden, np.eye(10)[digits.labels], rcond=None)[0]
    return {"w1": w1 / scale, "b1": b1, "w2": fit[:-1].T.copy(), "b2": fit[-1]}


def model(
    nodes: list, tensors: dict[str, np.ndarray], kinds: tuple[int, int] = (FLOAT, FLOAT),
    more: tuple[str, ...] = (),
) -> onnx.ModelProto:  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", kinds[1], ["N", 10])]
    outputs += [helper.make_tensor_value_info(name, kinds[1], ["N", 32]) for name in more]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kinds[0], ["N", 1, 8, 8])],
        outputs[::-1],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def core(source: str, result: str) -> list:
    node = helper.make_node
    return [
        node("Flatten", [source], ["f"]),
        node("Gemm", ["f", "w1", "b1"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w2", "b2"], [result], transB=1),
    ]


def cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], to=to)


def halves(stored: str) -> onnx.ModelProto:
    tensors = {name: value.astype(np.float16) for name, value in weights().items()}
    if stored == "everywhere":
        return model(core("x", "y"), tensors, (HALF, HALF))
    if stored == "inside":
        return model([cast("x", "xh", HALF), *core("xh", "yh"), cast("yh", "y", FLOAT)], tensors)
    up = [cast(f"{name}h", name, FLOAT) for name in tensors]
    return model([*up, *core("x", "y")], {f"{name}h": value for name, value in tensors.items()})


def the_run(tmp_path, made: onnx.ModelProto, *more: str) -> dict:
    onnx.save(made, tmp_path / "model.onnx")
    arguments = ["finetune", str(tmp_path / "model.onnx"), *QUICK, *more]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    return json.loads((tmp_path / "run" / "recipe.json").read_text())


@pytest.mark.parametrize("stored", ["everywhere", "inside", "weights"])
def test_a_file_of_float16_is_trained_in_float32_and_certified(tmp_path, capsys, stored):
    recipe = the_run(tmp_path, halves(stored), "--verbose")
    assert "tuned file is of float32" in " ".join(capsys.readouterr().err.split())
    tuned = onnx.load(tmp_path / "run" / "model.onnx")
    kinds = {tensor.data_type for tensor in tuned.graph.initializer}
    kinds |= {
        value.type.tensor_type.elem_type for value in (*tuned.graph.input, *tuned.graph.output)
    }
    assert HALF not in kinds
    assert not lipcert.load(tmp_path / "run" / "model.onnx").loaded.half
    assert len(recipe["parameters"]) == 5  # the threshold among them
    assert min(recipe["results"][name]["clean"] for name in ("before", "after")) >= 0.75
    assert recipe["results"]["after"]["certified"] > 0


@pytest.mark.parametrize("stored", ["everywhere", "inside", "weights"])
def test_in_float32_it_starts_as_what_it_was(stored):
    made = halves(stored)
    assert widened(made)
    assert not widened(made)
    trainable = Trainable(made, "model.onnx", lambda network: network)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    halved = x.half() if stored == "everywhere" else x
    assert torch.allclose(trainable(x), run(halves(stored), halved).float(), atol=5e-3)
    exact = {name: value.astype(np.float16) for name, value in weights().items()}
    for name, value in trainable.weights().items():
        assert (value.numpy() == exact[name.removesuffix("h")]).all()


def test_one_of_several_outputs_is_trained(tmp_path, capsys):
    tensors = {name: value.astype(np.float32) for name, value in weights().items()}
    made = model(core("x", "y"), tensors, more=("r",))
    onnx.save(made, tmp_path / "model.onnx")
    arguments = ["finetune", str(tmp_path / "model.onnx"), *QUICK, "--output", str(tmp_path / "no")]
    assert main(arguments) == 3
    assert "--output-name" in capsys.readouterr().err
    recipe = the_run(tmp_path, made, "--output-name", "y")
    assert recipe["source"]["output"] == "y"
    tuned = onnx.load(tmp_path / "run" / "model.onnx")
    assert [value.name for value in tuned.graph.output] == ["y"]
    assert recipe["results"]["after"]["clean"] >= 0.75


def test_whole_numbers_from_0_to_255_are_what_it_is_trained_with(tmp_path, capsys):
    tensors = {name: value.astype(np.float32) for name, value in weights(255.0).items()}
    made = model([cast("x", "xf", FLOAT), *core("xf", "y")], tensors, (TensorProto.UINT8, FLOAT))
    recipe = the_run(tmp_path, made, "--lr", "1e-5", "--lr-end", "1e-6")
    assert recipe["source"]["preprocessing"]["value_range"] == [0.0, 255.0]
    assert min(recipe["results"][name]["clean"] for name in ("before", "after")) >= 0.75
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert certificate["model"]["preprocessing"]["value_range"] == [0.0, 255.0]
