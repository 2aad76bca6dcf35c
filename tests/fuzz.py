"""Networks built to break certificates, samples near boundaries, and their evaluation as deployed:
in float32 or float64, in several orders of summation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import torch
from laws import dense_twin, normal, random_network, uniform
from onnx import TensorProto, helper, numpy_helper
from torch import Generator, Tensor

from lipcert.network import Input, Network, NetworkBuilder, Sum
from lipcert.network.activations import (
    Clip,
    Elu,
    Gelu,
    GroupMax,
    MaxMin,
    PReLU,
    Sigmoid,
    Silu,
    Softplus,
    Tanh,
)
from lipcert.network.operators import Dense, Diagonal, Operator, Shape

IN_SHAPE = (1, 2, 4, 4)
Evaluate = Callable[[Tensor], Tensor]

# Networks ----------------------------------------------------------------------------------------


def _scale(t: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    return t * 10.0 ** float(low + (high - low) * uniform((), generator))


def _each(t: Tensor, spread: float, generator: Generator) -> Tensor:
    return t * 10.0 ** (spread * (2 * uniform(t.shape, generator) - 1))


Spoil = Callable[[Operator, bool, Generator], Operator]


def _tensors(weight: Callable[..., Tensor], bias: Callable[..., Tensor] | None = None) -> Spoil:
    """Changes an operator's entries, and its bias by the same or another rule."""

    def spoil(operator: Operator, last: bool, generator: Generator) -> Operator:
        own = operator.bias
        changed = operator.convert(lambda t: weight(t, generator) if t.is_floating_point() else t)
        if own is None or bias is None:
            return changed
        return replace(changed, bias=bias(own, generator))

    return spoil


def _last_rows(change: Callable[[Tensor, Generator], Tensor]) -> Spoil:
    def spoil(operator: Operator, last: bool, generator: Generator) -> Operator:
        if not last or not isinstance(operator, Dense):
            return operator
        return replace(operator, weight=change(operator.weight, generator))

    return spoil


SPOILS: dict[str, Spoil] = {
    "plain": lambda operator, last, generator: operator,
    "huge": _tensors(lambda t, g: _scale(t, 0, 4, g)),
    "tiny": _tensors(lambda t, g: _scale(t, -6, 0, g)),
    "subnormal": lambda operator, last, generator: (
        _tensors(lambda t, g: _scale(t, -39, -12, g))(operator, last, generator)
        if last
        else operator
    ),
    "overflow": _tensors(lambda t, g: _scale(t, 5, 12, g)),
    "cancelling": _last_rows(lambda w, g: w + 1e3 * normal(w.shape[1:], g)),
    "ill-conditioned": _tensors(lambda t, g: _each(t, 3, g), lambda b, g: b),
    "near-tie": _last_rows(lambda w, g: w[:1] + 1e-4 * w),
    "dead": _tensors(lambda t, g: t, lambda b, g: b - 3),
    "large biases": _tensors(lambda t, g: t, lambda b, g: _each(b, 6, g)),
    "rounding noise": _last_rows(lambda w, g: _scale(w, 0, 3, g)),
}


def spoiled_network(
    generator: Generator, kind: str, *, blocks: int = 1, in_shape: Shape = IN_SHAPE
) -> Network:
    """A small random network with one kind of adversarial weights, all of which float32 holds."""
    network = random_network(generator, in_shape=in_shape, blocks=blocks)
    operators = [i for i, node in enumerate(network.nodes) if isinstance(node.kind, Operator)]
    nodes = tuple(
        replace(node, kind=SPOILS[kind](node.kind, i == operators[-1], generator))
        if isinstance(node.kind, Operator)
        else node
        for i, node in enumerate(network.nodes)
    )
    builder = NetworkBuilder(network.in_shape)
    builder.nodes = list(nodes)
    inside = uniform((64, *network.in_shape), generator)
    node, shape = network.output, network.nodes[-1].shape
    # No class wins everywhere.
    shift = -Network(nodes).logits(inside).mean(0)
    node = builder.operator(Diagonal.of(None, shift.reshape(1, *shape), shape), node)
    if kind == "rounding noise":
        # What all logits share cancels, but not what float32 loses beside it.
        million = torch.full((1, *shape), 1e6, dtype=torch.float64)
        node = builder.operator(Diagonal.of(None, million, shape), node)
    return builder.build(node).to(dtype=torch.float32).to(dtype=torch.float64)


