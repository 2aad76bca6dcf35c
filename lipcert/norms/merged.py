"""What neighbouring nodes are together: convolutions on a torus, and residual sums of convolutions.

A convolution after circular padding, which files write as moves, is a convolution on the torus; its
norm is the largest over the torus's frequencies, where the padding alone would double it. And
``x + C x``, or a sum of several convolutions of one value, is one convolution, with 1 added to a
tap of each channel; its norm is at most that of the parts together, and often far less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from lipcert.network import Network, Sum
from lipcert.network.operators import Convolution, Select
from lipcert.norms.spectrum import convolution_norm, torus_norm

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class MergedMap:
    """The linear map from node ``source``: a convolution, which wraps around where ``torus``."""

    source: int
    operator: Convolution
    torus: bool

    @property
    def norm(self) -> float:
        """An upper bound of its norm, infinite where symbols are too large."""
        found = torus_norm(self.operator) if self.torus else convolution_norm(self.operator)
        return math.inf if found is None else found


def merged(network: Network, i: int) -> MergedMap | None:
    """What a node is of a node before it, if it is more than its last operator."""
    kind = network.nodes[i].kind
    if isinstance(kind, Sum):
        return _sum(network, i)
    found = _convolution(network, i)
    return found if found is not None and found.torus else None


def _convolution(network: Network, i: int) -> MergedMap | None:
    """A convolution as one of the node before it, or before its circular padding, whose pads it
    then takes."""
    node = network.nodes[i]
    if not isinstance(node.kind, Convolution):
        return None
    (before,) = node.inputs
    padding = network.nodes[before].kind
    if not isinstance(padding, Select) or any(side for pad in node.kind.padding for side in pad):
        return MergedMap(before, node.kind, torus=False)
    pads = _circular(padding)
    if pads is None:
        return MergedMap(before, node.kind, torus=False)
    # On the torus no place may come twice.
    space, steps = padding.in_shape[2:], node.kind.stride
    fits = all(
        size % step == 0 and out <= size // step
        for size, step, out in zip(space, steps, node.kind.out_shape[2:], strict=True)
    )
    wrapped = replace(node.kind, in_shape=padding.in_shape, padding=pads, bias=None)
    return MergedMap(network.nodes[before].inputs[0], wrapped, torus=True) if fits else None


def _circular(padding: Select) -> Pads | None:
    """How far a move continues its input around, before and after each spatial axis; None where it
    does not."""
    space, wide = padding.in_shape[2:], padding.out_shape[2:]
    if not space or padding.in_shape[:2] != padding.out_shape[:2] or len(space) != len(wide):
        return None
    index = padding.index.cpu().reshape(padding.out_shape)
    if not index.numel() or int(index.flatten()[0]) < 0:
        return None
    first, pads = int(index.flatten()[0]), []
    places = torch.arange(math.prod(padding.in_shape)).reshape(padding.in_shape)
    for size, out in zip(reversed(space), reversed(wide), strict=True):
        begin = -(first % size) % size
        pads.append((begin, out - size - begin))
        first //= size
    for axis, ((begin, end), size) in enumerate(zip(reversed(pads), space, strict=True), 2):
        if end < 0:
            return None
        around = (torch.arange(size + begin + end) - begin) % size
        places = places.index_select(axis, around)
    return tuple(reversed(pads)) if torch.equal(places, index) else None


def _sum(network: Network, i: int) -> MergedMap | None:
    """A sum of convolutions of one value, and of the value itself, with stride 1."""
    inputs, shape = network.nodes[i].inputs, network.nodes[i].shape
    parts = {j: _convolution(network, j) for j in inputs}
    if len(parts) < len(inputs):
        return None
    for source in {part.source for part in parts.values() if part is not None}:
        layers = [part for j, part in parts.items() if j != source]
        if all(part is not None and part.source == source for part in layers):
            known = [part for part in layers if part is not None]
            return _together(known, shape, with_source=source in inputs)
    return None


def _together(
    layers: list[MergedMap], shape: tuple[int, ...], *, with_source: bool
) -> MergedMap | None:
    """Convolutions of one value, and the value itself, as one."""
    first, torus = layers[0], layers[0].torus
    if any(not _in_place(part.operator, shape) for part in layers):
        return None
    kind = first.torus, first.operator.groups
    if any((part.torus, part.operator.groups) != kind for part in layers):
        return None
    reach = [max(part.operator.padding[a][0] for part in layers) for a in range(len(shape) - 2)]
    weight = sum(_spread(part.operator, reach) for part in layers)
    assert isinstance(weight, torch.Tensor)
    if with_source:
        outputs, channels = weight.shape[:2]
        rows = torch.arange(outputs)
        at: tuple[torch.Tensor | int, ...] = (rows, rows % channels, *reach)
        weight[at] += 1
    pads = tuple((r, r) for r in reach)
    whole = replace(
        first.operator, weight=weight, padding=pads, dilation=(1,) * len(reach), bias=None
    )
    return MergedMap(first.source, whole, torus)


def _in_place(operator: Convolution, shape: tuple[int, ...]) -> bool:
    """Whether every output lies over its input, in the middle of an odd kernel."""
    return operator.in_shape == operator.out_shape == shape and all(
        step == 1 and width % 2 and before == after == gap * (width // 2)
        for step, width, gap, (before, after) in zip(
            operator.stride, operator.weight.shape[2:], operator.dilation, operator.padding,
            strict=True,
        )
    )  # fmt: skip


def _spread(operator: Convolution, reach: list[int]) -> torch.Tensor:
    """The taps one cell apart, in the middle of a kernel of this reach, in float64."""
    weight = operator.weight.double()
    wide = [gap * (width - 1) + 1
            for gap, width in zip(operator.dilation, weight.shape[2:], strict=True)]  # fmt: skip
    taps = weight.new_zeros(*weight.shape[:2], *wide)
    spots: tuple[slice, ...] = tuple(slice(None, None, gap) for gap in operator.dilation)
    taps[(slice(None), slice(None), *spots)] = weight
    sides = [r - width // 2 for r, width in zip(reach, wide, strict=True)]
    return F.pad(taps, [side for s in reversed(sides) for side in (s, s)])
