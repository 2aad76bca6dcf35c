"""Networks as ONNX graphs, to be trained from scratch.

``4c3f``, ``6c2f``, ``8c2f`` are those of Huang et al. (NeurIPS 2021): convolutions are ``(outputs,
kernel, stride, padding)``, the numbers after them fully connected layers; ReLU stands between all
of them, and ``--activation`` makes of it what the paper has. ``2c2f`` is one of the same kind for
small images and short budgets, after that of Leino et al. (ICML 2021) and twice as wide.

``liresnet`` has linear residual blocks (Hu et al., NeurIPS 2023): ``x + W ∗ x`` and an activation
behind it, so that a block is one linear map, whose norm is at most ``1 + ‖W‖`` and known as that of
any other; behind a convolution that brings images to a quarter of their sides.

``lip-patch`` consists of isometries, but for its last layer: one matrix for each patch of 4×4
pixels, then matrices across channels alone, with MaxMin behind each, and between them an eighth of
the channels moves one patch to each of the four sides. It is trained by ``lipcert.train.patches``.
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
    """``blocks``: so many linear residual blocks behind the convolutions."""

    convolutions: tuple[Layer, ...]
    dense: tuple[int, ...]
    blocks: int = 0


@dataclass(frozen=True)
class PatchArchitecture:
    """``depth`` matrices of ``width`` channels, over patches of ``patch`` pixels a side."""

    width: int
    depth: int
    patch: int = 4


ARCHITECTURES: dict[str, Architecture | PatchArchitecture] = {
    "lip-patch": PatchArchitecture(128, 8),
    "lip-patch-wide": PatchArchitecture(192, 10),
    "liresnet": Architecture(((96, 6, 4, 1),), (256,), blocks=5),
    "2c2f": Architecture(((32, 4, 2, 1), (64, 4, 2, 1)), (256,)),
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
    if isinstance(wanted, PatchArchitecture):
        return _patches(graph, name, wanted, image_shape, classes)
    channels, *space = image_shape
    for number, (outputs, kernel, stride, padding) in enumerate(wanted.convolutions, start=1):
        weight = (outputs, channels, kernel, kernel)
        graph.layer(f"conv{number}", "Conv", weight, strides=[stride] * 2, pads=[padding] * 4)
        graph.relu(f"relu{number}")
        channels = outputs
        space = [(size + 2 * padding - kernel) // stride + 1 for size in space]
    if min(space) < 1:
        raise UsageError(f"--arch {name}: images {list(image_shape)} are too small for it")
    for number in range(1, wanted.blocks + 1):
        graph.block(f"block{number}", channels, share=1 / wanted.blocks)
        graph.relu(f"relu{len(wanted.convolutions) + number}")
    graph.node("Flatten", "flatten")
    inputs = channels * math.prod(space)
    for number, outputs in enumerate(wanted.dense, start=1):
        graph.layer(f"dense{number}", "Gemm", (outputs, inputs), transB=1)
        graph.relu(f"relu{len(wanted.convolutions) + wanted.blocks + number}")
        inputs = outputs
    graph.layer("logits", "Gemm", (classes, inputs), transB=1)
    return graph.model(name, image_shape, classes)


def _patches(
    graph: _Graph, name: str, wanted: PatchArchitecture, shape: tuple[int, ...], classes: int
) -> onnx.ModelProto:
    channels, *space = shape
    size = wanted.patch
    if any(side % size or side < 2 * size for side in space) or channels * size**2 > wanted.width:
        raise UsageError(
            f"--arch {name}: takes images whose sides are multiples of {size} from {2 * size} up, "
            f"of at most {wanted.width // size**2} channels, not {list(shape)}"
        )
    rows, columns = (side // size for side in space)
    stem = (wanted.width, channels, size, size)
    graph.isometry("layer1", stem, strides=[size, size])
    graph.maxmin("layer1")
    for number in range(2, wanted.depth + 1):
        graph.shifts(f"layer{number}", wanted.width, rows, columns)
        graph.isometry(f"layer{number}", (wanted.width, wanted.width, 1, 1))
        graph.maxmin(f"layer{number}")
    graph.node("Flatten", "flatten")
    graph.isometry("logits", (classes, wanted.width * rows * columns), transB=1)
    return graph.model(name, shape, classes)


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
        self._affine(name, operator, _GAIN * weight, **attributes)

    def block(self, name: str, channels: int, share: float) -> None:
        """``x + W ∗ x``, with a ``W`` that has about the norm ``share`` at first."""
        before, kernel = self.last, 3
        weight = _orthonormal((channels, channels, kernel, kernel), self.random) * share / kernel
        self._affine(name, "Conv", weight, pads=[1] * 4)
        self.nodes.append(helper.make_node("Add", [before, self.last], [f"{name}.sum"]))
        self.last = f"{name}.sum"

    def isometry(self, name: str, shape: tuple[int, ...], **attributes: Any) -> None:
        """Norm 1 in every direction, or only for as many as come out."""
        operator = "Conv" if len(shape) > 2 else "Gemm"
        self._affine(name, operator, _orthonormal(shape, self.random), **attributes)

    def _affine(self, name: str, operator: str, weight: np.ndarray, **attributes: Any) -> None:
        for tensor, value in (("weight", weight), ("bias", np.zeros(len(weight)))):
            self._tensor(f"{name}.{tensor}", value.astype(np.float32))
        self.node(operator, name, f"{name}.weight", f"{name}.bias", **attributes)

    def _tensor(self, name: str, value: np.ndarray) -> None:
        self.tensors.append(numpy_helper.from_array(value, name))

    def maxmin(self, name: str) -> None:
        """The larger of the two halves of the channels, then the smaller."""
        halves = [f"{name}.first", f"{name}.second"]
        self.nodes.append(helper.make_node("Split", [self.last], halves, axis=1))
        results = [f"{name}.max", f"{name}.min"]
        for operator, result in zip(("Max", "Min"), results, strict=True):
            self.nodes.append(helper.make_node(operator, halves, [result]))
        self.last = f"{name}.maxmin"
        self.nodes.append(helper.make_node("Concat", results, [self.last], axis=1))

    def shifts(self, name: str, width: int, rows: int, columns: int) -> None:
        """An eighth of the channels each moves one patch to the right, left, down and up, and comes
        back in at the other side."""
        parts = [f"{name}.{side}" for side in ("right", "left", "down", "up")]
        kept, sizes = f"{name}.kept", f"{name}.sizes"
        self.nodes.append(helper.make_node("Split", [self.last, sizes], [*parts, kept], axis=1))
        share = width // 8
        self._tensor(sizes, np.array([share] * 4 + [width - 4 * share], dtype=np.int64))
        moved = []
        for part, axis, step in zip(parts, (3, 3, 2, 2), (1, -1, 1, -1), strict=True):
            order = np.roll(np.arange(columns if axis == 3 else rows), step)
            self._tensor(f"{part}.order", order.astype(np.int64))
            moved.append(f"{part}.moved")
            self.nodes.append(
                helper.make_node("Gather", [part, f"{part}.order"], [moved[-1]], axis=axis)
            )
        self.last = f"{name}.shifted"
        self.nodes.append(helper.make_node("Concat", [*moved, kept], [self.last], axis=1))

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
