"""In which order the runtime adds the products of each layer of a file (``--summation measured``).

Every MatMul, Gemm and Conv with constant weights is probed alone, with the shapes that it has for
one sample (``sum_probes``, ``sum_order``). Then the file itself is run, with what goes into these
nodes and comes out of them kept, and the results must be those of the order that was found, to the
last bit: products are rounded once or fused, sums are in float32 and round to nearest, and the node
does in the file what it does alone. What is no tree of such additions ends in a refusal. Layers
that are not covered, or too costly to probe, stay with any order, and the record says so.

The order is that of one machine: onnxruntime of this version and build, as ``loading.runtime`` runs
it (no graph optimisations, so that no weight is changed and nothing is merged; one thread), one
sample at a time, on a processor of this model with these features. That it depends on nothing else,
neither on the numbers nor on where they lie in memory, is assumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lipcert.errors import CannotCertify
from lipcert.loading.model import LoadedModel
from lipcert.loading.onnx_file import inlined, opset
from lipcert.loading.reader import network_of, read
from lipcert.loading.runtime import Runtime
from lipcert.loading.sum_order import NoOrder, NoSum, sum_order
from lipcert.loading.sum_probes import SummedLayer
from lipcert.loading.value import place
from lipcert.machine import processor
from lipcert.network import Network
from lipcert.network.operators import Convolution, Dense
from lipcert.numbers.summation import SumOrder

Array = NDArray[Any]
Record = dict[str, Any]

KINDS = ("Conv", "Gemm", "MatMul")
# What probing a layer may take: products of all its runs, and answers that are kept at a time.
_WORK, _ANSWERS = 2e11, 2**26
# The file is run at so many inputs that mean nothing.
_POINTS = 2


@dataclass(frozen=True, eq=False)
class LayerSums:
    """A node of the file: as a ``layer`` of the network's ``node``, where it is one, and its order,
    or why it has none."""

    name: str
    node: int = -1
    layer: SummedLayer | None = None
    order: SumOrder | None = None
    runs: int = 0
    reason: str = ""

    def to_json(self) -> Record:
        common: Record = {"layer": self.name}
        if self.layer is not None:
            common["terms"] = self.layer.terms
        if self.order is None:
            return common | {"order": "any", "reason": self.reason}
        programs = json.dumps([tree.program for tree in self.order.trees])
        return common | {
            "order": "measured",
            "depth": self.order.depth,
            "sha256": hashlib.sha256(programs.encode()).hexdigest(),
        }


@dataclass(frozen=True, eq=False)
class Measured:
    """The orders that were found, by the nodes of the network, and their record."""

    orders: Mapping[int, SumOrder]
    record: Record


def measured(model: LoadedModel) -> LoadedModel:
    """The model with the orders of its sums in its network, and the record of them.

    Raises ``CannotCertify`` where a layer does not add its products one to another, in any order,
    or where none could be measured.
    """
    content, network = onnx.ModelProto.FromString(model.runtime_bytes), model.network
    found = orders_of(content, network, model.path.name, model.input_name)
    nodes = [replace(node, order=found.orders.get(i)) for i, node in enumerate(network.nodes)]
    return replace(model, network=replace(network, nodes=tuple(nodes)), summation=found.record)


def orders_of(model: onnx.ModelProto, network: Network, name: str, source: str) -> Measured:
    """Those of a file that was read as this ``network``, from its input ``source`` on; likewise."""
    if network.anchor.dtype != torch.float64 or not _single(model, source):
        raise CannotCertify(f"{name}: --summation measured is for files that are float32 alone")
    content = inlined(model)
    runs = _Runs.of(content, name, network, source)
    layers = list(_layers(content, network, runs))
    known: dict[Any, tuple[SumOrder | None, int, str]] = {}
    found = [_measured(one, network, runs, known) for one in layers]
    if not any(one.order for one in found):
        why = "; ".join(dict.fromkeys(f"{one.name}: {one.reason}" for one in found))
        raise CannotCertify(
            f"{name}: --summation measured: no layer's order was found ({why or 'it has none'}); "
            "leave the option out, for sums in any order"
        )
    record = machine() | {"layers": [one.to_json() for one in found]}
    record["probes"] = sum(runs for _, runs, _ in known.values())
    return Measured({one.node: one.order for one in found if one.order is not None}, record)


def again(model: onnx.ModelProto, name: str) -> Record:
    """The record of a file that is known to be one that can be measured. Raises likewise."""
    reading = read(model, name)
    network = network_of(reading, name)
    return orders_of(model, network, name, reading.input_name).record


def machine() -> Record:
    """What an order holds for."""
    import onnxruntime

    build = str(getattr(onnxruntime, "get_build_info", lambda: "")())
    return {
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "build": build,
        "provider": "CPUExecutionProvider",
        "graph_optimizations": "disabled",
        "threads": 1,
        "batch": 1,
        **processor(),
    }


def _single(model: onnx.ModelProto, source: str) -> bool:
    """Whether the input and all real weights of a file are float32."""
    real = (onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    given = [v.type.tensor_type.elem_type for v in model.graph.input if v.name == source]
    kinds = [*given, *(tensor.data_type for tensor in model.graph.initializer)]
    casts = [a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute]
    return not any(kind in real for kind in (*kinds, *casts))


@dataclass(frozen=True, eq=False)
class _Runs:
    """Values of the file's own runs, by name: an array for each input."""

    values: Mapping[str, list[Array]]

    @classmethod
    def of(cls, content: onnx.ModelProto, name: str, network: Network, source: str) -> _Runs:
        nodes = [node for node in content.graph.node if node.op_type in KINDS]
        wanted = {n for node in nodes for n in (node.input[0], node.output[0])}
        told = onnx.ModelProto()
        told.CopyFrom(content)
        given = {value.name for value in told.graph.output}
        kept = sorted(wanted - {source} - {tensor.name for tensor in content.graph.initializer})
        for value in kept:
            if value not in given:
                told.graph.output.append(
                    onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)
                )
        runtime = Runtime(told.SerializeToString(), name)
        names = [value.name for value in told.graph.output]
        values: dict[str, list[Array]] = {}
        for seed in range(_POINTS):
            x = np.random.default_rng(seed).random(network.in_shape, np.float32)
            results = dict(zip(names, runtime.results({source: x}), strict=True))
            for value, result in (results | {source: x}).items():
                values.setdefault(value, []).append(result)
        return cls(values)


