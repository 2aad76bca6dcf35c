"""Resize and Upsample: nearest moves values, linear mixes neighbours along one axis after another.

Which places, and with what weights, is a constant of the node. onnxruntime computes it: nearest
from the places of the values instead of the values, linear from a unit matrix in the place of each
axis, so that the weights are those of the deployed file to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import helper

from lipcert.loading.assembler import Variable
from lipcert.loading.runtime import Runtime
from lipcert.loading.value import Array, Call, Unsupported

_IR_VERSION = 8
N = TypeVar("N", int, float)


def _extents(call: Call) -> tuple[list[int], list[float] | None]:
    """Of the result, and the scales where it is these that are given."""
    x, attributes = call.variable(0), call.attributes
    old = call.node.op_type == "Upsample" or call.version < 11
    if old and "scales" in attributes:
        scales = [float(s) for s in attributes["scales"]]
    else:
        place = 1 if old else 2
        scales = [float(s) for s in call.array(place).reshape(-1)] if call.has(place) else []
        scales = _all(scales, [1.0] * len(x.shape), attributes)
    if not old and call.has(3):
        sizes = _all([int(n) for n in call.array(3).reshape(-1)], list(x.shape), attributes)
        if len(sizes) != len(x.shape):
            raise Unsupported(f"sizes {sizes} for {list(x.shape)}")
        return sizes, None
    if len(scales) != len(x.shape) or not all(0 < s < 2.0**20 for s in scales):
        raise Unsupported(f"scales {scales} for {list(x.shape)}")
    pairs = zip(x.shape, scales, strict=True)
    return [int(np.floor(np.float32(n) * np.float32(s))) for n, s in pairs], scales


def _all(given: list[N], others: list[N], attributes: Mapping[str, Any]) -> list[N]:
    """Of all axes, where only some are named."""
    axes = attributes.get("axes")
    if not axes or not given:
        return given
    if len(axes) != len(given) or not all(-len(others) <= axis < len(others) for axis in axes):
        raise Unsupported(f"axes {list(axes)} of {len(others)}")
    found = list(others)
    for axis, value in zip(axes, given, strict=True):
        found[axis] = value
    return found


def _resize(call: Call) -> Variable:
    x, attributes = call.variable(0), call.attributes
    mode = attributes.get("mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"mode {mode}: only nearest, linear and cubic")
    if attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("keep_aspect_ratio_policy: give all sizes")
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Unsupported("coordinate_transformation_mode tf_crop_and_resize")
    sizes, scales = _extents(call)
    if not sizes or sizes[0] != x.shape[0] or min(sizes) < 1:
        raise Unsupported(f"from {list(x.shape)} to {sizes}: the first axis, of samples, changes")
    if scales is not None and scales[0] != 1.0:
        raise Unsupported(f"scales {scales}: the first axis, of samples, changes")
    assembler = call.assembler
    if mode == "nearest":
        # One sample tells the places of all.
        space, new = x.shape[1:], sizes[1:]
        count = int(np.prod(space))
        assembler.allowance.move(int(np.prod(sizes)))
        index = np.arange(count, dtype=np.int32).reshape(1, *space)
        [found] = _run(call, index, [1, *new], scales and [1.0, *scales[1:]])
        start = np.arange(x.shape[0], dtype=np.int64) * count
        whole = start.reshape(x.shape[0], *(1,) * len(space)) + found.astype(np.int64)
        return assembler.select(x, whole)
    for axis in range(1, len(sizes)):
        if sizes[axis] != x.shape[axis] or (scales is not None and scales[axis] != 1):
            x = _along(call, x, axis, sizes[axis], None if scales is None else scales[axis])
    return x


def _along(call: Call, x: Variable, axis: int, size: int, scale: float | None) -> Variable:
    """One axis, by the matrix that onnxruntime makes of unit vectors."""
    assembler, old = call.assembler, x.shape[axis]
    assembler.allowance.keep(old * (old + size))
    units = np.eye(old, dtype=np.float32).reshape(1, old, old, 1)
    [matrix] = _run(
        call, units, [1, old, size, 1], None if scale is None else [1.0, 1.0, scale, 1.0]
    )
    weight = torch.from_numpy(matrix.reshape(old, size).T.astype(np.float64).copy())
    if not bool(weight.isfinite().all()) or not bool((weight.sum(1) - 1).abs().max() < 1e-4):
        raise Unsupported("its weights, by onnxruntime, are no means")
    swap = [*(a for a in range(len(x.shape)) if a != axis), axis]
    y = assembler.dense(assembler.transpose(x, swap), weight)
    return assembler.transpose(y, [swap.index(a) for a in range(len(swap))])


def _run(call: Call, value: Array, sizes: list[int], scales: list[float] | None) -> list[Array]:
    """The node on other values, with the same attributes."""
    node = onnx.NodeProto()
    node.CopyFrom(call.node)
    del node.input[:], node.output[:]
    kept = [attribute for attribute in node.attribute if attribute.name != "axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.output.append("out")
    old = node.op_type == "Upsample" or call.version < 11
    feeds: dict[str, Array] = {"x": value}
    given = "sizes" if scales is None else "scales"
    feeds[given] = np.array(
        sizes if scales is None else scales, np.int64 if scales is None else "f4"
    )
    if old and "scales" in call.attributes:
        feeds.pop("scales")
        for attribute in node.attribute:
            if attribute.name == "scales":
                attribute.floats[:] = scales
        node.input.extend(["x"])
    elif old:
        node.input.extend(["x", "scales"])
    else:
        node.input.extend(["x", "", "scales"] if scales is not None else ["x", "", "", "sizes"])
    graph = helper.make_graph(
        [node], "node",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
        ],
        [helper.make_empty_tensor_value_info("out")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", call.version)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return list(Runtime(model.SerializeToString(), call.node.op_type).results(feeds))


RESIZE: dict[str, Callable[[Call], Variable]] = {"Resize": _resize, "Upsample": _resize}
