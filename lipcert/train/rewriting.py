"""What is changed in a file before it is trained: the graph stays the file's, names included.

    float16                                  becomes float32
    weights kept in Constant nodes           become initializers, so that they can be trained
    BatchNormalization with statistics       γ' = γ/√(σ² + ε), β' = β − μγ', mean 0, variance 1
    Relu, but for one that gives the output  Relu, then Min(θ): ReLU-θ, constant above θ
    Max and Min of two values (MaxMin)       Min(θ⁺) after the one, Max(θ⁻) after the other

``maxmin`` makes MaxMin of the two halves of its channels of every Relu that has such, without
thresholds, which only bounds by boxes have a use for; ``maxmin-clipped`` with them.

Huang et al. (NeurIPS 2021): an activation that is constant on both sides can be ruled out by boxes
on both sides, which makes local norms smaller. Thresholds start without effect; ``thresholds``
moves them to where the data are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipcert.errors import CannotCertify
from lipcert.loading.onnx_file import inlined, opset
from lipcert.loading.runtime import Runtime
from lipcert.loading.widening import widened

ActivationChoice = Literal["keep", "maxmin", "clipped", "maxmin-clipped"]
Sharing = Literal["neuron", "channel"]

# Without effect on any value, and yet a number that the reader takes for a limit.
NO_LIMIT = 2.0**39
_BROADCASTING_OPSET = 8
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Rewritten:
    """The file's graph, ready to be trained; ``thresholds``: the new initializers, all without
    effect as yet; ``widened``: whether the file had anything in float16."""

    model: onnx.ModelProto
    thresholds: tuple[str, ...]
    widened: bool


def rewrite(
    content: bytes, name: str, activation: ActivationChoice, sharing: Sharing, image: np.ndarray
) -> Rewritten:
    """``content``: a whole ONNX file; ``image``: one of its inputs, ``(1, …)``, which tells shapes.

    ``sharing``: one threshold a neuron, or one a channel. Raises ``CannotCertify``.
    """
    model = inlined(onnx.ModelProto.FromString(content))
    wide = widened(model)
    _lift_constants(model.graph)
    _neutralise_batch_norms(model.graph)
    if activation == "keep":
        return Rewritten(model, (), wide)
    if activation != "maxmin" and opset(model) < _BROADCASTING_OPSET:
        raise CannotCertify(
            f"{name}: opset {opset(model)}, where Min does not broadcast; convert the file to "
            f"opset {_BROADCASTING_OPSET} or later, or give --activation keep"
        )
    return Rewritten(*_Clipping(model, name, activation, sharing, image).run(), wide)


def _lift_constants(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None and value.data_type in _FLOATS:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    _replace_nodes(graph, kept)


def _neutralise_batch_norms(graph: onnx.GraphProto) -> None:
    """Running statistics move into scale and shift; ``momentum`` and the node stay."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    for number, node in enumerate(graph.node):
        if node.op_type != "BatchNormalization" or any(n not in tensors for n in node.input[1:5]):
            continue
        given = [numpy_helper.to_array(tensors[n]) for n in node.input[1:5]]
        gamma, beta, mean, variance = (value.astype(np.float64) for value in given)
        epsilon = next((a for a in node.attribute if a.name == "epsilon"), None)
        if epsilon is None:
            epsilon = node.attribute.add()
            epsilon.CopyFrom(helper.make_attribute("epsilon", 1e-5))
        scale = gamma / np.sqrt(variance + epsilon.f)
        epsilon.f = 0.0
        ones = np.ones_like(mean)
        fresh = (scale, beta - mean * scale, 0 * mean, ones)
        for place, (old, value) in enumerate(zip(node.input[1:5], fresh, strict=True), start=1):
            name = old if uses[old] == 1 else f"{old}.{number}"
            tensor = tensors[old] if uses[old] == 1 else graph.initializer.add()
            tensor.CopyFrom(numpy_helper.from_array(value.astype(given[0].dtype), name))
            node.input[place] = name


