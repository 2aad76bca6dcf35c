"""The networks of Huang et al. (NeurIPS 2021) as ONNX graphs, to be trained from scratch.

Convolutions are ``(outputs, kernel, stride, padding)``, the numbers after them fully connected
layers; ReLU stands between all of them, and ``--activation`` makes of it what the paper has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipcert.errors import UsageError

_OPSET, _IR = 17, 8
# The norm with which layers start: what activations lose on the way is made up for.
_GAIN = 1.5

Layer = tuple[int, int, int, int]


@dataclass(frozen=True)
class Architecture:
    convolutions: tuple[Layer, ...]
    dense: tuple[int, ...]


ARCHITECTURES = {
    "4c3f": Architecture(
        ((32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1)),
        (512, 512),
    ),
    "6c2f": Architecture(
        ((32, 3, 1, 1), (32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 3, 1, 1), (64, 4, 2, 1)),
        (512,),
    ),
    "8c2f": Architecture(
        (
            (64, 3, 1, 1),
            (64, 3, 1, 1),
            (64, 4, 2, 0),
            (128, 3, 1, 1),
            (128, 3, 1, 1),
            (128, 4, 2, 0),
            (256, 3, 1, 1),
            (256, 4, 2, 0),
        ),
        (256,),
    ),
}


def build(name: str, image_shape: tuple[int, ...], classes: int, seed: int) -> onnx.ModelProto:
    """A fresh network for images ``(C, H, W)``, any number at once.

    Weights are drawn from the seed with orthonormal rows or columns (Saxe et al., 2014), which
    for a norm of 1 let through most; biases are 0.

    Raises ``UsageError`` for an unknown name and for images that it does not take.
    """
    if name not in ARCHITECTURES:
        raise UsageError(
            f"--arch {name!r}: choose {', '.join(ARCHITECTURES)}, or package.module:factory"
        )
    if len(image_shape) != 3:
        raise UsageError(f"--arch {name}: takes images (C, H, W), not {list(image_shape)}")
    wanted, graph = ARCHITECTURES[name], _Graph(np.random.default_rng([seed, 4]))
    channels, *space = image_shape
    for number, (outputs, kernel, stride, padding) in enumerate(wanted.convolutions, start=1):
        weight = (outputs, channels, kernel, kernel)
        graph.layer(f"conv{number}", "Conv", weight, strides=[stride] * 2, pads=[padding] * 4)
        graph.relu(f"relu{number}")
        channels = outputs
        space = [(size + 2 * padding - kernel) // stride + 1 for size in space]
    if min(space) < 1:
        raise UsageError(f"--arch {name}: images {list(image_shape)} are too small for it")
    graph.node("Flatten", "flatten")
    inputs = channels * math.prod(space)
    for number, outputs in enumerate(wanted.dense, start=1):
        graph.layer(f"dense{number}", "Gemm", (outputs, inputs), transB=1)
        graph.relu(f"relu{len(wanted.convolutions) + number}")
        inputs = outputs
    graph.layer("logits", "Gemm", (classes, inputs), transB=1)
    return graph.model(name, image_shape, classes)


def _orthonormal(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A matrix of the first axis by all others, of norm 1 in every direction that it keeps."""
    rows, columns = shape[0], math.prod(shape[1:])
    tall = random.standard_normal((max(rows, columns), min(rows, columns)))
    matrix: np.ndarray = np.linalg.qr(tall)[0]
    return (matrix if rows >= columns else matrix.T).reshape(shape)


class _Graph:
    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.last = "input"
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, operator: str, name: str, *tensors: str, **attributes: Any) -> None:
        inputs = [self.last, *tensors]
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.last = name

    def relu(self, name: str) -> None:
        self.node("Relu", name)

    def layer(self, name: str, operator: str, shape: tuple[int, ...], **attributes: Any) -> None:
        weight = _orthonormal(shape, self.random)
        if operator == "Conv":
            # A pixel is part of (kernel / stride)² patches.
            weight *= attributes["strides"][0] / shape[-1]
        bias = np.zeros(shape[:1])
        for tensor, value in ((f"{name}.weight", _GAIN * weight), (f"{name}.bias", bias)):
            self.tensors.append(numpy_helper.from_array(value.astype(np.float32), tensor))
        self.node(operator, name, f"{name}.weight", f"{name}.bias", **attributes)

    def model(self, name: str, image_shape: tuple[int, ...], classes: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *image_shape])],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, ["N", classes])],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
