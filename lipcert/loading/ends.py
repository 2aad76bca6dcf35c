"""Where a graph begins and where it ends: its input, what its output needs, a head at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from lipcert.loading.moves import FLOATS
from lipcert.loading.onnx_file import names_in
from lipcert.loading.rules import RESHAPES, SOFTMAX
from lipcert.rounding import SINGLE, Arithmetic


@dataclass(frozen=True)
class GraphInput:
    """The input: its ``shape`` for one sample, None where a ``problem`` says why; whether it takes
    any number of samples; the type of its numbers; ``others``: all inputs where it is not alone."""

    name: str
    shape: tuple[int, ...] | None
    any_batch: bool
    own: Arithmetic = SINGLE
    problem: str | None = None
    others: tuple[str, ...] = ()


def source(graph: onnx.GraphProto) -> GraphInput:
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    if len(inputs) != 1:
        names = tuple(value.name for value in inputs)
        several = f"the graph has {len(inputs)} inputs ({', '.join(names)}); one is expected"
        return GraphInput(names[0] if names else "input", None, False, SINGLE, several, names)
    name, kind = inputs[0].name, inputs[0].type.tensor_type
    if kind.elem_type not in FLOATS:
        type_name = onnx.TensorProto.DataType.Name(kind.elem_type)
        other = (
            f"input {name!r} has type {type_name}, not FLOAT, DOUBLE or FLOAT16, or UINT8 that is "
            "cast to one of them"
        )
        return GraphInput(name, None, False, SINGLE, other)
    dims = list(kind.shape.dim)
    extents = [d.dim_value if d.HasField("dim_value") else -1 for d in dims]
    open_axes = [d.dim_param or f"axis {k}" for k, d in enumerate(dims) if extents[k] < 1]
    batch_is_open = bool(dims) and extents[0] < 1
    problem = _unfit(name, extents, open_axes[batch_is_open:])
    shape = None if problem else (1, *extents[1:])
    return GraphInput(name, shape, batch_is_open, FLOATS[kind.elem_type], problem)


def _unfit(name: str, extents: list[int], free: list[str]) -> str | None:
    """What stands against an input of these extents; ``free``: the axes without one, but the
    batch's."""
    if not extents:
        return f"input {name!r} has no shape, or no axis"
    if extents[0] > 1:
        return (
            f"input {name!r} {extents} takes {extents[0]} samples at once; export the model with a "
            "batch of 1 or a free batch axis"
        )
    if free:
        return (
            f"input {name!r} leaves {', '.join(free)} open; export the model with fixed extents, "
            "or give --input-shape where there is no data that says them"
        )
    return None


def needed(graph: onnx.GraphProto, values: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes that these values depend on, in the file's order, which is topological."""
    wanted, found = set(values), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(name for name in names_in(node) if name)
            found.append(node)
    return found[::-1]


def final_head(
    nodes: Sequence[onnx.NodeProto], output: str, uses: Mapping[str, int]
) -> onnx.NodeProto | None:
    """The softmax or sigmoid whose values, reshaped at most, are the output and go nowhere else.
    Behind a sigmoid they may be padded, with the threshold of two classes."""
    name, padded = output, False
    makers = {result: node for node in nodes for result in node.output}
    while name in makers:
        node = makers[name]
        if node.op_type in SOFTMAX or node.op_type == "Sigmoid":
            return None if padded and node.op_type in SOFTMAX else node
        padded |= node.op_type == "Pad"
        if node.op_type not in (*RESHAPES, "Pad") or uses[node.input[0]] > 1:
            return None
        name = node.input[0]
    return None
