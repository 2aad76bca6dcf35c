"""Small ONNX files, what the certifier says of them, and what onnxruntime makes of the ball."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.loading import load_model, with_preprocessing
from lipcert.options import Epsilon, Options

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
LEVELS = (
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
)

Array = NDArray[Any]
TYPES = {FLOAT: np.float32, DOUBLE: np.float64}


def file_of(
    lines: Sequence[str], kind: int = DOUBLE, *, leaves: int | None = None, size: int = 1,
    classes: int = 2, attributes: dict[str, Any] | None = None, opset: int = 17, **constants: Any,
) -> onnx.ModelProto:  # fmt: skip
    """Lines ``y = Mul a b`` as a file from ``x`` ``(1, size)`` to ``y``; ``f = Float d`` and
    ``d = Double f`` are casts. Python numbers and lists are of type ``kind``, arrays of their own;
    ``attributes`` by the name of the result."""
    nodes = []
    for line in lines:
        result, operator, *inputs = line.replace(" = ", " ").split(" ")
        given = dict((attributes or {}).get(result, {}))
        if operator in ("Float", "Double"):
            operator, given = "Cast", {"to": FLOAT if operator == "Float" else DOUBLE}
        nodes.append(helper.make_node(operator, inputs, [result], **given))
    tensors = [
        numpy_helper.from_array(
            value if isinstance(value, np.ndarray) else np.asarray(value, TYPES[kind]), name
        )
        for name, value in constants.items()
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "graph", [value("x", kind, [1, size])],
        [value("y", leaves or kind, [1, classes])], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def certified(
    model: onnx.ModelProto, x: Sequence[float], folder: Path, *, deployed: Any = "float64",
    method: Any = "local", eps: str = "1e-9",
) -> Sample:  # fmt: skip
    """The verdict of the class that onnxruntime gives at ``x``."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    loaded = load_model(path)
    pixels = torch.tensor([x], dtype=torch.float64)
    label = int(outputs(model, np.asarray([x]))[0].argmax())
    certifier = Certifier(
        with_preprocessing(loaded.network, image_shape=(len(x),)),
        Options((Epsilon.parse(eps),), method=method, deployed=deployed, effort="fast"),
        samples=1,
        softmax=loaded.stripped is not None,
    )
    [sample] = certifier(pixels, torch.tensor([label]), [0])
    return sample


def outputs(model: onnx.ModelProto, points: Array, level: Any = LEVELS[0]) -> Array:
    """``(n, K)``: what onnxruntime gives for points ``(n, size)``, one by one."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kind = TYPES[model.graph.input[0].type.tensor_type.elem_type]
    found = [session.run(None, {"x": point[None].astype(kind)})[0] for point in points]
    return np.stack(found).reshape(len(points), -1).astype(np.float64)


def flipped(model: onnx.ModelProto, x: Sequence[float], points: Array, level: Any) -> Array:
    """Which points are not strictly in the class of ``x``."""
    label = int(outputs(model, np.asarray([x]))[0].argmax())
    found = outputs(model, points, level)
    own, others = found[:, label], np.delete(found, label, 1)
    return ~(np.isfinite(found).all(1) & (own > others.max(1)))
