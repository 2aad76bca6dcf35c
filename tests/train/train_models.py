"""Small ONNX graphs that are trained in the tests, and onnxruntime to compare with."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from lipcert.options import Epsilon
from lipcert.train.recipe import Recipe
from lipcert.train.rewriting import ActivationChoice, Rewritten, Sharing, rewrite
from lipcert.train.trainable import Trainable

Spec = tuple[str, str, str, dict[str, object]]
Tensors = dict[str, tuple[int, ...] | np.ndarray]


def graph(
    nodes: list[Spec], tensors: Tensors, shape: tuple[int, ...], *, opset: int = 17, seed: int = 0
) -> onnx.ModelProto:
    """``nodes``: operator, inputs, outputs, attributes, from ``x`` to ``y``; ``tensors``: arrays,
    or shapes of random ones."""
    random = np.random.default_rng(seed)
    initializers = []
    for name, value in tensors.items():
        if isinstance(value, tuple):
            scale = np.sqrt(max(1, np.prod(value[1:])))
            value = (random.standard_normal(value) / scale).astype(np.float32)
        initializers.append(numpy_helper.from_array(value, name))
    made = helper.make_graph(
        [
            helper.make_node(kind, given.split(), results.split(), **attributes)
            for kind, given, results, attributes in nodes
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        initializers,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


CONV: list[Spec] = [
    ("Conv", "x c.w c.b", "c", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Relu", "c", "r", {}),
    ("Flatten", "r", "f", {}),
    ("Gemm", "f d.w d.b", "d", {"transB": 1}),
    ("Relu", "d", "s", {}),
    ("Gemm", "s l.w l.b", "y", {}),
]
CONV_TENSORS: Tensors = {
    "c.w": (4, 2, 3, 3), "c.b": (4,), "d.w": (6, 36), "d.b": (6,), "l.w": (6, 3), "l.b": (3,),
}  # fmt: skip

RESIDUAL: list[Spec] = [
    ("Flatten", "x", "f", {}),
    ("Gemm", "f a.w a.b", "a", {"transB": 1}),
    ("Relu", "a", "r", {}),
    ("Gemm", "r b.w b.b", "b", {"transB": 1}),
    ("Add", "b a", "sum", {}),
    ("Relu", "sum", "s", {}),
    ("Gemm", "s l.w l.b", "y", {"transB": 1}),
]
RESIDUAL_TENSORS: Tensors = {
    "a.w": (8, 72), "a.b": (8,), "b.w": (8, 8), "b.b": (8,), "l.w": (3, 8), "l.b": (3,),
}  # fmt: skip

SMOOTH: list[Spec] = [(kind.replace("Relu", "Sigmoid"), a, b, c) for kind, a, b, c in CONV]

SHAPE = (2, 6, 6)
GRAPHS = {
    "conv": graph(CONV, CONV_TENSORS, SHAPE),
    "residual": graph(RESIDUAL, RESIDUAL_TENSORS, SHAPE, seed=1),
    "sigmoid": graph(SMOOTH, CONV_TENSORS, SHAPE, seed=2),
}


def rewritten(
    model: onnx.ModelProto,
    activation: ActivationChoice = "keep",
    sharing: Sharing = "neuron",
    shape: tuple[int, ...] = SHAPE,
) -> Rewritten:
    image = np.zeros((1, *shape), dtype=np.float32)
    return rewrite(model.SerializeToString(), "model.onnx", activation, sharing, image)


def trainable(
    model: onnx.ModelProto,
    activation: ActivationChoice = "keep",
    shape: tuple[int, ...] = SHAPE,
) -> Trainable:
    changed = rewritten(model, activation, shape=shape)
    made = Trainable(changed.model, "model.onnx", lambda network: network)
    torch.manual_seed(3)
    with torch.no_grad():
        # Thresholds where they matter.
        for name, tensor in zip(made.names, made.tensors, strict=True):
            if name in changed.thresholds:
                sign = 1 if bool(tensor.mean() > 0) else -1
                tensor.copy_(sign * torch.rand(tensor.shape) * 0.5)
    return made


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    """The logits of onnxruntime."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {model.graph.input[0].name: x.numpy()})[0])


def recipe(**changed: object) -> Recipe:
    return Recipe(**({"eps": Epsilon.parse("0.3"), "epochs": 2, "ramp": 1.0} | changed))  # type: ignore[arg-type]
