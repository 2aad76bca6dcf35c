"""Rewrites of a network that keep its function, so that each bound meets one operator a layer.

Normalisation and batch norm go into the neighbouring layer, moves of values are composed, clips
are merged, and parts that are cut out and put together again become whole. The rules:

    Select ∘ Select → Select                  what changes nothing → nothing
    Diagonal ∘ (Dense | Convolution | Diagonal), (Dense | Convolution) ∘ Diagonal → one operator
    Clip ∘ Clip → Clip                        Σ of disjoint Selects of one value → Select
    Σ of disjoint, placed Clips of one value → Clip of the value      (clipped MaxMin)

The results are real-valued identities. Rounding is charged by ``lipcert.certification.deployed``,
to a network of which only moves and clips were merged.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.network.activations import Activation, Clip
from lipcert.network.graph import Network, NetworkBuilder
from lipcert.network.joints import Joint
from lipcert.network.operators import Convolution, Dense, Diagonal, Operator, Select, Shape
from lipcert.network.walk import Forward, forward


def simplify(network: Network, *, moves_only: bool = False) -> Network:
    """The same function with fewer nodes.

    ``moves_only``: products and sums stay as they are; what only moves, cuts out, puts together or
    clips values is merged, so that any arithmetic gives the same results, rounding included.
    """
    while True:
        smaller = _pass(network, moves_only)
        if len(smaller.nodes) == len(network.nodes):
            return smaller
        network = smaller


def _pass(network: Network, moves_only: bool) -> Network:
    rules = _Merging(network, moves_only)
    return rules.builder.build(forward(network, rules)[network.output])


class _Merging(Forward[int]):
    """Builds the network anew; what is found at a node is its number there."""

    def __init__(self, network: Network, moves_only: bool) -> None:
        self.network, self.moves_only = network, moves_only
        self.builder = NetworkBuilder(network.in_shape, network.nodes[0].origin)

    def _origin(self, i: int) -> str:
        """Of a node, in whose format the new ones are from now on."""
        self.builder.format = self.network.nodes[i].format
        return self.network.nodes[i].origin

    def input(self, i: int) -> int:
        return 0

    def sum(self, i: int, parts: list[int]) -> int:
        return _sum(self.builder, parts, self._origin(i), self.network.anchor.device)

    def affine(self, i: int, operator: Operator, before: int) -> int:
        origin = self._origin(i)
        if self.moves_only and not isinstance(operator, Select):
            order = self.network.nodes[i].order
            return self.builder.operator(operator, before, origin, order)
        alone = len(self.network.readers[self.network.nodes[i].inputs[0]]) == 1
        return _operator(self.builder, operator, before, alone, origin)

    def activation(self, i: int, activation: Activation, before: int) -> int:
        return _activation(self.builder, activation, before, self._origin(i))

    def joint(self, i: int, joint: Joint, parts: list[int]) -> int:
        return self.builder.joint(joint, parts, self._origin(i))


def _operator(
    builder: NetworkBuilder, operator: Operator, source: int, alone: bool, origin: str
) -> int:
    before = builder.nodes[source]
    fused: Operator | None = None
    if isinstance(operator, Diagonal) and (operator.is_identity or _is_one(operator)):
        return source
    if isinstance(operator, Select):
        if operator.is_reshape and operator.in_shape == operator.out_shape:
            return source
        if isinstance(before.kind, Select):
            fused = _compose(operator, before.kind)
    elif isinstance(before.kind, Diagonal):
        fused = _absorb(operator, before.kind)
        if isinstance(fused, Diagonal) and _is_one(fused):
            return before.inputs[0]
    elif isinstance(operator, Diagonal) and alone and isinstance(before.kind, Dense | Convolution):
        fused = _scale_outputs(operator, before.kind)
    if fused is None:
        return builder.operator(operator, source, origin)
    return builder.operator(fused, before.inputs[0], origin or before.origin)


def _is_one(operator: Diagonal) -> bool:
    """Whether it multiplies by 1 and adds nothing."""
    return (
        operator.bias is None and operator.scale is not None and bool((operator.scale == 1).all())
    )


def _compose(second: Select, first: Select) -> Select:
    index = torch.where(second.index < 0, -1, first.index[second.index.clamp(min=0)])
    return Select(first.in_shape, second.out_shape, None, index)


def _absorb(operator: Operator, before: Diagonal) -> Operator | None:
    """``operator ∘ before`` where the scale fits into the operator's own entries."""
    scale = before.scale
    entries: Tensor | None
    if isinstance(operator, Diagonal):
        entries = scale if operator.scale is None else operator.scale
        if scale is not None and operator.scale is not None:
            entries = scale * operator.scale
    elif scale is None:
        entries = operator.entries()
    elif isinstance(operator, Dense):
        full = scale.expand(operator.in_shape)
        if any(size != 1 for size in operator.in_shape[:-1]):
            return None
        entries = operator.weight * full.reshape(1, -1)
    elif isinstance(operator, Convolution):
        channel = _per_channel(scale, operator.in_shape)
        if channel is None:
            return None
        grouped = channel.reshape(operator.groups, 1, -1).expand(
            -1, operator.out_shape[1] // operator.groups, -1
        )
        spread = grouped.reshape(operator.weight.shape[:2])
        entries = operator.weight * spread.reshape(*spread.shape, *(1,) * len(operator.stride))
    else:
        return None
    bias = operator.bias
    if before.bias is not None:
        moved = operator.apply(before.bias.expand(1, *operator.in_shape)).squeeze(0)
        bias = moved if bias is None else moved + bias
    if isinstance(operator, Diagonal):
        return replace(operator, scale=entries, bias=bias)
    return replace(operator, weight=entries, bias=bias)  # type: ignore[call-arg]


