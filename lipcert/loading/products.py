"""Products, quotients, powers and matrix products of values that depend on the network's input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lipcert.loading.assembler import Variable, number
from lipcert.loading.pooling import reduced
from lipcert.loading.value import Call, Unsupported
from lipcert.network.activations import absolute
from lipcert.network.joints import Curve, MatrixProduct, Product, Quotient


def _multiply(call: Call) -> Variable:
    return _product(call, call.variable(0), call.variable(1))


def _product(call: Call, left: Variable, right: Variable) -> Variable:
    """Broadcast as ONNX does; of a value with itself the square."""
    if left == right:
        return curve(call, left, 2.0)
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
        inverse = curve(call, call.variable(1), -1.0)
        shape = np.broadcast_shapes(inverse.shape, tuple(numerator.shape))
        return call.assembler.diagonal(call.assembler.expand(inverse, shape), numerator, None)
    if not isinstance(below, Variable):
        raise Unsupported("a division by zero")
    one, other = _of_one_rank(call, above, below)
    return call.assembler.joint(Quotient(one.shape, other.shape), [one, other])


def curve(call: Call, x: Variable, power: float) -> Variable:
    return call.assembler.joint(Curve(x.shape, "power", power), [x])


def _powered(power: float) -> Callable[[Call], Variable]:
    return lambda call: curve(call, call.variable(0), power)


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
    return x if power == 1 else curve(call, x, power)


def _matmul(call: Call) -> Variable:
    return matrices(call, call.variable(0), call.variable(1))


def matrices(call: Call, left: Variable, right: Variable) -> Variable:
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
    y = matrices(call, left, right)
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

    y = matrices(call, arranged(left, one, rows, summed), arranged(right, other, summed, columns))
    order = [*batch, *rows, *columns]
    y = call.assembler.reshape(y, [extents[a] for a in order])
    return call.assembler.transpose(y, [order.index(a) for a in result])


def _sum_of_squares(call: Call) -> Variable:
    return reduced(call, curve(call, call.variable(0), 2.0), "Sum")


def _length(call: Call) -> Variable:
    return curve(call, _sum_of_squares(call), 0.5)


def _softsign(call: Call) -> Variable:
    """``x / (1 + |x|)``."""
    x, assembler = call.variable(0), call.assembler
    below = assembler.diagonal(assembler.activation(absolute(), x), None, number(1.0))
    return assembler.joint(Quotient(x.shape, below.shape), [x, below])


PRODUCTS: dict[str, Callable[[Call], Variable]] = {
    "Div": _divide,
    "Einsum": _einsum,
    "Exp": _named("exp"),
    "Gemm": _gemm,
    "Log": _named("log"),
    "MatMul": _matmul,
    "Mul": _multiply,
    "Pow": _power,
    "Reciprocal": _powered(-1.0),
    "ReduceL2": _length,
    "ReduceSumSquare": _sum_of_squares,
    "Softsign": _softsign,
    "Sqrt": _powered(0.5),
}
