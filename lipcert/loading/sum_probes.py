"""One MatMul, Gemm or Conv of a file as a sum that can be probed: the node alone in a session of
its own, with the shapes of the file, and weights that are the terms of the sum.

One factor of each product is 1 and the other one the term: of a convolution the input is all ones
and every filter holds the terms; of a matrix its weights are ones, and each row of the input holds
them. Weights are constants of the session, as in the file, since a runtime may pack constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lipcert.errors import CannotCertify
from lipcert.loading.runtime import Runtime
from lipcert.loading.sum_order import NoOrder, Sums
from lipcert.network.operators import Convolution, Dense, Operator
from lipcert.numbers import SumOrder, SumTree

Array = NDArray[Any]

# Has a product of float32 exactly, and its sum with another number nearly.
_WIDE = np.longdouble
# Where wide numbers are not wide enough, one in so many results rounds twice.
_TWICE = 2.0**20


@dataclass(frozen=True, eq=False)
class SummedLayer:
    """A node with constant ``weight`` and perhaps ``bias``, and the input and output shapes that
    it has in the file for one sample."""

    node: onnx.NodeProto
    weight: Array
    bias: Array | None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    opset: int
    ir_version: int

    @property
    def products(self) -> int:
        """How many are summed for one output."""
        return int(self.columns.shape[1])

    @property
    def terms(self) -> int:
        return self.products + (self.bias is not None)

    @property
    def outputs(self) -> int:
        return math.prod(self.out_shape)

    @property
    def signature(self) -> tuple[Any, ...]:
        """What the order can depend on: layers that share it are probed once."""
        attributes = sorted(a.SerializeToString(deterministic=True) for a in self.node.attribute)
        return (
            self.node.op_type, *attributes, self.weight.shape,
            None if self.bias is None else self.bias.shape, self.in_shape, self.opset,
        )  # fmt: skip

    def check(self) -> None:
        """Raises ``NoOrder`` for what is not covered."""
        given = {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}
        scaled = given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1
        if self.node.op_type == "Gemm" and (scaled or given.get("transA", 0)):
            raise NoOrder("alpha, beta and transA are not covered")
        if self.node.op_type == "MatMul" and self.weight.ndim != 2:
            raise NoOrder("a product with a stack of matrices is not covered")
        if self.weight.dtype != np.float32:
            raise NoOrder("only float32 is covered")
        if self.bias is not None and self.bias.size != self.columns.shape[0]:
            raise NoOrder("a bias that is not one number an output is not covered")

    def valid(self, operator: Operator) -> Array:
        """``(terms, outputs)``: which terms an output has, all but those of padding; ``operator``:
        what the node was read as."""
        found = np.ones((self.terms, self.outputs), bool)
        if isinstance(operator, Convolution):
            taps = self._taps(operator)
            found[: self.products] = np.tile(taps, (self.weight.shape[1], 1))
        return found

    def _taps(self, operator: Convolution) -> Array:
        """``(taps, outputs)``: which taps lie inside of the input, for each output."""
        kernel = self.weight.shape[2:]
        one = Convolution.of(
            torch.zeros(1, 1, *kernel), None, (1, 1, *self.in_shape[2:]), stride=operator.stride,
            padding=operator.padding, dilation=operator.dilation,
        )  # fmt: skip
        ones, found = torch.ones(1, 1, 1, *self.in_shape[2:]), []
        for tap in torch.eye(math.prod(kernel)):
            inside = one._forward(ones, tap.reshape(1, 1, *kernel)).numpy() > 0
            found.append(np.broadcast_to(inside.reshape(1, 1, *inside.shape[3:]), self.out_shape))
        return np.stack(found).reshape(len(found), -1)

    def sums(self) -> Sums:
        """Every output as the sum of given values, in the runtime."""
        ones, weight = np.ones(self.in_shape, np.float32), np.ones_like(self.weight)
        kept: dict[float, Runtime] = {}

        def of_filters(values: Array) -> Array:
            filters = weight * values[: self.products].reshape(1, *weight.shape[1:])
            return self.alone(filters, self._bias(values)).run(ones).reshape(-1)

        def of_rows(values: Array) -> Array:
            last = float(values[-1])
            if last not in kept:
                kept[last] = self.alone(weight, self._bias(values))
            return kept[last].run(ones * values[: self.products]).reshape(-1)

        return of_filters if self.node.op_type == "Conv" else of_rows

    def _bias(self, values: Array) -> Array | None:
        return None if self.bias is None else np.full_like(self.bias, values[-1])

    def alone(self, weight: Array, bias: Array | None) -> Runtime:
        """The node with other numbers, ready to run. Raises ``NoOrder`` where it does not."""
        try:
            return Runtime(self._model(weight, bias), self.node.op_type)
        except CannotCertify as error:
            raise NoOrder(f"it does not run alone: {error}") from error

    def _model(self, weight: Array, bias: Array | None) -> bytes:
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        del node.input[:], node.output[:]
        node.input.extend(["x", "w"] if bias is None else ["x", "w", "b"])
        node.output.append("y")
        number = onnx.TensorProto.FLOAT
        constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(weight), "w")]
        constants += [] if bias is None else [onnx.numpy_helper.from_array(bias, "b")]
        graph = onnx.helper.make_graph(
            [node], "sums",
            [onnx.helper.make_tensor_value_info("x", number, self.in_shape)],
            [onnx.helper.make_tensor_value_info("y", number, self.out_shape)],
            constants,
        )  # fmt: skip
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)]
        )
        model.ir_version = self.ir_version
        found: bytes = model.SerializeToString()
        return found

    @property
    def columns(self) -> Array:
        """``(outputs of one place, products)``, the products in the order of the terms."""
        if self.node.op_type == "Conv":
            return self.weight.reshape(len(self.weight), -1)
        given = {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}
        return self.weight if given.get("transB", 0) else self.weight.T

    def replayed(self, order: SumOrder, operator: Operator, values: Array, found: Array) -> bool:
        """Whether these results are, to the last bit, those of the order in float32: with products
        that are rounded before they are added, or with fused ones."""
        terms, theirs = _terms(self, operator, values), found.reshape(-1)
        for fused in (True, False):
            tries = [_computed(tree, terms, fused).reshape(-1) == theirs for tree in order.trees]
            if (~np.any(tries, axis=0)).sum() <= found.size / _TWICE:
                return True
        return False


_Term = tuple[Array, Array | None]


def _terms(layer: SummedLayer, operator: Operator, values: Array) -> Callable[[int], _Term]:
    """Of each term its two factors, which broadcast to the outputs; a bias has one."""
    assert isinstance(operator, Convolution | Dense)
    read, places = operator.reader(torch.from_numpy(values)[None]), len(operator.out_shape)
    bias = None
    if layer.bias is not None:
        space = places - 2 if isinstance(operator, Convolution) else 0
        bias = layer.bias.reshape(-1, *(1,) * space)

    def term(k: int) -> _Term:
        if k < layer.products:
            return read(k).numpy(), operator.column(k).float().numpy()
        assert bias is not None
        return np.broadcast_to(bias, (1, *operator.out_shape)), None

    return term


def _computed(tree: SumTree, terms: Callable[[int], _Term], fused: bool) -> Array:
    """One tree in float32. A fused product is added exactly and rounded once."""

    def made(value: int | Array) -> Array:
        if not isinstance(value, int):
            return value
        first, second = terms(value)
        return first if second is None else first * second

    def added(one: int | Array, other: int | Array) -> int | Array:
        for late, early in ((other, one), (one, other)):
            if fused and isinstance(late, int) and (factors := terms(late))[1] is not None:
                product = factors[0].astype(_WIDE) * factors[1]
                found: Array = (product + made(early)).astype(np.float32)
                return found
        return made(one) + made(other)

    first: Callable[[int], int | Array] = int
    return made(tree.fold(first, added))