def _per_channel(scale: Tensor, shape: Shape) -> Tensor | None:
    """The scale as one number a channel (axis 1), or None where it is anything else."""
    padded = scale.reshape((1,) * (len(shape) - scale.dim()) + tuple(scale.shape))
    if any(size != 1 for axis, size in enumerate(padded.shape) if axis != 1):
        return None
    return padded.flatten().expand(shape[1])


def _scale_outputs(diagonal: Diagonal, before: Dense | Convolution) -> Operator | None:
    """``diagonal ∘ before``."""
    weight = before.weight
    if diagonal.scale is not None:
        if isinstance(before, Dense):
            if any(size != 1 for size in before.out_shape[:-1]):
                return None
            rows: Tensor | None = diagonal.scale.expand(before.out_shape).reshape(-1)
        else:
            rows = _per_channel(diagonal.scale, before.out_shape)
        if rows is None:
            return None
        weight = weight * rows.reshape(-1, *(1,) * (weight.dim() - 1))
    bias = before.bias
    if bias is not None and diagonal.scale is not None:
        bias = bias * diagonal.scale
    if diagonal.bias is not None:
        bias = diagonal.bias if bias is None else bias + diagonal.bias
    return replace(before, weight=weight, bias=bias)


def _activation(builder: NetworkBuilder, activation: Activation, source: int, origin: str) -> int:
    before = builder.nodes[source]
    if isinstance(activation, Clip) and isinstance(before.kind, Clip):
        merged = _merge_clips(before.kind, activation)
        return builder.activation(merged, before.inputs[0], origin)
    return builder.activation(activation, source, origin)


def _merge_clips(first: Clip, second: Clip) -> Clip:
    """``second ∘ first``: the limits of the first, seen through the second."""

    def through(limit: Tensor | None, missing: Tensor | None) -> Tensor | None:
        return missing if limit is None else second.value(limit)

    lower, upper = first.lower, first.upper
    if lower is not None and upper is not None:
        lower = torch.minimum(lower, upper)
    # Where the second has no limit on a side and the first has none, there is none; where only
    # the second has one, an unlimited value meets that limit, unless it crosses the other one.
    low, high = second.lower, second.upper
    if low is not None and high is not None:
        low = torch.minimum(low, high)
    return Clip(through(lower, low), through(upper, high))


def _sum(builder: NetworkBuilder, sources: list[int], origin: str, device: torch.device) -> int:
    """A sum whose parts are disjoint pieces of one value is a Select (of a Clip) of that value."""
    pieces = [_piece(builder, source, device) for source in sources]
    base = pieces[0][0]
    read = torch.stack([index >= 0 for _, index, _ in pieces])
    if any(piece[0] != base for piece in pieces) or bool((read.sum(0) > 1).any()):
        return builder.sum(sources, origin)
    index = torch.stack([index for _, index, _ in pieces]).amax(0)
    shape = builder.shape(sources[0])
    node = _operator(builder, Select(builder.shape(base), shape, None, index), base, False, origin)
    lower, upper = (
        _joined([piece[2][side] for piece in pieces], read.reshape(-1, *shape), missing)
        for side, missing in ((0, -torch.inf), (1, torch.inf))
    )
    if lower is None and upper is None:
        return node
    return builder.activation(Clip(lower, upper), node, origin)


def _joined(limits: list[Tensor | None], read: Tensor, missing: float) -> Tensor | None:
    """The limits of all pieces as one, each where its piece is read; None if there are none."""
    joined: Tensor | None = None
    for mask, limit in zip(read, limits, strict=True):
        if limit is not None:
            before = torch.full_like(limit, missing) if joined is None else joined
            joined = torch.where(mask, limit, before)
    return joined


_Limits = tuple[Tensor | None, Tensor | None]


def _piece(builder: NetworkBuilder, node: int, device: torch.device) -> tuple[int, Tensor, _Limits]:
    """``node`` as (base, index into the base, clip limits): Select? ∘ Clip? ∘ Select? ∘ base."""
    shape = builder.shape(node)
    outer = torch.arange(math.prod(shape), device=device)
    lower: Tensor | None = None
    upper: Tensor | None = None
    kind = builder.nodes[node].kind
    if isinstance(kind, Select):
        outer, node = kind.index, builder.nodes[node].inputs[0]
        kind = builder.nodes[node].kind
    if isinstance(kind, Clip):
        lower, upper = (
            None
            if limit is None
            else limit.expand(builder.shape(node)).reshape(-1)[outer.clamp(min=0)].reshape(shape)
            for limit in (kind.lower, kind.upper)
        )
        node = builder.nodes[node].inputs[0]
        kind = builder.nodes[node].kind
        # A constant 0 inside the clip may come out as something else: leave it there.
        if isinstance(kind, Select) and bool((kind.index >= 0).all()):
            outer = torch.where(outer < 0, -1, kind.index[outer.clamp(min=0)])
            node = builder.nodes[node].inputs[0]
    return node, outer, (lower, upper)
