"""A second reading of an ONNX file: every operator is a line of torch.

The certificate rests on lipcert's own network, rewritten and simplified; here the nodes of the file
are run as they stand, one sample at a time, and batches are torch's ``vmap`` of that. Nodes that do
not depend on the input are left to the reference implementation of ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from lipcert.audit.operators import FLOATS, NotRead, attributes_of, run

Array = NDArray[Any]
Value = Tensor | Array

_SOFTMAX = ("Softmax", "LogSoftmax")
# What may stand behind a Softmax at the end.
_CARRYING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


class Interpreter:
    """``interpreter(x)``: the logits ``(n, K)`` for inputs ``(n, *shape)``, differentiable.

    ``softmax``: leave the last Softmax or LogSoftmax out. ``nodes`` are those that depend on the
    input, in order, each batch norm as its shift, scale and shift; ``constants`` what they read.
    ``inside``: the floating types that values have up to the logits; ``leaves``: those from there
    to the output. Raises ``NotRead``.
    """

    def __init__(self, model: onnx.ModelProto, shape: Sequence[int], *, softmax: bool) -> None:
        graph = onnx.inliner.inline_local_functions(model).graph if model.functions else model.graph
        self.opset = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.constants: dict[str, Value] = {
            tensor.name: _constant(onnx.numpy_helper.to_array(tensor))
            for tensor in graph.initializer
        }
        [given] = [given for given in graph.input if given.name not in self.constants]
        self.input = given.name
        self.output, behind = _logits(graph, softmax)
        self._types = {self.input: FLOATS.get(given.type.tensor_type.elem_type)}
        self.nodes: list[onnx.NodeProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._trace(_needed(graph, self.output), tuple(shape))
        # An input of whole numbers is cast before anything is computed.
        self.inside = frozenset(one for one in self._types.values() if one is not None)
        left = [self._types[self.output], *map(_cast_to, behind)]
        self.leaves = frozenset(one for one in left if one is not None)

    def _trace(self, nodes: Sequence[onnx.NodeProto], shape: tuple[int, ...]) -> None:
        """Runs all nodes once, to know which are constant, and every shape."""
        values: dict[str, Value] = {self.input: torch.zeros(shape, dtype=torch.float64)}
        for node in nodes:
            for part in self._parts(node, values):
                inputs = [self._value(values, name) for name in part.input]
                if not any(_varies(values, name) for name in part.input):
                    self._keep(part, [None if x is None else np.asarray(x) for x in inputs])
                    continue
                if part.op_type == "Shape":
                    self.constants[part.output[0]] = np.array(values[part.input[0]].shape)
                    continue
                results = run(part, inputs)
                values.update(zip(part.output, results, strict=False))
                self.nodes.append(part)
                # All inputs of a node that are no places are of one type, which is that of results.
                own = next(self._types[name] for name in part.input if name in self._types)
                self._types |= dict.fromkeys(part.output, _cast_to(part) or own)
        if self.output not in values:
            raise NotRead("an output that does not depend on the input")
        self.shapes = {name: tuple(value.shape) for name, value in values.items()}

    def _parts(self, node: onnx.NodeProto, values: dict[str, Value]) -> Iterator[onnx.NodeProto]:
        """The node, or what a batch norm or a product with a factor consists of."""
        factor = attributes_of(node).get("alpha", 1.0) if node.op_type == "Gemm" else 1.0
        if factor != 1 and [_varies(values, name) for name in node.input] in ([1, 0], [1, 0, 0]):
            yield from self._product(node, factor)
            return
        if node.op_type != "BatchNormalization" or not _varies(values, node.input[0]):
            yield node
            return
        epsilon = attributes_of(node).get("epsilon", 1e-5)
        wide = (-1, *(1,) * (len(values[node.input[0]].shape) - 2))
        weight, bias, mean, variance = (
            np.asarray(self.constants[name]).reshape(wide) for name in node.input[1:5]
        )
        name, source = node.output[0], node.input[0]
        scale = weight / np.sqrt(variance + epsilon)
        for step, operator, constant in (
            ("shifted", "Sub", mean), ("scaled", "Mul", scale), ("", "Add", bias),
        ):  # fmt: skip
            result = f"{name}/{step}" if step else name
            self.constants[f"{name}/{operator}"] = _constant(constant)
            yield onnx.helper.make_node(operator, [source, f"{name}/{operator}"], [result])
            source = result

    def _product(self, node: onnx.NodeProto, factor: float) -> Iterator[onnx.NodeProto]:
        """Of a Gemm: its sums may overflow before they are multiplied."""
        plain, more = onnx.NodeProto(), attributes_of(node).get("beta", 1.0)
        plain.CopyFrom(node)
        result = node.output[0]
        del plain.attribute[:], plain.input[2:]
        plain.attribute.extend(a for a in node.attribute if a.name.startswith("trans"))
        plain.output[0] = f"{result}/product"
        yield plain
        steps = [("Mul", _constant(np.array(factor)))]
        if len(node.input) > 2 and node.input[2]:
            steps.append(("Add", torch.as_tensor(self.constants[node.input[2]]) * more))
        source = plain.output[0]
        for number, (operator, constant) in enumerate(steps, start=1):
            name = result if number == len(steps) else f"{result}/{number}"
            self.constants[f"{result}/{operator}"] = constant
            yield onnx.helper.make_node(operator, [source, f"{result}/{operator}"], [name])
            source = name

    def _keep(self, node: onnx.NodeProto, inputs: Sequence[Array | None]) -> None:
        """Computes a node of constants."""
        given = {name: x for name, x in zip(node.input, inputs, strict=True) if x is not None}
        graph = onnx.helper.make_graph(
            [node],
            "constant",
            [onnx.helper.make_empty_tensor_value_info(name) for name in given],
            [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        results = ReferenceEvaluator(graph, opsets={"": self.opset}).run(None, given)
        names = [name for name in node.output if name]
        self.constants.update(
            {n: _constant(np.asarray(r)) for n, r in zip(names, results, strict=True)}
        )

    def _value(self, values: dict[str, Value], name: str) -> Value | None:
        if not name:
            return None
        return values[name] if name in values else self.constants[name]

    def _inputs(self, node: onnx.NodeProto, values: dict[str, Value]) -> list[Value | None]:
        """What a node reads, ``values`` before constants, floating ones in their type."""
        like = values[self.input]
        assert isinstance(like, Tensor)
        found = [self._value(values, name) for name in node.input]
        return [x.to(like) if isinstance(x, Tensor) else x for x in found]

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = torch.vmap(self._one)(x)
        return logits

    def _one(self, x: Tensor) -> Tensor:
        values: dict[str, Value] = {self.input: x}
        for node in self.nodes:
            results = run(node, self._inputs(node, values))
            values.update(zip(node.output, results, strict=False))
        logits = values[self.output]
        assert isinstance(logits, Tensor)
        return logits.reshape(-1)


def _constant(array: Array) -> Value:
    """Floating numbers as float64 tensors, extents and axes as arrays."""
    return torch.tensor(array, dtype=torch.float64) if array.dtype.kind == "f" else array


def _varies(values: dict[str, Value], name: str) -> bool:
    return name in values


def _logits(graph: onnx.GraphProto, softmax: bool) -> tuple[str, list[onnx.NodeProto]]:
    """The first output, or what goes into the Softmax that it comes from, and the nodes from there.

    Raises ``NotRead`` where it comes from none.
    """
    name, behind = str(graph.output[0].name), list[onnx.NodeProto]()
    makers = {output: node for node in graph.node for output in node.output}
    while softmax:
        if name not in makers:
            raise NotRead("a Softmax at the end, which is not there")
        behind.append(makers[name])
        softmax, name = behind[-1].op_type not in _SOFTMAX, str(behind[-1].input[0])
    if any(node.op_type not in (*_SOFTMAX, *_CARRYING) for node in behind):
        raise NotRead("what follows the Softmax at the end")
    return name, behind


def _cast_to(node: onnx.NodeProto) -> str | None:
    """The floating type that a Cast makes; None for any other node."""
    if node.op_type != "Cast":
        return None
    to = attributes_of(node)["to"]
    if to not in FLOATS:
        raise NotRead("a Cast to a type that is not floating")
    return FLOATS[to]


def _needed(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    return nodes[::-1]