def _layers(content: onnx.ModelProto, network: Network, runs: _Runs) -> Iterator[LayerSums]:
    """The products of the file; those that are read as one operator with the same numbers have a
    layer."""
    constants = {t.name: t for t in content.graph.initializer}
    for node in content.graph.node:
        if _encloses(node):
            yield LayerSums(place(node), reason="its products are those of a branch or a loop")
        if node.op_type in KINDS:
            names = [name for name in node.input[1:] if name]
            tensors = [constants[name] for name in names if name in constants]
            if node.input[0] not in runs.values or len(tensors) < len(names):
                yield LayerSums(place(node), reason="its weights are no constants of the file")
                continue
            weight, *bias = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
            layer = SummedLayer(
                node, weight, bias[0] if bias else None,
                runs.values[node.input[0]][0].shape, runs.values[node.output[0]][0].shape,
                opset(content), content.ir_version,
            )  # fmt: skip
            read = [
                i
                for i, operator in network.operators.items()
                if network.nodes[i].origin == place(node) and _same(layer, operator)
            ]
            if len(read) == 1:
                yield LayerSums(place(node), read[0], layer)
            else:
                yield LayerSums(place(node), reason="it is not read as one sum of products")


def _encloses(node: onnx.NodeProto) -> bool:
    """Whether there are products in a graph of the node's own."""
    inner = [one for a in node.attribute for graph in (a.g, *a.graphs) for one in graph.node]
    return any(one.op_type in KINDS or _encloses(one) for one in inner)


def _same(layer: SummedLayer, operator: Any) -> bool:
    """Whether an operator is what the layer computes, number by number."""
    if not isinstance(operator, Convolution | Dense) or layer.weight.ndim != operator.weight.dim():
        return False
    weight = layer.weight if layer.node.op_type == "Conv" else layer.columns
    shapes = operator.in_shape == layer.in_shape and operator.out_shape == layer.out_shape
    return shapes and torch.equal(operator.weight, torch.tensor(weight).double())


def _measured(
    one: LayerSums,
    network: Network,
    runs: _Runs,
    known: dict[Any, tuple[SumOrder | None, int, str]],
) -> LayerSums:
    """With its order; layers that are the same to the runtime share it, in ``known``. Raises
    ``CannotCertify``."""
    layer = one.layer
    if layer is None:
        return one
    operator = network.operators[one.node]
    try:
        if layer.signature not in known:
            known[layer.signature] = _probed(layer, operator)
        order, made, reason = known[layer.signature]
        source, result = layer.node.input[0], layer.node.output[0]
        if order is not None:
            for values, found in zip(runs.values[source], runs.values[result], strict=True):
                if not layer.replayed(order, operator, values, found):
                    raise NoSum("its results in the file are not those of the order it has alone")
    except NoSum as error:
        raise CannotCertify(
            f"{one.name}: {error}: the runtime's sums round otherwise than lipcert covers, in any "
            "order; use another version of onnxruntime"
        ) from error
    return replace(one, order=order, runs=made, reason=reason)


def _probed(layer: SummedLayer, operator: Any) -> tuple[SumOrder | None, int, str]:
    try:
        layer.check()
        if layer.terms * layer.outputs > _ANSWERS:
            raise NoOrder(f"{layer.terms} terms of {layer.outputs} outputs are too many to probe")
        most = int(_WORK / (layer.products * layer.outputs))
        order, runs = sum_order(
            layer.sums(), layer.valid(operator), most=most, bias=layer.bias is not None
        )
    except NoOrder as error:
        return None, 0, str(error)
    return order, runs, ""
