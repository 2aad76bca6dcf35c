"""The ends that exporters put on a classifier, brought back to one score a class.

A certificate speaks of the class whose score is largest. So a decision at the end (an ArgMax, a
TopK, a ZipMap, a comparison with a threshold), with whatever names the classes behind it, is cut
off; what is left is the file up to the scores, and that is what runs as the deployed file. A file
with one score gets a second one beside it, the threshold: the file's own, or 0 for a logit and one
half for a probability. Both are ONNX graphs like any other, so that whoever reads or runs them
needs to know nothing of this.
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
TWO = "one output: class 1 where it is {} {}, class 0 elsewhere; a tie is never certified"
ALONE = (
    "decides of each of {} scores by itself: that the largest of them stays so is certified, and "
    "not on which side of {} it lies"
)

# What hands on a decision, or names it, and from which of its inputs.
_NAMING = {
    "ArrayFeatureExtractor": 1, "Cast": 0, "Flatten": 0, "Gather": 1, "Identity": 0,
    "LabelEncoder": 0, "Reshape": 0, "Squeeze": 0, "Unsqueeze": 0,
}  # fmt: skip
_KEEPING = ("LogSoftmax", "Sigmoid", "Softmax")
# What compares two values, and whether the first has to be the larger one.
_COMPARING = {"Greater": True, "GreaterOrEqual": True, "Less": False, "LessOrEqual": False}
# What a probability passes on its way to the end as it is.
_MOVING = ("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Threshold:
    """A decision of each score by itself: class 1 where it is above ``value``, or ``below``."""

    value: float
    below: bool = False

    @property
    def side(self) -> str:
        return "below" if self.below else "above"


@dataclass(frozen=True)
class ScoreModel:
    """``model`` up to ``output``, its only one, which is None where none was chosen among several:
    then ``model`` is the whole file. ``cut``: the nodes that were cut off behind it, in order;
    ``axes``: along which of the output's axes they look for the largest; ``threshold``: what they
    compare the scores with, if they do."""

    model: onnx.ModelProto
    output: str | None
    cut: tuple[onnx.NodeProto, ...] = ()
    axes: tuple[int, ...] = ()
    threshold: Threshold | None = None


@dataclass(frozen=True)
class _Decision:
    source: str
    cut: Sequence[onnx.NodeProto] = ()
    axes: tuple[int, ...] = ()
    threshold: Threshold | None = None


def scores(model: onnx.ModelProto, name: str, output: str | None = None) -> ScoreModel:
    """The checked model up to the scores that its outputs, or the chosen one, are made from.

    Raises ``UsageError`` under the file's ``name`` for an output that it does not have.
    """
    whole = inlined(model)
    names = [value.name for value in whole.graph.output]
    if output is not None and output not in names:
        raise UsageError(f"{name}: no output {output!r}; it has {', '.join(names)}")
    wanted = names if output is None else [output]
    found = [_before(whole.graph, one, beside=len(wanted) > 1) for one in wanted]
    thresholds = {one.threshold for one in found if one.threshold is not None}
    if len({_logits(whole.graph, one.source) for one in found}) != 1 or len(thresholds) > 1:
        return ScoreModel(whole, None)
    # A threshold belongs to the very value that is held against it.
    source = next((one for one in found if one.threshold is not None), found[0]).source
    nodes = {id(node) for one in found for node in one.cut}
    cut = tuple(node for node in whole.graph.node if id(node) in nodes)
    axes = tuple(axis for one in found for axis in one.axes)
    return ScoreModel(part_for(whole, source), source, cut, axes, next(iter(thresholds), None))


def _before(graph: onnx.GraphProto, output: str, *, beside: bool) -> _Decision:
    """What a decision at an output is made from, and how; the output itself where there is none.

    A maximum is the share of the class that was decided for where it stands ``beside`` other
    outputs; alone it may be a layer."""
    makers = {result: node for node in graph.node for result in node.output}
    constants = _constants(graph)
    name, passed, opposite = output, list[onnx.NodeProto](), False
    while (node := makers.get(name)) is not None:
        passed.append(node)
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        source = node.input[0] if node.input else ""
        match node.op_type:
            case "ArgMax":
                return _Decision(source, passed, (int(given.get("axis", 0)),))
            case "Hardmax":
                return _Decision(source, passed, (int(given.get("axis", -1)),))
            case "TopK" if _decides(node, name, graph, given):
                return _Decision(source, passed, (int(given.get("axis", -1)),))
            case "ReduceMax" if beside and (axes := _axes(node, given, constants)) is not None:
                return _Decision(source, passed, axes)
            case "ZipMap":
                return _Decision(source, passed)
            case "Log" if probability(graph, source):
                return _Decision(source, passed)
            case "Round" if probability(graph, source):
                return _Decision(source, passed, threshold=Threshold(0.5, opposite))
            case "Sign":
                return _Decision(source, passed, threshold=Threshold(0.0, opposite))
            case kind if kind in _COMPARING and (found := _compared(node, constants)):
                source, threshold = found
                threshold = Threshold(threshold.value, threshold.below != opposite)
                return _Decision(source, passed, threshold=threshold)
            case "Equal" | "GreaterOrEqual" if top := _largest(node, makers, constants):
                return _Decision(source, [*passed, makers[node.input[1]]], top)
            case "Not":
                name, opposite = source, not opposite
            case "Where" if (rises := _rises(node, constants)) is not None:
                name, opposite = source, opposite != (not rises)
            case "Gather" if source not in constants:
                break
            case kind if kind in _NAMING and len(node.input) > _NAMING[kind]:
                name = node.input[_NAMING[kind]]
            case _:
                break
    return _Decision(output)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The graph's own numbers, by their names."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    found |= {
        node.output[0]: attribute.t
        for node in graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value"
    }
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in found.items()
        if not tensor.external_data
    }


def _compared(
    node: onnx.NodeProto, constants: dict[str, np.ndarray]
) -> tuple[str, Threshold] | None:
    """Which value a comparison holds against one number, and how."""
    larger_first = _COMPARING[node.op_type]
    for place, other in ((0, 1), (1, 0)):
        number = constants.get(node.input[other])
        if number is not None and number.size == 1 and node.input[place] not in constants:
            value = float(number.reshape(-1)[0])
            return node.input[place], Threshold(value, below=larger_first == (place == 1))
    return None


def _axes(
    node: onnx.NodeProto, given: dict[str, object], constants: dict[str, np.ndarray]
) -> tuple[int, ...] | None:
    """Along which one axis a maximum is taken."""
    axes = given.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = constants[node.input[1]].reshape(-1)
    found = tuple(int(axis) for axis in axes) if axes is not None else ()  # type: ignore[attr-defined]
    return found if len(found) == 1 else None


def _largest(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: dict[str, np.ndarray]
) -> tuple[int, ...] | None:
    """The axis of the maximum that values are held against to mark the largest of them."""
    maker = makers.get(node.input[1])
    if maker is None or maker.op_type != "ReduceMax" or maker.input[0] != node.input[0]:
        return None
    given = {a.name: helper.get_attribute_value(a) for a in maker.attribute}
    return _axes(maker, given, constants)


def _rises(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool | None:
    """Whether a choice between two constants gives the larger one where its condition holds; None
    for any other choice."""
    first, second = (constants.get(name) for name in node.input[1:3])
    if first is None or second is None or first.size != 1 or second.size != 1:
        return None
    if first.dtype.kind not in "biuf":
        return True
    return None if first.item() == second.item() else bool(first.item() > second.item())


def probability(graph: onnx.GraphProto, name: str) -> bool:
    """Whether a value is a Softmax's or a Sigmoid's, moved at most."""
    makers = {result: node for node in graph.node for result in node.output}
    while name in makers and makers[name].op_type in _MOVING:
        name = makers[name].input[0]
    return name in makers and makers[name].op_type in ("Sigmoid", "Softmax")


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
    if len(node.input) > 1 and (found := _constants(graph).get(node.input[1])) is not None:
        count = int(found.reshape(-1)[0])
    return count == 1


def two_classes(model: onnx.ModelProto, output: str, threshold: Threshold) -> onnx.ModelProto:
    """The model with ``(threshold, score)`` in the place of its one score, for each sample; the
    other way round where class 1 is ``below``."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph, prefix = wide.graph, "two_classes"
    while any(prefix in name for node in graph.node for name in (*node.output, *node.input)):
        prefix += "_"
    kind = graph.output[0].type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    column, both = f"{prefix}/column", f"{prefix}/output"
    pads = [0, 0, 0, 1] if threshold.below else [0, 1, 0, 0]
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), f"{prefix}/shape"))
    graph.node.append(helper.make_node("Reshape", [output, f"{prefix}/shape"], [column]))
    if opset(model) < 11:
        pad = helper.make_node("Pad", [column], [both], pads=pads, value=threshold.value)
    else:
        given = {"pads": np.array(pads), "value": np.array(threshold.value, dtype)}
        graph.initializer.extend(
            numpy_helper.from_array(value, f"{prefix}/{name}") for name, value in given.items()
        )
        names = [column, *(f"{prefix}/{name}" for name in given)]
        pad = helper.make_node("Pad", names, [both])
    graph.node.append(pad)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(both, kind, [None, 2]))
    return wide
