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

from lipcert.network.activations import Activation, GroupMax, GroupSort, MaxMin, PReLU
from lipcert.network.graph import Network, NetworkBuilder
from lipcert.network.joints import Joint
from lipcert.network.operators import Dense, Diagonal, Operator, Select, Shape
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
        order = self.network.nodes[i].order
        return self.builder.operator(operator, before, self._origin(i), order)

    def activation(self, i: int, activation: Activation, before: int) -> int:
        builder, origin = self.builder, self._origin(i)
        first, like = len(builder.nodes), self.network.anchor
        charged: set[int] = set()
        match activation:
            case MaxMin():
                place, charged = _pairs(builder, activation, before, origin, like)
            case GroupMax():
                place = _maximum(builder, before, origin, like)
            case GroupSort():
                place = _sorted_group(builder, before, origin, like)
            case _:
                return builder.activation(activation, before, origin)
        self.compared.update(
            id(made.kind) for i, made in enumerate(builder.nodes[first:], first)
            if i not in charged
        )  # fmt: skip
        return place

    def joint(self, i: int, joint: Joint, parts: list[int]) -> int:
        return self.builder.joint(joint, parts, self._origin(i))


def _pairs(
    builder: NetworkBuilder, kind: MaxMin, source: int, origin: str, like: Tensor
) -> tuple[int, set[int]]:
    """MaxMin: its pairs along a new last axis, sorted there, and put back. A value that passes is a
    pair with 0 of which neither the sum nor the difference is bent: ``v/2 + v/2``, which like a
    pair is made shorter by ``√2`` and longer again.

    Beside it the nodes that stand for what a file rounds where it writes a comparison out: the
    half-sum and the half-difference times 8 and by 8, as often as it takes. These are two products
    of at least four roundings each, of values whose magnitudes add up to the larger of the pair.
    """
    shape = builder.shape(source)
    places = torch.arange(math.prod(shape), device=like.device).reshape(shape)
    first, second, rest = kind.parts(places, kind.axis)
    nothing = torch.full_like(rest, -1)
    sides = ((first, rest), (second, nothing))
    paired = torch.stack([torch.cat(side, kind.axis) for side in sides], -1)
    node = builder.operator(Select.of(paired, shape), source, origin)
    bent = torch.cat([torch.ones_like(first), torch.zeros_like(rest)], kind.axis)
    slopes = torch.stack([torch.ones_like(bent), 1 - 2 * bent], -1).to(like.dtype)
    slopes = slopes if kind.passing else like.new_tensor([1.0, -1.0])
    node, charged = _sorted_pairs(builder, node, origin, slopes, kind.spelling)
    moved = torch.arange(paired.numel(), device=like.device).reshape(paired.shape)
    half = first.shape[kind.axis]
    back = torch.cat(
        [moved[..., 0].narrow(kind.axis, 0, half), moved[..., 1].narrow(kind.axis, 0, half),
         moved[..., 0].narrow(kind.axis, half, kind.passing)], dim=kind.axis,
    )  # fmt: skip
    return builder.operator(Select.of(back, tuple(paired.shape)), node, origin), charged


def _sorted_pairs(
    builder: NetworkBuilder, source: int, origin: str, slopes: Tensor, spelling: float
) -> tuple[int, set[int]]:
    """``(…, a, b)`` becomes ``(…, max, min)``, where the ``slopes`` of sum and difference are 1 and
    −1."""
    dense, charged = _dense(builder, origin, slopes), set[int]()
    node = dense(source, [[0.5, 0.5], [0.5, -0.5]])
    node = builder.activation(PReLU(slopes), node, origin)
    for factor in (8.0, 0.125) * math.ceil(spelling / 8):
        scale = Diagonal.of(slopes.new_tensor(factor), None, builder.shape(node))
        node = builder.operator(scale, node, origin)
        charged.add(node)
    return dense(node, [[1.0, 1.0], [1.0, -1.0]]), charged


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


def comparators(size: int) -> list[list[tuple[int, int]]]:
    """Rounds of comparisons that sort any ``size`` numbers; in each the larger number of a pair
    comes first. Where the size is a power of two every number is compared in every round
    (Batcher's bitonic network); else neighbours are, in turn."""
    if size & (size - 1):
        return [[(i, i + 1) for i in range(start % 2, size - 1, 2)] for start in range(size)]
    rounds, block = [], 2
    while block <= size:
        gap = block // 2
        while gap:
            pairs = [(i, i | gap) for i in range(size) if not i & gap]
            rounds.append([(i, j) if not i & block else (j, i) for i, j in pairs])
            gap //= 2
        block *= 2
    return rounds


def _sorted_group(builder: NetworkBuilder, source: int, origin: str, like: Tensor) -> int:
    """The last axis, sorted by rounds of comparisons; a number without a partner passes on."""
    dense, node = _dense(builder, origin, like), source
    size = builder.shape(source)[-1]
    for pairs in comparators(size):
        split, join, slopes = torch.eye(size), torch.eye(size), [1.0] * size
        for i, j in pairs:
            split[i, [i, j]] = 0.5
            split[j, i], split[j, j] = 0.5, -0.5
            join[i, j], join[j, i], join[j, j] = 1, 1, -1
            slopes[j] = -1.0
        node = dense(node, split.tolist())
        node = builder.activation(PReLU(like.new_tensor(slopes)), node, origin)
        node = dense(node, join.tolist())
    return node


def _dense(
    builder: NetworkBuilder, origin: str, like: Tensor
) -> Callable[[int, list[list[float]]], int]:
    def add(source: int, matrix: list[list[float]]) -> int:
        shape: Shape = builder.shape(source)
        return builder.operator(Dense.of(like.new_tensor(matrix), None, shape), source, origin)

    return add
