"""Operators that only move values: each becomes a ``Select``, whatever its opset.

The ONNX node itself is evaluated on the places of its inputs' values instead of the values;
what comes out says, for each place of the result, which value goes there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import torch

from lipcert.loading.assembler import Variable, places
from lipcert.loading.fold import evaluate, result_size
from lipcert.loading.value import Array, Call, Unsupported
from lipcert.rounding import DOUBLE, HALF, SINGLE

# The types that values may have, and the format of each.
FLOATS = {
    onnx.TensorProto.FLOAT: SINGLE, onnx.TensorProto.DOUBLE: DOUBLE,
    onnx.TensorProto.FLOAT16: HALF,
}  # fmt: skip
TYPES = {own: to for to, own in FLOATS.items()}


def _move(call: Call, slots: Sequence[int], whole: int | None = None) -> list[Variable]:
    """Applies the node to places; ``slots`` are the inputs whose values move, ``whole`` one of
    them all of whose values have to arrive.

    Place 0 stands for the constant 0 of padding; the values of the inputs follow from 1 on.
    """
    parts: list[tuple[int, Array | Variable]] = []
    inputs: list[Array | None] = []
    start = 1
    for slot, value in enumerate(call.inputs):
        if slot in slots and value is not None:
            size = math.prod(value.shape)
            call.assembler.allowance.move(size)
            parts.append((start, value))
            inputs.append(np.arange(start, start + size, dtype=np.int64).reshape(value.shape))
            start += size
        else:
            inputs.append(None if value is None else call.array(slot))
    allowance = call.assembler.allowance
    allowance.move(result_size(call.node.op_type, call.attributes, inputs))
    node, shift = _without_pad_value(call)
    results = evaluate(node, call.version, inputs, call.attributes, allowance)
    if whole is not None:
        wanted = inputs[whole]
        assert wanted is not None
        if not np.isin(wanted, results[0]).all():
            raise Unsupported("two values for one place")
    return [_gather(call, parts, result.astype(np.int64), shift) for result in results]


def _without_pad_value(call: Call) -> tuple[onnx.NodeProto, float]:
    """Before opset 11 the value of Pad is an attribute, which must not pass for a place."""
    value = float(call.attributes.get("value", 0.0)) if call.node.op_type == "Pad" else 0.0
    if value == 0.0:
        return call.node, 0.0
    if not math.isfinite(value):
        raise Unsupported(f"attribute value={value} is not finite")
    node = onnx.NodeProto()
    node.CopyFrom(call.node)
    for attribute in node.attribute:
        if attribute.name == "value":
            attribute.f = 0.0
    return node, value


def _gather(
    call: Call, parts: Sequence[tuple[int, Array | Variable]], result: Array, fill: float
) -> Variable:
    """The value whose places are ``result``: Selects, added up, and a shift by the constants."""
    bias = np.full(result.shape, 0.0)
    bias[result == 0] = fill
    index: dict[Variable, Array] = {}
    for start, value in parts:
        place = result - start
        inside = (place >= 0) & (place < math.prod(value.shape))
        if isinstance(value, Variable):
            index[value] = np.where(inside, place, index.get(value, np.int64(-1)))
        elif inside.any():
            numbers = value.astype(np.float64).reshape(-1)[place[inside]]
            if not np.isfinite(numbers).all():
                raise Unsupported("a constant among its inputs is not finite")
            bias[inside] = numbers
    # A part of which nothing arrives would only add zeros.
    terms = [call.assembler.select(x, at) for x, at in index.items() if (at >= 0).any()]
    if not terms:
        raise Unsupported("its result does not depend on the network's input")
    shift = torch.from_numpy(bias).clone() if bias.any() else None
    return call.assembler.diagonal(call.assembler.sum(terms), None, shift)


def _pad(call: Call) -> list[Variable]:
    pads = call.axes(1, "pads")
    if pads is None or min(pads, default=0) < 0:
        raise Unsupported(f"negative pads {pads}: cut with Slice instead")
    if call.after == "Sigmoid":
        return [_threshold(call)]
    return _move(call, (0, 2))


def _threshold(call: Call) -> Variable:
    """Padding by a threshold behind a sigmoid that was left out is padding by its logit before."""
    value = call.constant(2).item() if call.has(2) else call.attributes.get("value", 0.0)
    mode, axes = call.attributes.get("mode", "constant"), call.axes(3, "axes")
    if not 0 < value < 1 or mode != "constant" or axes is not None:
        raise Unsupported(
            f"a pad of {value:g} behind a sigmoid at the end: only a threshold between 0 and 1"
        )
    pads, shape = call.axes(1, "pads") or [], call.variable(0).shape
    sides = list(zip(pads[: len(shape)], pads[len(shape) :], strict=True))
    call.assembler.allowance.move(math.prod(n + sum(s) for n, s in zip(shape, sides, strict=True)))
    index = np.pad(places(shape), sides, constant_values=-1)
    logit = math.log(value) - math.log1p(-value)
    shift = torch.from_numpy(np.where(index < 0, logit, 0.0)) if logit else None
    padded = call.assembler.select(call.variable(0), index)
    return call.assembler.diagonal(padded, None, shift)


def _rule(*slots: int) -> Callable[[Call], list[Variable]]:
    return lambda call: _move(call, slots)


def _scatter(call: Call) -> list[Variable]:
    """Values that take the places of others, as an assignment to ``x[:, ::2]`` is written."""
    reduction = call.attributes.get("reduction") or "none"
    if reduction != "none":
        raise Unsupported(f"attribute reduction={reduction!r}")
    if isinstance(call.inputs[1], Variable):
        raise Unsupported("indices that depend on the network's input")
    return _move(call, (0, 2), whole=2)


def _concat(call: Call) -> list[Variable]:
    return _move(call, range(len(call.inputs)))


def _identity(call: Call) -> Variable:
    return call.variable(0)


def _dropout(call: Call) -> Variable:
    if call.has(2) and bool(call.array(2).any()):
        raise Unsupported("training_mode is on; export the model in evaluation mode")
    return call.variable(0)


def _cast(call: Call) -> Variable | Array:
    """Between floating types: a narrower one rounds, a wider one does nothing.

    After a softmax that was left out the reader keeps account of the types.
    """
    if call.node.op_type == "Cast":
        to = call.attributes["to"]
    elif (like := call.formats[1]) is not None:
        to = TYPES[like]
    else:
        to = onnx.helper.np_dtype_to_tensor_dtype(call.array(1).dtype)
    if not isinstance(call.inputs[0], Variable):
        # Only the type of the second input counts, and that is known.
        with np.errstate(over="ignore"):
            return call.array(0).astype(onnx.helper.tensor_dtype_to_np_dtype(to))
    if to not in FLOATS:
        name = onnx.TensorProto.DataType.Name(to)
        raise Unsupported(f"a cast to {name} of a value that depends on the network's input")
    x, assembler, before = call.variable(0), call.assembler, call.assembler.own
    assembler.own = FLOATS[to]
    if call.after or assembler.own.unit <= before.unit:
        return x
    call.notes.append(f"rounds to {onnx.TensorProto.DataType.Name(to)}, which is charged")
    return assembler.stored(x, assembler.own)


def _shape(call: Call) -> Array:
    (result,) = evaluate(
        call.node,
        call.version,
        [np.broadcast_to(np.float32(0), call.variable(0).shape)],
        call.attributes,
        call.assembler.allowance,
    )
    return result


MOVES: dict[str, Callable[[Call], Variable | Array | list[Variable]]] = {
    "Cast": _cast,
    "CastLike": _cast,
    "Concat": _concat,
    "DepthToSpace": _rule(0),
    "Dropout": _dropout,
    "Expand": _rule(0),
    "Flatten": _rule(0),
    "Gather": _rule(0),
    "GatherElements": _rule(0),
    "GatherND": _rule(0),
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _rule(0),
    "Shape": _shape,
    "Size": _shape,
    "Slice": _rule(0),
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "SpaceToDepth": _rule(0),
    "Split": _rule(0),
    "Squeeze": _rule(0),
    "Tile": _rule(0),
    "Transpose": _rule(0),
    "Unsqueeze": _rule(0),
    "Where": _rule(1, 2),
}
