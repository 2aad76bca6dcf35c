"""Constants: single nodes, evaluated one by one.

Only operators of a list are evaluated, all of them deterministic, and none before the size of
its result and its work are known and charged. What computes is left to onnxruntime, whose constants
are then the deployed ones to the last bit, in the types of the file; what only moves values, to the
reference implementation of ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from lipcert.loading.allowance import GraphLimits, TooLarge
from lipcert.loading.runtime import Runtime

Array = NDArray[Any]


# How many units in the last place a constant may be off by the order of its sum.
_FEW = 4.0
# What every onnxruntime in use reads.
_IR_VERSION = 8
_FLOATS = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)  # fmt: skip


_FOUR_BITS = {"int4": np.int8, "uint4": np.uint8}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names("""
    Abs Add And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Cos Div Elu Equal
    Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu
    Sigmoid Sign Sin Softplus Sqrt Sub Sum Tanh Where Xor
""")

NOT_LARGER = _names("""
    ArgMax ArgMin Cast CastLike Concat Constant CumSum DepthToSpace DequantizeLinear Dropout Flatten
    GatherElements Identity LogSoftmax QuantizeLinear ReduceL1 ReduceL2 ReduceLogSum ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape ScatterElements ScatterND
    Shape Size Slice Softmax SpaceToDepth Split Squeeze Transpose Trilu Unsqueeze
""")

GROWING = _names("ConstantOfShape Expand Gather GatherND Gemm MatMul Pad Range Tile")

REDUCING = frozenset(name for name in NOT_LARGER if name.startswith(("Arg", "Reduce")))

FOLDABLE = ELEMENTWISE | NOT_LARGER | GROWING

MOVING = _names("""
    Concat Constant ConstantOfShape DepthToSpace Dropout Expand Flatten Gather GatherElements
    GatherND Identity Pad Reshape Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu
    Unsqueeze Where
""")


SUMMING = _names("""
    CumSum Gemm LogSoftmax MatMul Mean ReduceL1 ReduceL2 ReduceLogSum ReduceMean ReduceProd
    ReduceSum ReduceSumSquare Softmax Sum
""")

# The reference goes through these number by number, in so many times the time of an addition.
INTERPRETED = _names("""
    Celu DepthToSpace Erf Gelu GatherElements GatherND Mish Mod ScatterElements ScatterND Trilu
