"""The ends that exporters put on a classifier, brought back to one score a class.

A certificate speaks of the class whose score is largest. So an ArgMax, a TopK or a ZipMap at the
end, with whatever names the classes behind it, is cut off; what is left is the file up to the
scores, and that is what runs as the deployed file. A file with one score gets a second one beside
it, the threshold: 0 for a logit and one half for a probability. Both are ONNX graphs like any
other, so that whoever reads or runs them needs to know nothing of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lipcert.errors import UsageError
from lipcert.loading.onnx_file import inlined, opset, part_for

CUT = "cut off: the scores before it are certified"
TWO = "one output: class 1 where it is above {}, class 0 below; a tie is never certified"

# What hands on a decision, or names it, and from which of its inputs.
_NAMING = {
    "ArrayFeatureExtractor": 1, "Cast": 0, "Flatten": 0, "Gather": 1, "Identity": 0,
    "LabelEncoder": 0, "Reshape": 0, "Squeeze": 0, "Unsqueeze": 0,
}  # fmt: skip
_KEEPING = ("LogSoftmax", "Sigmoid", "Softmax")


@dataclass(frozen=True)
class Head:
    """``model`` up to ``output``, its only one, which is None where none was chosen among several:
    then ``model`` is the whole file. ``cut``: the nodes that were cut off behind it, in order;
    ``axes``: along which of the output's axes they look for the largest."""

    model: onnx.ModelProto
    output: str | None
    cut: tuple[onnx.NodeProto, ...] = ()
    axes: tuple[int, ...] = ()


def scores(model: onnx.ModelProto, name: str, output: str | None = None) -> Head:
    """The checked model up to the scores that its outputs, or the chosen one, are made from.

    Raises ``UsageError`` under the file's ``name`` for an output that it does not have.
    """
    whole = inlined(model)
    names = [value.name for value in whole.graph.output]
    if output is not None and output not in names:
        raise UsageError(f"{name}: no output {output!r}; it has {', '.join(names)}")
    found = [_before(whole.graph, one) for one in (names if output is None else [output])]
    if len({_logits(whole.graph, source) for source, _, _ in found}) != 1:
        return Head(whole, None)
    source = found[0][0]
    nodes = {id(node) for _, cut, _ in found for node in cut}
    cut = tuple(node for node in whole.graph.node if id(node) in nodes)
    axes = tuple(axis for _, _, own in found for axis in own)
    return Head(part_for(whole, source), source, cut, axes)


def _before(
    graph: onnx.GraphProto, output: str
) -> tuple[str, Sequence[onnx.NodeProto], tuple[int, ...]]:
    """What a decision at an output is made from, the nodes that make it, and their axes; the output
    itself where there is none."""
    makers = {result: node for node in graph.node for result in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    name, passed = output, list[onnx.NodeProto]()
    while (node := makers.get(name)) is not None:
        passed.append(node)
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        match node.op_type:
            case "ArgMax":
                return node.input[0], passed, (int(given.get("axis", 0)),)
            case "TopK" if _decides(node, name, graph, given):
                return node.input[0], passed, (int(given.get("axis", -1)),)
            case "ZipMap":
                return node.input[0], passed, ()
            case "Gather" if node.input[0] not in constants:
                break
            case kind if kind in _NAMING and len(node.input) > _NAMING[kind]:
                name = node.input[_NAMING[kind]]
            case _:
                break
    return output, (), ()


def _logits(graph: onnx.GraphProto, name: str) -> str:
    """What a value is but for an order-keeping end: an ArgMax of logits beside their softmax."""
    makers = {result: node for node in graph.node for result in node.output}
    kept = (*_KEEPING, *(kind for kind, place in _NAMING.items() if place == 0))
    while name in makers and makers[name].op_type in kept:
        name = makers[name].input[0]
    return name


def _decides(
    node: onnx.NodeProto, name: str, graph: onnx.GraphProto, given: dict[str, object]
) -> bool:
    """Whether a TopK tells the place of the largest first, or the one largest value."""
    if not given.get("largest", 1) or not given.get("sorted", 1):
        return False
    if len(node.output) > 1 and name == node.output[1]:
        return True
    count = given.get("k")
    for tensor in graph.initializer:
        if len(node.input) > 1 and tensor.name == node.input[1]:
            count = int(numpy_helper.to_array(tensor).reshape(-1)[0])
    for other in graph.node:
        if len(node.input) > 1 and node.input[1] in other.output and other.op_type == "Constant":
            count = next((int(numpy_helper.to_array(a.t).reshape(-1)[0])
                          for a in other.attribute if a.name == "value"), count)  # fmt: skip
    return count == 1


def two_classes(model: onnx.ModelProto, output: str, threshold: float) -> onnx.ModelProto:
    """The model with ``(threshold, score)`` in the place of its one score, for each sample."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph, prefix = wide.graph, "two_classes"
    while any(prefix in name for node in graph.node for name in (*node.output, *node.input)):
        prefix += "_"
    kind = graph.output[0].type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    column, both = f"{prefix}/column", f"{prefix}/output"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), f"{prefix}/shape"))
    graph.node.append(helper.make_node("Reshape", [output, f"{prefix}/shape"], [column]))
    if opset(model) < 11:
        pad = helper.make_node("Pad", [column], [both], pads=[0, 1, 0, 0], value=threshold)
    else:
        given = {"pads": np.array([0, 1, 0, 0]), "value": np.array(threshold, dtype)}
        graph.initializer.extend(
            numpy_helper.from_array(value, f"{prefix}/{name}") for name, value in given.items()
        )
        names = [column, *(f"{prefix}/{name}" for name in given)]
        pad = helper.make_node("Pad", names, [both])
    graph.node.append(pad)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(both, kind, [None, 2]))
    return wide