class _Clipping:
    """Puts thresholds on the activations of one graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        name: str,
        activation: ActivationChoice,
        sharing: Sharing,
        image: np.ndarray,
    ) -> None:
        self.model, self.graph, self.name, self.sharing = model, model.graph, name, sharing
        self.maxmin = activation in ("maxmin", "maxmin-clipped")
        self.image = image
        self.thresholds: list[str] = []
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.results = {value.name for value in model.graph.output}
        self.pairs = {
            (node.op_type, frozenset(node.input))
            for node in model.graph.node
            if node.op_type in ("Max", "Min") and len(node.input) == 2
        }
        self.limited = activation != "maxmin"
        clipped = [node.output[0] for node in model.graph.node if self._is_clipped(node)]
        if not clipped and self.limited:
            raise CannotCertify(
                f"{name}: has no Relu, nor MaxMin written as Max and Min, that could be clipped; "
                "give --activation keep"
            )
        self.shapes = self._shapes(clipped)

    def run(self) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """The model, and the names of the thresholds."""
        nodes = [new for node in self.graph.node for new in self._rewritten(node)]
        _replace_nodes(self.graph, nodes)
        # Shapes that the file wrote down for values that have moved are left to inference.
        del self.graph.value_info[:]
        return self.model, tuple(self.thresholds)

    def _is_clipped(self, node: onnx.NodeProto) -> bool:
        if self.results.intersection(node.output):
            # A threshold on the logits would make ties of them.
            return False
        if node.op_type == "Relu":
            return True
        other = {"Max": "Min", "Min": "Max"}.get(node.op_type, "")
        both = frozenset(node.input)
        return (other, both) in self.pairs and not both & self.constants

    def _rewritten(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        if not self._is_clipped(node):
            yield node
        elif node.op_type == "Relu" and self.maxmin and self.shapes[node.output[0]][1] % 2 == 0:
            yield from self._maxmin(node)
        elif not self.limited:
            yield node
        else:
            result = node.output[0]
            node.output[0] = f"{result}.unclipped"
            yield node
            limit = "Max" if node.op_type == "Min" else "Min"
            yield self._limit(limit, node.output[0], result, self.shapes[result])

    def _maxmin(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A ReLU becomes a clipped MaxMin of the two halves of its channels."""
        result = node.output[0]
        batch, channels, *space = self.shapes[result]
        half = (batch, channels // 2, *space)
        first, second, high, low, top, bottom = (
            f"{result}.{part}" for part in ("first", "second", "max", "min", "top", "bottom")
        )
        split = helper.make_node("Split", [node.input[0]], [first, second], axis=1)
        if opset(self.model) >= 18:
            split.attribute.append(helper.make_attribute("num_outputs", 2))
        yield split
        yield helper.make_node("Max", [first, second], [high])
        yield helper.make_node("Min", [first, second], [low])
        if not self.limited:
            yield helper.make_node("Concat", [high, low], [result], axis=1)
            return
        yield self._limit("Min", high, top, half)
        yield self._limit("Max", low, bottom, half)
        yield helper.make_node("Concat", [top, bottom], [result], axis=1)

    def _limit(
        self, operator: str, source: str, result: str, shape: tuple[int, ...]
    ) -> onnx.NodeProto:
        """``Min(source, θ)`` or ``Max(source, θ)``, θ without effect as yet."""
        name = f"{result}.theta"
        kept = (1, shape[1], *(1,) * len(shape[2:])) if self.sharing == "channel" else shape
        limit = NO_LIMIT if operator == "Min" else -NO_LIMIT
        dtype = np.float64 if self.image.dtype == np.float64 else np.float32
        self.graph.initializer.append(
            numpy_helper.from_array(np.full((1, *kept[1:]), limit, dtype=dtype), name)
        )
        self.thresholds.append(name)
        return helper.make_node(operator, [source, name], [result], name=f"{name}.{operator}")

    def _shapes(self, names: list[str]) -> dict[str, tuple[int, ...]]:
        """The shapes of these values for one sample, as onnxruntime finds them."""
        probe = onnx.ModelProto()
        probe.CopyFrom(self.model)
        kept = {value.name for value in probe.graph.output}
        element = TensorProto.DOUBLE if self.image.dtype == np.float64 else TensorProto.FLOAT
        probe.graph.output.extend(
            helper.make_tensor_value_info(name, element, None) for name in names if name not in kept
        )
        runtime = Runtime(probe.SerializeToString(), self.name)
        return {name: tuple(runtime.run(self.image, name).shape) for name in names}


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
