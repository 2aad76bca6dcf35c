"""What is neither affine nor element-wise: products, attention, normalisation, softmax inside.

Rules for nodes that no other rule takes. Whatever is normalised, multiplied as matrices, or shared
out by a softmax is first moved to the last axes; scales and shifts behind a normalisation are
affine, as the file has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from lipcert.loading.assembler import Variable, number, places
from lipcert.loading.masks import NOTHING_LEFT, Masked, left_out, softmax
from lipcert.loading.pooling import reduced
from lipcert.loading.value import Call, Unsupported, Value, varies
from lipcert.network.activations import absolute
from lipcert.network.joints import (
    Curve,
    InverseLength,
    MatrixProduct,
    Product,
    Quotient,
    Softmax,
    Standardise,
)

_NOTE = "enclosed by its derivative and a remainder"


def _multiply(call: Call) -> Variable:
    return _product(call, call.variable(0), call.variable(1))


def _product(call: Call, left: Variable, right: Variable) -> Variable:
    """Broadcast as ONNX does; of a value with itself the square."""
    if left == right:
        return _curve(call, left, 2.0)
    one, other = _of_one_rank(call, left, right)
    return call.assembler.joint(Product(one.shape, other.shape), [one, other])


def _of_one_rank(call: Call, *values: Variable) -> list[Variable]:
    """With axes of one number in front where some have fewer axes."""
    rank = max(len(x.shape) for x in values)
    return [call.assembler.reshape(x, (*(1,) * (rank - len(x.shape)), *x.shape)) for x in values]


def _divide(call: Call) -> Variable:
    above, below = call.inputs[:2]
    if not isinstance(above, Variable):
        numerator = call.constant(0)
        inverse = _curve(call, call.variable(1), -1.0)
        shape = np.broadcast_shapes(inverse.shape, tuple(numerator.shape))
        return call.assembler.diagonal(call.assembler.expand(inverse, shape), numerator, None)
    if not isinstance(below, Variable):
        raise Unsupported("a division by zero")
    one, other = _of_one_rank(call, above, below)
    return call.assembler.joint(Quotient(one.shape, other.shape), [one, other])


def _curve(call: Call, x: Variable, power: float) -> Variable:
    return call.assembler.joint(Curve(x.shape, "power", power), [x])


def _powered(power: float) -> Callable[[Call], Variable]:
    return lambda call: _curve(call, call.variable(0), power)


def _named(name: str) -> Callable[[Call], Variable]:
    def rule(call: Call) -> Variable:
        x = call.variable(0)
        return call.assembler.joint(Curve(x.shape, name), [x])

    return rule


def _power(call: Call) -> Variable:
    x, exponent = call.variable(0), np.asarray(call.array(1), dtype=np.float64)
    if exponent.size != 1 or exponent.ndim > len(x.shape):
        raise Unsupported("only one constant exponent")
    power = float(exponent.reshape(()))
    if not math.isfinite(power) or not -64 <= power <= 64:
        raise Unsupported(f"an exponent of {power:g}")
    if power == 0:
        raise Unsupported("an exponent of 0: its result does not depend on the input")
    return x if power == 1 else _curve(call, x, power)


def _matmul(call: Call) -> Variable:
    return _matrices(call, call.variable(0), call.variable(1))


def _matrices(call: Call, left: Variable, right: Variable) -> Variable:
    """``left @ right``, axes before the last two broadcast."""
    if len(left.shape) < 2 or len(right.shape) < 2:
        raise Unsupported("a product of a vector and a value that depends on the network's input")
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    if right.shape[-2] != inner:
        raise Unsupported(f"{list(left.shape)} does not meet {list(right.shape)}")
    one = call.assembler.expand(left, (*lead, rows, inner))
    other = call.assembler.expand(right, (*lead, inner, columns))
    return call.assembler.joint(MatrixProduct(lead, rows, inner, columns), [one, other])


def _gemm(call: Call) -> Variable:
    assembler, attributes = call.assembler, call.attributes
    left, right = (
        assembler.transpose(x, (1, 0)) if attributes[name] else x
        for x, name in ((call.variable(0), "transA"), (call.variable(1), "transB"))
    )
    y = _matrices(call, left, right)
    alpha, beta = float(attributes["alpha"]), float(attributes["beta"])
    y = y if alpha == 1 else assembler.diagonal(y, number(alpha), None)
    if not call.has(2):
        return y
    if isinstance(call.inputs[2], Variable):
        c = assembler.expand(call.variable(2), y.shape)
        return assembler.sum([y, c if beta == 1 else assembler.diagonal(c, number(beta), None)])
    return assembler.diagonal(y, None, beta * call.constant(2))


def _einsum(call: Call) -> Variable:
    """Of two values, each of whose axes is in the result, or summed in both: matrix products for
    every place of the axes that all three have."""
    if len(call.inputs) != 2:
        raise Unsupported("only of two values")
    left, right = call.variable(0), call.variable(1)
    equation = call.attributes["equation"].replace(" ", "")
    terms, arrow, result = equation.partition("->")
    parts = terms.split(",")
    refused = Unsupported(f"equation {equation!r} for these shapes")
    if not arrow or len(parts) != 2 or not (terms.replace(",", "") + result).isalpha():
        raise refused
    one, other = parts
    if any(len(set(labels)) != len(labels) for labels in (one, other, result)):
        raise refused
    if (len(one), len(other)) != (len(left.shape), len(right.shape)):
        raise refused
    extents = dict(zip(one, left.shape, strict=True))
    if any(extents.setdefault(a, n) != n for a, n in zip(other, right.shape, strict=True)):
        raise refused
    if (set(one) ^ set(other)) - set(result) or set(result) - set(one) - set(other):
        raise refused
    batch = [a for a in one if a in other and a in result]
    summed = [a for a in one if a in other and a not in result]
    rows = [a for a in one if a not in other]
    columns = [a for a in other if a not in one]

    def arranged(x: Variable, labels: str, first: list[str], last: list[str]) -> Variable:
        x = call.assembler.transpose(x, [labels.index(a) for a in (*batch, *first, *last)])
        sizes = (math.prod(extents[a] for a in axes) for axes in (batch, first, last))
        return call.assembler.reshape(x, tuple(sizes))

    y = _matrices(call, arranged(left, one, rows, summed), arranged(right, other, summed, columns))
    order = [*batch, *rows, *columns]
    y = call.assembler.reshape(y, [extents[a] for a in order])
    return call.assembler.transpose(y, [order.index(a) for a in result])


def _softmax(call: Call) -> Variable:
    x = call.variable(0)
    axis = int(call.attributes["axis"]) % len(x.shape)
    if call.version >= 13:
        return _along(call, x, [axis], lambda y: call.assembler.joint(Softmax(y.shape), [y]))
    # Before opset 13 all axes from this one on are one.
    return _along(
        call, x, list(range(axis, len(x.shape))),
        lambda y: call.assembler.joint(Softmax(y.shape), [y]),
    )  # fmt: skip


def masked_softmax(call: Call, given: Masked) -> Variable:
    """Of scores of which some are left out."""
    axis = int(call.attributes["axis"]) % len(given.scores.shape)
    if call.version < 13 and axis != len(given.scores.shape) - 1:
        raise Unsupported("a mask over several axes at once")
    call.notes.append(_NOTE)
    order = places(given.scores.shape)

    def rule(y: Variable) -> Variable:
        return given.shares(y, np.moveaxis(order, axis, -1), call.assembler)

    return _along(call, given.scores, [axis], rule)


def _along(
    call: Call, x: Variable, axes: Sequence[int], rule: Callable[[Variable], Variable]
) -> Variable:
    """A rule for the last axis, applied to these axes as one."""
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = places(x.shape).transpose([*kept, *axes])
    call.assembler.allowance.move(x.size)
    flat = order.reshape([*(x.shape[axis] for axis in kept), -1])
    y = rule(call.assembler.select(x, flat))
    back = np.argsort(order.reshape(-1)).reshape(x.shape)
    return call.assembler.select(y, back)


def _layer_normalization(call: Call) -> Variable:
    return _layers(call, centred=True)


def _rms_normalization(call: Call) -> Variable:
    return _layers(call, centred=False)


def _layers(call: Call, *, centred: bool) -> Variable:
    x = call.variable(0)
    axis = int(call.attributes["axis"]) % len(x.shape)
    axes = list(range(axis, len(x.shape)))
    y = _normalised(call, x, axes, centred=centred)
    return _scaled(call, y, call.optional(1), call.optional(2))


def _normalised(
    call: Call, x: Variable, axes: Sequence[int], *, centred: bool, name: str = "epsilon"
) -> Variable:
    epsilon = float(call.attributes[name])
    if not 0 <= epsilon < math.inf:
        raise Unsupported(f"attribute {name}={epsilon}")

    def rule(y: Variable) -> Variable:
        inverse = assembler.joint(InverseLength(y.shape, epsilon, centred, True), [y])
        if not centred:
            return assembler.joint(Product(y.shape, inverse.shape), [y, inverse])
        size = y.shape[-1]
        mean = assembler.dense(y, torch.full((1, size), 1 / size, dtype=torch.float64))
        return assembler.joint(Standardise(y.shape), [y, mean, inverse])

    assembler = call.assembler
    return _along(call, x, axes, rule)


def _scaled(call: Call, x: Variable, scale: Tensor | None, bias: Tensor | None) -> Variable:
    for part in (scale, bias):
        if part is not None and np.broadcast_shapes(x.shape, tuple(part.shape)) != x.shape:
            raise Unsupported(f"{list(part.shape)} does not broadcast to {list(x.shape)}")
    return call.assembler.diagonal(x, scale, bias)


def _instance_normalization(call: Call) -> Variable:
    x = call.variable(0)
    y = _normalised(call, x, range(2, len(x.shape)), centred=True)
    spread = (-1, *(1,) * (len(x.shape) - 2))
    return _scaled(call, y, call.constant(1).reshape(spread), call.constant(2).reshape(spread))


def _group_normalization(call: Call) -> Variable:
    """Scale and shift are for each group before opset 21, for each channel since."""
    x, groups = call.variable(0), int(call.attributes["num_groups"])
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise Unsupported(f"{channels} channels in {groups} groups")
    assembler = call.assembler
    parts = assembler.reshape(x, (x.shape[0], groups, channels // groups, *x.shape[2:]))
    y = _normalised(call, parts, range(2, len(parts.shape)), centred=True)
    y = assembler.reshape(y, x.shape)
    scale, bias = (call.constant(k) for k in (1, 2))
    if call.version < 21:
        scale, bias = (t.repeat_interleave(channels // groups) for t in (scale, bias))
    spread = (-1, *(1,) * (len(x.shape) - 2))
    return _scaled(call, y, scale.reshape(spread), bias.reshape(spread))


def _lp_normalization(call: Call) -> Variable:
    x, power = call.variable(0), int(call.attributes["p"])
    if power != 2:
        raise Unsupported(f"attribute p={power}: only the Euclidean norm")
    axis = int(call.attributes["axis"]) % len(x.shape)

    def rule(y: Variable) -> Variable:
        inverse = assembler.joint(InverseLength(y.shape, 0.0, False, False), [y])
        return assembler.joint(Product(y.shape, inverse.shape), [y, inverse])

    assembler = call.assembler
    return _along(call, x, [axis], rule)


def _sum_of_squares(call: Call) -> Variable:
    return reduced(call, _curve(call, call.variable(0), 2.0), "Sum")


def _length(call: Call) -> Variable:
    return _curve(call, _sum_of_squares(call), 0.5)


def _local_response(call: Call) -> Variable:
    """``x / (bias + alpha/size · Σ x²)^beta``, summed over ``size`` channels around each."""
    x, assembler, attributes = call.variable(0), call.assembler, call.attributes
    size, channels = int(attributes["size"]), x.shape[1]
    if size < 1:
        raise Unsupported(f"attribute size={size}")
    squares = _curve(call, x, 2.0)
    index = places(x.shape)
    before, after = (size - 1) // 2, size // 2
    padded = np.pad(
        index, [(0, 0), (before, after), *[(0, 0)] * (len(x.shape) - 2)], constant_values=-1
    )
    assembler.allowance.move(size * x.size)
    window = np.stack([padded[:, k : k + channels] for k in range(size)], -1)
    summed = assembler.dense(
        assembler.select(squares, window), torch.ones(1, size, dtype=torch.float64)
    )
    summed = assembler.reshape(summed, x.shape)
    scale, bias = (float(attributes[name]) for name in ("alpha", "bias"))
    below = assembler.diagonal(summed, number(scale / size), number(bias))
    power = _curve(call, below, float(attributes["beta"]))
    return assembler.joint(Quotient(x.shape, power.shape), [x, power])


def _softsign(call: Call) -> Variable:
    """``x / (1 + |x|)``."""
    x, assembler = call.variable(0), call.assembler
    below = assembler.diagonal(assembler.activation(absolute(), x), None, number(1.0))
    return assembler.joint(Quotient(x.shape, below.shape), [x, below])


def _attention(call: Call) -> Variable:
    """``softmax(scale · Q Kᵀ + mask) V`` for every head, as opset 23 writes it."""
    attributes, assembler = call.attributes, call.assembler
    if attributes.get("softcap"):
        raise Unsupported("attribute softcap")
    if any(call.has(k) for k in range(4, len(call.inputs))):
        raise Unsupported("past keys and values")
    heads = [_heads(call, k, name) for k, name in enumerate(("q", "kv", "kv"))]
    q, k, v = heads
    if q.shape[1] % k.shape[1]:
        raise Unsupported(f"{q.shape[1]} heads of queries for {k.shape[1]} of keys")
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = (assembler.select(x, np.repeat(places(x.shape), repeat, axis=1)) for x in (k, v))
    given = attributes.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if given is None else float(given)
    if scale <= 0:
        raise Unsupported(f"attribute scale {scale:g}")
    # As the operator's definition has it: its root on either side.
    root = number(math.sqrt(scale))
    q, k = (assembler.diagonal(x, root, None) for x in (q, k))
    scores = _matrices(call, q, assembler.transpose(k, (0, 1, 3, 2)))
    kept = np.ones(scores.shape, dtype=bool)
    if attributes.get("is_causal"):
        kept = np.tril(kept)
    if call.has(3):
        mask = call.array(3)
        left = mask if mask.dtype == bool else ~left_out(mask)
        kept = kept & left
        if mask.dtype != bool:
            rest = np.where(left, mask, 0.0).astype(np.float64)
            if not np.isfinite(rest).all():
                raise Unsupported("a mask with values that are not finite")
            scores = _scaled(call, scores, None, torch.from_numpy(rest).clone())
    if not kept.any(-1).all():
        raise Unsupported(NOTHING_LEFT)
    if kept.all():
        shares = assembler.joint(Softmax(scores.shape), [scores])
    else:
        shares = softmax(scores, kept, assembler)
    y = _matrices(call, shares, v)
    if len(call.variable(0).shape) == 4:
        return y
    y = assembler.transpose(y, (0, 2, 1, 3))
    return assembler.reshape(y, (*y.shape[:2], math.prod(y.shape[2:])))


def _heads(call: Call, slot: int, name: str) -> Variable:
    """``(batch, heads, places, size)``."""
    x = call.variable(slot)
    if len(x.shape) == 4:
        return x
    count = int(call.attributes.get(f"{name}_num_heads") or 0)
    if len(x.shape) != 3 or count < 1 or x.shape[2] % count:
        raise Unsupported(f"{count} heads in {list(x.shape)}")
    x = call.assembler.reshape(x, (*x.shape[:2], count, x.shape[2] // count))
    return call.assembler.transpose(x, (0, 2, 1, 3))


_JOINTS: dict[str, Callable[[Call], Variable]] = {
    "Attention": _attention,
    "Div": _divide,
    "Einsum": _einsum,
    "Exp": _named("exp"),
    "Gemm": _gemm,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LRN": _local_response,
    "Log": _named("log"),
    "LpNormalization": _lp_normalization,
    "MatMul": _matmul,
    "Mul": _multiply,
    "Pow": _power,
    "RMSNormalization": _rms_normalization,
    "Reciprocal": _powered(-1.0),
    "ReduceL2": _length,
    "ReduceSumSquare": _sum_of_squares,
    "Softmax": _softmax,
    "Softsign": _softsign,
    "Sqrt": _powered(0.5),
}


# Which of their inputs have to depend on the network's input: with a constant it is no joint.
_VALUES: dict[str, tuple[int, ...]] = {
    "Div": (1,), "Einsum": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1), "Mul": (0, 1),
}  # fmt: skip


def joint_rule(
    node: onnx.NodeProto, inputs: Sequence[Value | None]
) -> Callable[[Call], Variable] | None:
    """The rule of a node as a joint of these inputs, None where there is none."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _JOINTS:
        return None
    wanted = _VALUES.get(node.op_type, (0,))
    if any(place >= len(inputs) or not varies(inputs[place]) for place in wanted):
        return None
    return _noted(_JOINTS[node.op_type])


def _noted(rule: Callable[[Call], Variable]) -> Callable[[Call], Variable]:
    def noted(call: Call) -> Variable:
        result = rule(call)
        call.notes.append(_NOTE)
        return result

    return noted
