"""Constants: single nodes evaluated by the reference implementation of ONNX.

Only operators of a list are evaluated, all of them deterministic, and none before the size of
its result and its work are known and charged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from lipcert.loading.allowance import Allowance, TooLarge

Array = NDArray[Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names("""
    Abs Add And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Cos Div Elu Equal
    Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu
    Sigmoid Sign Sin Softplus Sqrt Sub Sum Tanh Where Xor
""")

NOT_LARGER = _names("""
    ArgMax ArgMin Cast CastLike Concat Constant CumSum DepthToSpace Dropout Flatten
    GatherElements Identity LogSoftmax ReduceL1 ReduceL2 ReduceLogSum ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape ScatterElements ScatterND Shape Size
    Slice Softmax SpaceToDepth Split Squeeze Transpose Trilu Unsqueeze
""")

GROWING = _names("ConstantOfShape Expand Gather GatherND Gemm MatMul Pad Range Tile")

REDUCING = frozenset(name for name in NOT_LARGER if name.startswith(("Arg", "Reduce")))

FOLDABLE = ELEMENTWISE | NOT_LARGER | GROWING

# The reference goes through these number by number, in so many times the time of an addition.
INTERPRETED = _names("""
    Celu DepthToSpace Erf Gelu GatherElements GatherND Mish Mod ScatterElements ScatterND Trilu
""")
_ONE_BY_ONE = 512


def evaluate(
    node: onnx.NodeProto,
    version: int,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    allowance: Allowance,
) -> tuple[Array, ...]:
    """The outputs of one node of the default domain at opset ``version``; None: input left out.

    ``attributes``: the node's, with defaults. Results and work are charged first.
    """
    allowance.keep(result_size(node.op_type, attributes, inputs))
    allowance.fold(work(node.op_type, attributes, inputs))
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
        [onnx.helper.make_empty_tensor_value_info(name) for name in names if name],
        [onnx.helper.make_empty_tensor_value_info(name) for name in results],
    )
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if name}
    with np.errstate(all="ignore"):
        outputs = ReferenceEvaluator(graph, opsets={"": version}).run(None, feeds)
    return tuple(np.asarray(output) for output in outputs)


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
