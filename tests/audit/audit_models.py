"""Small networks for the tests of the audit, and certificates of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from forging import opened
from onnx import TensorProto, helper, numpy_helper

from lipcert.audit.deployed import Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.program import Program

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits.onnx"
NONE = {"mean": None, "std": None, "layout": None, "value_range": [0.0, 1.0]}


def model(nodes: list[onnx.NodeProto], shape: tuple[int, ...], **arrays: Any) -> onnx.ModelProto:
    """A model from ``x``, of ``(1, *shape)``, to ``y``; arrays are rounded to float32."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a, dtype=np.float32), n) for n, a in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def network(seed: int, activation: str = "Relu", **attributes: Any) -> onnx.ModelProto:
    """A convolution, a batch norm, a residual block and two dense layers, on (1, 2, 4, 4)."""
    random = np.random.default_rng(seed)

    def bent(source: str, output: str) -> onnx.NodeProto:
        slope = " slope" if activation == "PRelu" else ""
        return node(activation, source + slope, output, **attributes)

    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c1 s m mean variance", "n1"),
        bent("n1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 n1", "a"),
        bent("a", "r2"),
        node("AveragePool", "r2", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "p", "f"),
        node("Gemm", "f w3 b3", "h", transB=1),
        # The slopes of a PRelu are those of channels.
        node("LeakyRelu", "h", "r3", alpha=0.3) if activation == "PRelu" else bent("h", "r3"),
        node("MatMul", "r3 w4", "o"),
        node("Add", "o b4", "y"),
    ]
    extra = {"slope": random.uniform(-0.5, 0.9, (3, 1, 1))} if activation == "PRelu" else {}
    return model(
        nodes, (2, 4, 4),
        w1=random.normal(size=(3, 2, 3, 3)) / 3, b1=random.normal(size=3) / 3,
        s=random.uniform(0.5, 2, 3), m=random.normal(size=3) / 3,
        mean=random.normal(size=3) / 3, variance=random.uniform(0.3, 2, 3),
        w2=random.normal(size=(3, 3, 3, 3)) / 4, b2=random.normal(size=3) / 3,
        w3=random.normal(size=(8, 12)) / 2, b3=random.normal(size=8) / 3,
        w4=random.normal(size=(8, 4)) / 2, b4=random.normal(size=4) / 3, **extra,
    )  # fmt: skip


def preprocessing(shape: tuple[int, ...], **changes: Any) -> Preprocessing:
    record = {"preprocessing": NONE | changes, "input_shape": [1, *shape]}
    return Preprocessing.of(record, shape)


def program(made: onnx.ModelProto, front: Preprocessing) -> Program:
    return Program(Interpreter(made, front.shape, softmax=False), front)


def doctored(folder: Path, to: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A copy of a results folder, and what is in it; ``forging.save`` writes it back."""
    shutil.copytree(folder, to)
    return opened(to)
