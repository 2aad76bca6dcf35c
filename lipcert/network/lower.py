"""Every activation that compares neurons, written with the absolute value.

``max(a, b) = (a+b)/2 + |a−b|/2`` and ``min(a, b) = (a+b)/2 − |a−b|/2``: an affine map to sums and
differences, ``PReLU`` with slope 1 (nothing) on the sums and −1 (absolute value) on the
differences, and an affine map back. What is left is affine operators and element-wise
activations, all that the backward bounds need to know. Halves are exact: in real arithmetic the
function is the same, and what a float64 evaluation rounds is charged as for any other operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.network.activations import Activation, GroupMax, MaxMin, PReLU
from lipcert.network.graph import Input, Network, NetworkBuilder, Sum
from lipcert.network.operators import Dense, Operator, Select, Shape


def lower(network: Network) -> Network:
    """The same function with element-wise activations only."""
    return lowered(network)[0]


def lowered(network: Network) -> tuple[Network, frozenset[int]]:
    """``lower``, and which of its nodes stand for comparisons."""
    builder = NetworkBuilder(network.in_shape, network.nodes[0].origin)
    place, compared = {0: 0}, set[int]()
    for i, node in enumerate(network.nodes):
        sources, first = [place[j] for j in node.inputs], len(builder.nodes)
        builder.format = node.format
        match node.kind:
            case Input():
                continue
            case Sum():
                place[i] = builder.sum(sources, node.origin)
            case Operator() as operator:
                place[i] = builder.operator(operator, sources[0], node.origin)
            case MaxMin() as pairs:
                place[i] = _pairs(builder, pairs, sources[0], node.origin, network.anchor)
            case GroupMax():
                place[i] = _maximum(builder, sources[0], node.origin, network.anchor)
            case Activation() as activation:
                place[i] = builder.activation(activation, sources[0], node.origin)
        if isinstance(node.kind, MaxMin | GroupMax):
            compared.update(id(made.kind) for made in builder.nodes[first:])
    built = builder.build(place[network.output])
    return built, frozenset(i for i, node in enumerate(built.nodes) if id(node.kind) in compared)


def _pairs(builder: NetworkBuilder, kind: MaxMin, source: int, origin: str, like: Tensor) -> int:
    """MaxMin: its pairs along a new last axis, sorted there, and put back."""
    shape = builder.shape(source)
    places = torch.arange(math.prod(shape), device=like.device).reshape(shape)
    paired = torch.stack(places.chunk(2, dim=kind.axis), -1)
    node = builder.operator(Select.of(paired, shape), source, origin)
    node = _sorted_pairs(builder, node, origin, like)
    moved = torch.arange(paired.numel(), device=like.device).reshape(paired.shape)
    back = torch.cat([moved[..., 0], moved[..., 1]], dim=kind.axis)
    return builder.operator(Select.of(back, tuple(paired.shape)), node, origin)


def _sorted_pairs(builder: NetworkBuilder, source: int, origin: str, like: Tensor) -> int:
    """``(…, a, b)`` becomes ``(…, max, min)``."""
    dense = _dense(builder, origin, like)
    node = dense(source, [[0.5, 0.5], [0.5, -0.5]])
    node = builder.activation(PReLU(like.new_tensor([1.0, -1.0])), node, origin)
    return dense(node, [[1.0, 1.0], [1.0, -1.0]])


def _maximum(builder: NetworkBuilder, source: int, origin: str, like: Tensor) -> int:
    """The maximum of the last axis: rounds of pairs, a number without a partner passes on."""
    dense = _dense(builder, origin, like)
    node = source
    while (size := builder.shape(node)[-1]) > 1:
        pairs, alone = size // 2, size % 2
        split = torch.zeros(size, size)
        join = torch.zeros(pairs + alone, size)
        for pair in range(pairs):
            split[pair, [2 * pair, 2 * pair + 1]] = 0.5
            split[pairs + alone + pair, 2 * pair] = 0.5
            split[pairs + alone + pair, 2 * pair + 1] = -0.5
            join[pair, [pair, pairs + alone + pair]] = 1
        if alone:
            split[pairs, size - 1] = 1
            join[pairs, pairs] = 1
        slopes = [1.0] * (pairs + alone) + [-1.0] * pairs
        node = dense(node, split.tolist())
        node = builder.activation(PReLU(like.new_tensor(slopes)), node, origin)
        node = dense(node, join.tolist())
    shape = builder.shape(node)
    places = torch.arange(math.prod(shape), device=like.device).reshape(shape[:-1])
    return builder.operator(Select.of(places, shape), node, origin)


def _dense(
    builder: NetworkBuilder, origin: str, like: Tensor
) -> Callable[[int, list[list[float]]], int]:
    def add(source: int, matrix: list[list[float]]) -> int:
        shape: Shape = builder.shape(source)
        return builder.operator(Dense.of(like.new_tensor(matrix), None, shape), source, origin)

    return add
