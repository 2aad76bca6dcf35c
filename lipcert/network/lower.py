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
from lipcert.network.graph import Network, NetworkBuilder
from lipcert.network.joints import Joint
from lipcert.network.operators import Dense, Operator, Select, Shape
from lipcert.network.walk import Forward, forward


def lower(network: Network) -> Network:
    """The same function with element-wise activations only."""
    return lowered(network)[0]


def lowered(network: Network) -> tuple[Network, frozenset[int]]:
    """``lower``, and which of its nodes stand for comparisons."""
    lowering = _Lowering(network)
    place = forward(network, lowering)
    built = lowering.builder.build(place[network.output])
    compared = frozenset(
        i for i, node in enumerate(built.nodes) if id(node.kind) in lowering.compared
    )
    return built, compared


class _Lowering(Forward[int]):
    """Builds the network anew; what is found at a node is its number there. ``compared``: the
    kinds, by identity, that stand for comparisons."""

    def __init__(self, network: Network) -> None:
        self.network, self.compared = network, set[int]()
        self.builder = NetworkBuilder(network.in_shape, network.nodes[0].origin)

    def input(self, i: int) -> int:
        return 0

    def _origin(self, i: int) -> str:
        """Of a node, in whose format the new ones are from now on."""
        self.builder.format = self.network.nodes[i].format
        return self.network.nodes[i].origin

    def sum(self, i: int, parts: list[int]) -> int:
        return self.builder.sum(parts, self._origin(i))

    def affine(self, i: int, operator: Operator, before: int) -> int:
        return self.builder.operator(operator, before, self._origin(i))

    def activation(self, i: int, activation: Activation, before: int) -> int:
        builder, origin = self.builder, self._origin(i)
        first, like = len(builder.nodes), self.network.anchor
        match activation:
            case MaxMin():
                place = _pairs(builder, activation, before, origin, like)
            case GroupMax():
                place = _maximum(builder, before, origin, like)
            case _:
                return builder.activation(activation, before, origin)
        self.compared.update(id(made.kind) for made in builder.nodes[first:])
        return place

    def joint(self, i: int, joint: Joint, parts: list[int]) -> int:
        return self.builder.joint(joint, parts, self._origin(i))


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