""")
# Steps that an operator counts for a value where the reference computes it in Python, one by one.
_ONE_BY_ONE = 512


def evaluate(
    node: onnx.NodeProto,
    version: int,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    allowance: GraphLimits,
) -> tuple[Array, ...]:
    """The outputs of one node of the default domain at opset ``version``, by the reference
    implementation; None: input left out.

    ``attributes``: the node's, with defaults. Results and work are charged first.
    """
    allowance.keep(result_size(node.op_type, attributes, inputs))
    allowance.fold(work(node.op_type, attributes, inputs))
    return _reference(node, version, inputs)


def computed(
    node: onnx.NodeProto,
    version: int,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    allowance: GraphLimits,
) -> tuple[Array, ...]:
    """The same as the deployed file has it. ``CannotCertify`` where onnxruntime cannot compute it,
    ``ValueError`` where runtimes may differ."""
    allowance.keep(result_size(node.op_type, attributes, inputs))
    allowance.fold(work(node.op_type, attributes, inputs))
    given = [value for value in inputs if value is not None]
    if node.op_type in MOVING or (node.op_type == "Cast" and _between_floats(node, given[0])):
        return _reference(node, version, inputs)
    outputs = _by_onnxruntime(node, version, inputs)
    if node.op_type in SUMMING:
        _check_order(node, version, inputs, outputs)
    return outputs


def _reference(
    node: onnx.NodeProto, version: int, inputs: Sequence[Array | None]
) -> tuple[Array, ...]:
    graph, feeds = _alone(node, inputs)
    with np.errstate(all="ignore"):
        outputs = ReferenceEvaluator(graph, opsets={"": version}).run(None, feeds)
    return tuple(np.asarray(output) for output in outputs)


def _check_order(
    node: onnx.NodeProto, version: int, inputs: Sequence[Array | None], outputs: Sequence[Array]
) -> None:
    """Raises ``ValueError`` where the order of a sum matters to a constant: where it is further
    than a few roundings from the same in float64."""
    if not all(output.dtype in (np.float16, np.float32, np.float64) for output in outputs):
        return
    wide = [v.astype(np.float64) if v is not None and v.dtype.kind == "f" else v for v in inputs]
    for output, exact in zip(outputs, _reference(node, version, wide), strict=True):
        allowed = _FEW * np.finfo(output.dtype).eps * np.abs(exact) + np.finfo(output.dtype).tiny
        if not (np.abs(output - exact) <= allowed).all():
            raise ValueError(
                "a constant that depends on the order of a sum; export the model with the result "
                "in its place"
            )


def _by_onnxruntime(
    node: onnx.NodeProto, version: int, inputs: Sequence[Array | None]
) -> tuple[Array, ...]:
    graph, feeds = _alone(node, inputs)
    opsets = [onnx.helper.make_opsetid("", version)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return Runtime(model.SerializeToString(), node.op_type).results(feeds)


def _between_floats(node: onnx.NodeProto, value: Array) -> bool:
    """Whether a Cast rounds once, to nearest, as every implementation does."""
    to = next(a.i for a in node.attribute if a.name == "to")
    return onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in _FLOATS and to in _FLOATS


def _alone(
    node: onnx.NodeProto, inputs: Sequence[Array | None]
) -> tuple[onnx.GraphProto, dict[str, Array]]:
    """A graph of this node alone, and what goes into it; numbers of 4 bits in 8."""
    inputs = [
        value if value is None or value.dtype.name not in _FOUR_BITS
        else value.astype(_FOUR_BITS[value.dtype.name])
        for value in inputs
    ]  # fmt: skip
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.domain = ""
    names = ["" if value is None else f"in{k}" for k, value in enumerate(inputs)]
    results = [f"out{k}" for k in range(len(node.output))]
    del alone.input[:], alone.output[:]
    alone.input.extend(names)
    alone.output.extend(results)
    graph = onnx.helper.make_graph(
        [alone],
        "node",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in zip(names, inputs, strict=True)
            if value is not None
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in results],
    )
    return graph, {n: v for n, v in zip(names, inputs, strict=True) if v is not None}


def result_size(
    operator: str, attributes: Mapping[str, Any], inputs: Sequence[Array | None]
) -> int:
    """An upper bound of how many numbers all outputs of the node hold, from its inputs.

    Raises ``TooLarge`` for an operator of which none is known.
    """
    if operator not in FOLDABLE:
        raise TooLarge(f"how large its result is, is not known before {operator} is computed")
    given = [value for value in inputs if value is not None]
    if operator in ELEMENTWISE:
        return math.prod(np.broadcast_shapes(*(value.shape for value in given)))
    if operator in REDUCING:
        # Of no numbers at all there is a sum as well.
        return math.prod(max(1, extent) for extent in given[0].shape)
    if operator not in GROWING:
        # Shape is the largest of one number, everything else at most what went in, and a mask.
        return 2 * sum(value.size for value in given) + 64
    numbers = [_extents(value) for value in inputs]
    match operator:
        case "ConstantOfShape":
            return _product(numbers[0])
        case "Expand":
            return math.prod(np.broadcast_shapes(given[0].shape, tuple(numbers[1])))
        case "Tile":
            return given[0].size * _product(numbers[1])
        case "Range":
            start, limit, step = (float(value.item()) for value in given)
            return max(0, math.ceil((limit - start) / step))
        case "Pad":
            pads = list(attributes["pads"]) if "pads" in attributes else numbers[1]
            axes = numbers[3] if len(inputs) > 3 and inputs[3] is not None else range(given[0].ndim)
            extents = list(given[0].shape)
            for place, axis in enumerate(axes):
                extents[axis] += max(0, pads[place]) + max(0, pads[place + len(axes)])
            return math.prod(extents)
        case "MatMul":
            left, right = (value.shape if value.ndim > 1 else (1, value.size) for value in given)
            columns = given[1].shape[-1] if given[1].ndim > 1 else 1
            return math.prod((*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], columns))
        case "Gemm":
            rows = int(given[0].shape[1 if attributes.get("transA") else 0])
            return rows * int(given[1].shape[0 if attributes.get("transB") else 1])
        case "Gather":
            extent = given[0].shape[attributes.get("axis", 0)]
            return int(given[1].size * given[0].size // max(1, extent))
        case _:  # GatherND: each index chooses all numbers at most, if it has no place at all.
            return math.prod(given[1].shape[:-1]) * given[0].size


def work(operator: str, attributes: Mapping[str, Any], inputs: Sequence[Array | None]) -> int:
    """About how many multiply-adds a node takes, or what takes as long."""
    given = [value for value in inputs if value is not None]
    size = result_size(operator, attributes, inputs)
    if operator in ("MatMul", "Gemm"):
        axis = 0 if operator == "Gemm" and attributes.get("transA") else -1
        whole = any(value.dtype.kind != "f" or value.dtype.itemsize < 4 for value in given[:2])
        # What no library multiplies goes one by one.
        return size * int(given[0].shape[axis]) * (8 if whole else 1)
    return (_ONE_BY_ONE if operator in INTERPRETED else 1) * (size + sum(v.size for v in given))


def _product(extents: Sequence[int]) -> int:
    """Of extents; ``TooLarge`` where one is negative, as two of them would pass for a size."""
    if min(extents, default=0) < 0:
        raise TooLarge(f"negative extents {list(extents)}")
    return math.prod(extents)


def _extents(value: Array | None) -> list[int]:
    """The input's numbers, where it may be a list of extents or axes: short, and of integers."""
    if value is None or value.size > 64 or not np.issubdtype(value.dtype, np.integer):
        return []
    return [int(number) for number in value.reshape(-1)]