def samples_of(network: Network, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pixels that float32 holds, with their predictions: random ones, some at the ends of [0, 1],
    and half of all moved along the segment to another one, until 2⁻¹ … 2⁻¹² of it are left."""
    x = uniform((count, *network.in_shape), generator)
    x[:2] = torch.tensor([0.0, 1.0]).reshape(2, *(1,) * len(network.in_shape))[: len(x[:2])]
    other, wide = x.flip(0), (-1, *(1,) * len(network.in_shape))
    label = network.logits(x).argmax(1)
    low, high = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    for _ in range(20):
        middle = (low + high) / 2
        same = network.logits(x + middle.reshape(wide) * (other - x)).argmax(1) == label
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    near = low * (1 - 2.0 ** -(1 + 11 * uniform((count,), generator)))
    near = torch.where(uniform((count,), generator) < 0.5, near, 0.0)
    x = (x + near.reshape(wide) * (other - x)).float().double()
    return x, network.logits(x).argmax(1)


# Deployed ----------------------------------------------------------------------------------------


def deployed(
    network: Network, generator: Generator, dtype: torch.dtype = torch.float32
) -> dict[str, Evaluate]:
    """The network in a type: as torch sums a batch, one sample at a time, backwards, shuffled."""
    single = network.to(dtype=dtype)

    def shuffled(size: int) -> Tensor:
        return torch.randperm(size, generator=generator)

    return {
        "batch": lambda x: single.logits(x.to(dtype)),
        "apart": lambda x: torch.cat([single.logits(part) for part in x.to(dtype).split(1)]),
        "backwards": _dense_evaluation(network, lambda size: torch.arange(size).flip(0), dtype),
        "shuffled": _dense_evaluation(network, shuffled, dtype),
    }


def _dense_evaluation(
    network: Network, order: Callable[[int], Tensor], dtype: torch.dtype
) -> Evaluate:
    """Every operator as its dense matrix, terms summed in the given order."""
    single = network.to(dtype=dtype)
    twins = {}
    for i, node in enumerate(network.nodes):
        if isinstance(node.kind, Operator):
            twin = dense_twin(node.kind).to(dtype)
            places = order(twin.shape[1])
            twins[i] = (twin[:, places].mT.contiguous(), places, _offset(node.kind).to(dtype))

    def evaluate(x: Tensor) -> Tensor:
        values: list[Tensor] = []
        for i, node in enumerate(single.nodes):
            parts = [values[j] for j in node.inputs]
            if isinstance(node.kind, Input):
                value = x.to(dtype).reshape(-1, *node.shape)
            elif isinstance(node.kind, Sum):
                value = parts[-1]
                for part in parts[-2::-1]:
                    value = value + part
            elif isinstance(node.kind, Operator):
                twin, places, offset = twins[i]
                value = parts[0].flatten(1)[:, places] @ twin + offset
                value = value.reshape(-1, *node.shape)
            else:
                value = node.kind.value(parts[0])
            values.append(value)
        return values[-1].flatten(1)

    return evaluate


def _offset(operator: Operator) -> Tensor:
    zero = torch.zeros(1, *operator.in_shape, dtype=torch.float64)
    return operator.forward(zero).flatten() if operator.bias is not None else zero.new_zeros(1)


def exported(network: Network) -> onnx.ModelProto:
    """The network as an ONNX file on flattened pixels, its operators as dense matrices."""
    nodes, tensors = [], []

    def constant(array: Tensor | np.ndarray) -> str:
        name = f"c{len(tensors)}"
        given = array.numpy() if isinstance(array, Tensor) else array
        given = given.astype(np.int64 if given.dtype.kind == "i" else np.float32)
        tensors.append(numpy_helper.from_array(given, name))
        return name

    def add(kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    values: list[str] = []
    for node in network.nodes:
        parts = [values[j] for j in node.inputs]
        shape = network.nodes[node.inputs[0]].shape if node.inputs else node.shape
        match node.kind:
            case Input():
                value = "x"
            case Sum():
                value = parts[0]
                for part in parts[1:]:
                    value = add("Add", value, part)
            case Operator() as operator:
                value = add("MatMul", parts[0], constant(dense_twin(operator).mT.contiguous()))
                if operator.bias is not None:
                    value = add("Add", value, constant(_offset(operator)))
            case Clip(lower=lower, upper=upper):
                value = parts[0]
                for kind, limit in (("Max", lower), ("Min", upper)):
                    if limit is not None:
                        flat = limit.expand(1, *shape).reshape(1, -1)
                        value = add(kind, value, constant(flat))
            case PReLU(slope=slope):
                value = add("PRelu", parts[0], constant(slope.expand(1, *shape).reshape(-1)))
            case Sigmoid() | Tanh() | Softplus():
                value = add(type(node.kind).__name__, parts[0])
            case Elu(alpha=alpha):
                value = add("Elu", parts[0], alpha=float(alpha))
            case Silu():
                value = add("Mul", parts[0], add("Sigmoid", parts[0]))
            case Gelu():
                root = constant(np.array([math.sqrt(0.5)]))
                bent = add("Add", add("Erf", add("Mul", parts[0], root)), constant(np.ones(1)))
                value = add("Mul", add("Mul", parts[0], bent), constant(np.array([0.5])))
            case MaxMin(axis=axis):
                places = torch.arange(math.prod(shape)).reshape(shape).chunk(2, dim=axis)
                halves = [add("Gather", parts[0], constant(p.flatten()), axis=1) for p in places]
                both = add("Concat", add("Max", *halves), add("Min", *halves), axis=1)
                back = torch.cat([p.flatten() for p in places]).argsort()
                value = add("Gather", both, constant(back), axis=1)
            case GroupMax():
                grouped = constant(np.array([-1, math.prod(shape[:-1]), shape[-1]]))
                value = add("ReduceMax", add("Reshape", parts[0], grouped), axes=[2], keepdims=0)
            case kind:
                raise TypeError(type(kind).__name__)
        values.append(value)
    features = math.prod(network.in_shape)
    graph = helper.make_graph(
        nodes, "fuzz",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, ["N", network.classes])],
        tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def runtime(model: onnx.ModelProto) -> Evaluate:
    """onnxruntime's own evaluation of an exported network."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def evaluate(x: Tensor) -> Tensor:
        (logits,) = session.run(None, {"x": x.flatten(1).float().numpy()})
        return torch.from_numpy(logits)

    return evaluate
