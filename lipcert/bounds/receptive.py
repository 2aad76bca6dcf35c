"""What one neuron of a convolution sees: a window of every layer before it.

The windows of a node are of one size and lie a stride apart. So the objectives of its neurons all
go back through one small network, of the same weights without padding, with what each finds in its
window as the state. Beyond the border there is only padding, which cannot change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.bounds.state import Layer, State, half_diagonal
from lipcert.network import (
    Backward,
    Input,
    Network,
    NetworkBuilder,
    Node,
    Sum,
    ancestors,
    backward,
)
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.joints import Joint
from lipcert.network.operators import Convolution, Diagonal, Operator, Select, Shape
from lipcert.network.operators.base import move_tensors


@dataclass(frozen=True)
class Extent:
    """Along one axis: the window of place ``p`` begins at ``step p + begin``, and is ``size``
    long."""

    step: int
    begin: int
    size: int

    @property
    def end(self) -> int:
        return self.begin + self.size

    def hull(self, other: Extent) -> Extent:
        begin = min(self.begin, other.begin)
        return Extent(self.step, begin, max(self.end, other.end) - begin)


# One for each axis of an image.
Extents = tuple[Extent, ...]


@dataclass(frozen=True, eq=False)
class ReceptiveFields:
    """The windows of one node: the small ``network``, and the ``extents`` of the whole one's
    sources, with their numbers in the small one."""

    shape: Shape
    network: Network
    extents: dict[int, tuple[Extent, ...]]
    numbers: dict[int, int]

    @classmethod
    def of(cls, network: Network, node: int, most: float = 0.5) -> Self | None:
        """None where a neuron's objectives do not stay in a window, or windows hold more than the
        share ``most`` of all values, which is not worth the trouble."""
        path = ancestors(network, node)
        extents = _extents(network, node)
        if extents is None or not all(_is_steady(network.nodes[i]) for i in path):
            return None
        sources = [i for i in network.sources if i in extents]
        shapes = {i: network.nodes[i].shape for i in sources}
        window = {i: (1, shapes[i][1], *(extent.size for extent in extents[i])) for i in sources}
        whole = sum(math.prod(shape) for shape in shapes.values())
        if sum(math.prod(shape) for shape in window.values()) > most * whole:
            return None
        builder = NetworkBuilder(window[0])
        numbers = {0: 0}
        for i in path[1:]:
            numbers[i] = _add(builder, network, i, extents, numbers)
        small = Network(tuple(builder.nodes), network.rough)
        if not small.parameters:
            # No operator has a number that would tell its type.
            return None
        return cls(
            network.nodes[node].shape,
            small,
            {i: extents[i] for i in sources},
            {i: numbers[i] for i in sources},
        )

    @property
    def size(self) -> int:
        """The values of all windows of one neuron."""
        return sum(math.prod(self.network.nodes[i].shape) for i in self.numbers.values())

    def state(self, state: State, rows: Tensor, neurons: Tensor) -> State:
        """For each neuron, the layers of its row through its window. A part of a ball is no larger
        than the whole, nor than the part of the box."""
        place: list[Tensor] = []
        rest = neurons
        for size in reversed(self.shape[2:]):
            place.insert(0, rest % size)
            rest = torch.div(rest, size, rounding_mode="floor")
        found: State = {}
        for i, number in self.numbers.items():
            layer, shape = state[i], self.network.nodes[number].shape
            index, sides = self._index(i, layer.anchor.shape[1:], rows, place)

            def cut(
                t: Tensor, index: Tensor = index, sides: list[int] = sides, shape: Shape = shape
            ) -> Tensor:
                flat = F.pad(t, sides).flatten()
                return flat.index_select(0, index).reshape(len(rows), *shape)

            anchor, lower, upper, varying = map(
                cut, (layer.anchor, layer.lower, layer.upper, layer.varying)
            )
            width = torch.maximum(upper - anchor, anchor - lower) * varying
            around = half_diagonal(width, layer.radius.dtype)
            found[number] = Layer(
                anchor, lower, upper,
                torch.minimum(layer.radius[rows], self.network.outward.up(around, 1)),
                cut(layer.gain), varying,
                drift=None if layer.drift is None else cut(layer.drift),
                drift_length=None if layer.drift_length is None else layer.drift_length[rows],
            )  # fmt: skip
        return found

    def _index(
        self, source: int, shape: Shape, rows: Tensor, place: Sequence[Tensor]
    ) -> tuple[Tensor, list[int]]:
        """Where the values of the windows lie in the layer, flattened, once it is padded by so much
        on its sides, last axis first."""
        (_, channels, *space), extents = shape, self.extents[source]
        begins = [max(0, -extent.begin) for extent in extents]
        ends = [
            max(0, (count - 1) * extent.step + extent.end - size)
            for extent, count, size in zip(extents, self.shape[2:], space, strict=True)
        ]
        padded = [sum(sizes) for sizes in zip(begins, space, ends, strict=True)]
        first, inside = rows * channels, torch.arange(channels, device=rows.device)
        for extent, size, before, at in zip(extents, padded, begins, place, strict=True):
            first = first * size + at * extent.step + extent.begin + before
            inside = inside[..., None] * size + torch.arange(extent.size, device=rows.device)
        sides = [
            side for pair in zip(reversed(begins), reversed(ends), strict=True) for side in pair
        ]
        return (first[:, None] + inside.flatten()).flatten(), sides

    def coefficients(self, neurons: Tensor, like: Tensor) -> Tensor:
        """The objective of each neuron, itself: ``(N, *shape of the small network's output)``."""
        channel = torch.div(neurons, math.prod(self.shape[2:]), rounding_mode="floor")
        objective = like.new_zeros(len(neurons), self.shape[1])
        return objective.scatter_(1, channel[:, None], 1.0).reshape(
            len(neurons), *self.network.nodes[-1].shape
        )


class _Seen(Backward[Extents | None]):
    """The windows of every node, in ``found``; None where one is no image or of no fixed stride."""

    def __init__(self, network: Network, axes: int) -> None:
        self.network, self.axes = network, axes
        self.found: dict[int, Extents | None] = {}

    def arrived(self, i: int, value: Extents | None) -> Extents | None:
        shape = self.network.nodes[i].shape
        is_image = len(shape) == self.axes + 2 and shape[0] == 1
        self.found[i] = value if is_image else None
        return self.found[i]

    def affine(self, i: int, operator: Operator, value: Extents | None) -> Extents | None:
        if value is None or isinstance(operator, Diagonal):
            return value
        if not isinstance(operator, Convolution):
            return None
        padded = any(max(pad) > 0 for pad in operator.padding)
        if padded and not _is_still_outside(self.network, self.network.nodes[i].inputs[0]):
            return None
        return _before(operator, value)

    def activation(self, i: int, activation: Activation, value: Extents | None) -> Extents | None:
        return value if isinstance(activation, Elementwise) else None

    def joint(self, i: int, joint: Joint, value: Extents | None) -> list[Extents | None]:
        return [None] * len(joint.in_shapes)

    def add(self, one: Extents | None, other: Extents | None) -> Extents | None:
        if one is None or other is None:
            return None
        pairs = list(zip(one, other, strict=True))
        if any(a.step != b.step for a, b in pairs):
            return None
        return tuple(a.hull(b) for a, b in pairs)


def _extents(network: Network, node: int) -> dict[int, Extents] | None:
    """Of every node before it, None where one is no image or of no fixed stride."""
    axes = len(network.nodes[node].shape) - 2
    if axes < 1:
        return None
    seen = _Seen(network, axes)
    backward(network, node, (Extent(1, 0, 1),) * axes, seen)
    known = {i: windows for i, windows in seen.found.items() if windows is not None}
    return known if len(known) == len(seen.found) else None


def _is_still_outside(network: Network, node: int) -> bool:
    """Whether an objective beyond the border of a node reaches nothing but what is beyond that of
    layers, where nothing varies: a convolution on the way would lead it back."""
    kind = network.nodes[node].kind
    if isinstance(kind, Sum | Diagonal):
        return all(_is_still_outside(network, j) for j in network.nodes[node].inputs)
    return isinstance(kind, Input | Elementwise)


def _before(convolution: Convolution, extents: Sequence[Extent]) -> tuple[Extent, ...]:
    """What a convolution reads for windows of its output."""
    c, kernel = convolution, convolution.weight.shape[2:]
    return tuple(
        Extent(
            extent.step * step,
            extent.begin * step - before,
            (extent.size - 1) * step + gap * (width - 1) + 1,
        )
        for extent, step, (before, _), gap, width in zip(
            extents, c.stride, c.padding, c.dilation, kernel, strict=True
        )
    )


def _add(
    builder: NetworkBuilder, network: Network, i: int, extents: dict[int, tuple[Extent, ...]],
    numbers: dict[int, int],
) -> int:  # fmt: skip
    """One node of the small network. Constants are left out: only changes count."""
    node, own = network.nodes[i], extents[i]

    def cut(j: int, wanted: Sequence[Extent]) -> list[tuple[int, int]]:
        """By how much the window of a node is larger than what is wanted, on either side."""
        return [(w.begin - s.begin, s.end - w.end) for w, s in zip(wanted, extents[j], strict=True)]

    def fitting(j: int) -> int:
        sides, shape = cut(j, own), builder.shape(numbers[j])
        if not any(map(any, sides)):
            return numbers[j]
        index = torch.arange(math.prod(shape), device=network.anchor.device).reshape(shape)
        for axis, ((before, _), extent) in enumerate(zip(sides, own, strict=True), start=2):
            index = index.narrow(axis, before, extent.size)
        return builder.operator(Select.of(index, shape), numbers[j])

    match node.kind:
        case Sum():
            return builder.sum([fitting(j) for j in node.inputs])
        case Convolution() as kind:
            (j,) = node.inputs
            sides = cut(j, _before(kind, own))
            small = Convolution.of(
                kind.weight, None, builder.shape(numbers[j]), stride=kind.stride,
                padding=[(-before, -after) for before, after in sides],
                dilation=kind.dilation, groups=kind.groups,
            )  # fmt: skip
            return builder.operator(small, numbers[j])
        case Diagonal(scale=scale):
            source = fitting(node.inputs[0])
            steady = None if scale is None else _steady(scale, node.shape)
            return builder.operator(Diagonal.of(steady, None, builder.shape(source)), source)
        case Elementwise() as activation:
            steadied = move_tensors(activation, lambda t: _steady(t, node.shape))
            return builder.activation(steadied, fitting(node.inputs[0]))
        case _:
            raise TypeError(f"no window through {type(node.kind).__name__}")


def _is_steady(node: Node) -> bool:
    """Whether it does the same at every place."""
    held: list[Tensor] = []
    if isinstance(node.kind, Diagonal):
        held = [] if node.kind.scale is None else [node.kind.scale]
    elif isinstance(node.kind, Elementwise):
        values = [getattr(node.kind, field.name) for field in fields(node.kind)]
        held = [value for value in values if isinstance(value, Tensor)]
    return all(bool((t == _steady(t, node.shape)).all()) for t in held)


def _steady(tensor: Tensor, shape: Shape) -> Tensor:
    """Its numbers at the first place: ``(1, C, 1, …)``."""
    whole = tensor.expand(shape)
    return whole[(slice(None), slice(None), *(slice(0, 1) for _ in shape[2:]))]
