"""From the data to the network's input, as operators of the network: radii are then in the data's
own unit, which for images are pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.errors import UsageError
from lipcert.loading.assembler import Assembler, Variable, number, places
from lipcert.network import Network, fold
from lipcert.network.operators import Diagonal, Select, Shape


def with_preprocessing(
    network: Network,
    *,
    image_shape: tuple[int, ...],
    layout: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    value_range: tuple[float, float] = (0, 1),
    channels: str | None = None,
) -> Network:
    """The same network as a function of the data, of shape ``(1, *image_shape)``: of pixels in
    [0, 1], or of what tables, signals and volumes hold.

    In front come, in this order: the value range ``p ↦ lo + p (hi − lo)``; the order of the colours
    or, for gray images, the gray three times; the shift by ``−mean`` and the scale by ``1 / std``,
    one number for all channels or features, or one each as the network reads them; the order of the
    axes. What the network itself does to its input comes after all of it.

    ``image_shape`` is ``(features,)``, ``(C, L)``, ``(C, H, W)`` or ``(C, D, H, W)``. ``layout`` is
    the order in which the network reads these axes, such as ``"HWC"``, for flat inputs too; by
    default it follows from the input's shape: one with the channels last is transposed, any other
    one read in the order of the data. ``channels``: ``"bgr"`` where the network reads blue first,
    ``"rgb"`` for gray images and a network of three channels.

    ``UsageError`` for shapes, statistics, a layout or channels that do not fit.
    """
    assembler = Assembler((1, *image_shape), "pixels" if len(image_shape) == 3 else "data")
    assembler.origin = "preprocessing"
    x, given = _ranged(assembler, value_range), image_shape
    if channels is not None:
        order = _colours(channels, image_shape)
        x = assembler.select(x, places(x.shape)[:, order])
        image_shape = (len(order), *image_shape[1:])
    if mean is not None:
        x = assembler.diagonal(x, None, -_statistic("mean", mean, image_shape))
    if std is not None:
        deviation = _statistic("std", std, image_shape)
        if not bool((deviation > 0).all()):
            raise UsageError(f"--std {_written(std)}: every number must be above 0")
        x = assembler.diagonal(x, 1 / deviation, None)
    x = _arrange(assembler, x, image_shape, network.in_shape, layout, given)
    if (own := network.nodes[0].format) is not None:
        x = assembler.stored(x, own)
    front = assembler.builder.nodes
    moved = [
        replace(node, inputs=tuple(x.node + i for i in node.inputs)) for node in network.nodes[1:]
    ]
    return Network((*front, *moved), leaves=network.leaves, each=network.each)


def _ranged(assembler: Assembler, value_range: tuple[float, float]) -> Variable:
    """The data in the range that the network takes."""
    low, high = (float(bound) for bound in value_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"--range {low:g},{high:g}: give two finite numbers, the smaller first, such as 0,255"
        )
    if (low, high) == (0.0, 1.0):
        return assembler.input
    scale = None if high - low == 1 else number(high - low)
    return assembler.diagonal(assembler.input, scale, number(low) if low else None)


def _statistic(name: str, values: Sequence[float], image_shape: Shape) -> Tensor:
    if len(values) not in (1, image_shape[0]) or not all(map(math.isfinite, values)):
        several = f", or {image_shape[0]}, one each" if image_shape[0] > 1 else ""
        raise UsageError(
            f"--{name} {_written(values)}: give one finite number{several}, for "
            f"{_KINDS[len(image_shape)]} {list(image_shape)}"
        )
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *(1,) * (len(image_shape) - 1))


def _written(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


# What arrays of so many axes are called, and the letters of these.
_KINDS = {1: "samples of features", 2: "signals", 3: "images", 4: "volumes"}
_AXES = {1: "F", 2: "CL", 3: "CHW", 4: "CDHW"}


def _colours(channels: str, image_shape: Shape) -> list[int]:
    """The channels of the data in the order in which the network reads them."""
    if channels not in ("rgb", "bgr"):
        raise UsageError(f"--channels {channels!r}: choose rgb or bgr")
    if len(image_shape) != 3 or image_shape[0] not in (1, 3):
        raise UsageError(
            f"--channels {channels}: goes with images of one or three channels, not with "
            f"{_KINDS[len(image_shape)]} {list(image_shape)}"
        )
    if image_shape[0] == 1:
        return [0, 0, 0]
    return [0, 1, 2] if channels == "rgb" else [2, 1, 0]


def _remedy(given: Shape, image_shape: Shape, in_shape: Shape) -> str:
    """What to do about images of other sizes than the network's input; ``given``: before channels
    were repeated."""
    wanted = math.prod(in_shape)
    if given[0] == 1 and len(given) == 3 and wanted == 3 * math.prod(given):
        return (
            "the images are gray and the network reads three channels: give --channels rgb to "
            "repeat the gray one"
        )
    if wanted == math.prod(given):
        return "leave --channels out, which repeats gray images"
    if len(image_shape) == 3 and 3 * wanted == math.prod(image_shape):
        return "the network reads gray images: give gray ones"
    if len(image_shape) == 3 and len(in_shape) == 4:
        first = in_shape[1] <= in_shape[3]
        height, width = in_shape[2:] if first else in_shape[1:3]
        return (
            f"give images of {height}x{width}; folders and archives of pictures are brought to "
            f"that size by --resize {height},{width}"
        )
    return "give the data that the model was trained for"


def _arrange(
    assembler: Assembler, x: Variable, image_shape: Shape, in_shape: Shape, layout: str | None,
    given: Shape,
) -> Variable:  # fmt: skip
    kind, axes = _KINDS[len(image_shape)], _AXES[len(image_shape)]
    if math.prod(image_shape) != math.prod(in_shape):
        raise UsageError(
            f"{kind} {list(image_shape)} have {math.prod(image_shape)} values, the network's input "
            f"{list(in_shape)} has {math.prod(in_shape)}; {_remedy(given, image_shape, in_shape)}"
        )
    orders = (image_shape, (*image_shape[1:], image_shape[0]))
    moved = sorted(in_shape[1:]) == sorted(image_shape) and in_shape[1:] not in orders
    if layout is None and moved:
        raise UsageError(
            f"{kind} {list(image_shape)} have the axes of the network's input {list(in_shape)} in "
            "another order; name the axes of the data with --data-layout, or those of the model "
            "with --layout"
        )
    last = (1, *image_shape[1:], image_shape[0])
    if layout is None:
        if len(image_shape) == 1 or in_shape == (1, *image_shape) or in_shape != last:
            return assembler.reshape(x, in_shape)
        layout = axes[1:] + axes[0]
    elif len(image_shape) == 1 or sorted(layout) != sorted(axes):
        if sorted(layout.upper()) == ["B", "G", "R"]:
            raise UsageError(
                f"--layout {layout!r}: this is the order of the axes, not of the colours; give "
                "--channels bgr for a network that reads blue first"
            )
        letters = f"{', '.join(axes[:-1])} and {axes[-1]}" if axes[1:] else "C, H and W"
        raise UsageError(
            f"--layout {layout!r}: give an order of all the letters {letters}, for {kind}"
        )
    elif sum(extent != 1 for extent in in_shape) > 1:
        ordered = [image_shape[axes.index(axis)] for axis in layout]
        if [n for n in ordered if n != 1] != [n for n in in_shape if n != 1]:
            raise UsageError(
                f"--layout {layout!r} makes {ordered} of {kind} {list(image_shape)}, which does "
                f"not fit the network's input {list(in_shape)}"
            )
    order = [1 + axes.index(axis) for axis in layout]
    return assembler.select(x, places(x.shape).transpose(0, *order).reshape(in_shape))


def normalisation_found(network: Network) -> str | None:
    """What the network does to its input before anything else, if that shifts or scales it.

    It may be a normalisation, a part of one, or a layer that was trained: nothing tells them apart.
    """

    def only_moved(i: int, parts: list[bool]) -> bool:
        return not parts or (any(parts) and isinstance(network.nodes[i].kind, Select | Diagonal))

    found = []
    for node, is_first in zip(network.nodes, fold(network, only_moved), strict=True):
        if is_first and isinstance(node.kind, Diagonal):
            bias, scale = node.kind.bias, node.kind.scale
            if scale is not None and bool((scale != 1).any()):
                found.append(f"a scale of {_told(scale)} at {node.origin!r}")
            if bias is not None and bool((bias != 0).any()):
                found.append(f"a shift by {_told(bias)} at {node.origin!r}")
    return " and ".join(found) or None


def _told(values: Tensor) -> str:
    distinct = values.reshape(-1).tolist()
    return ", ".join(f"{v:.6g}" for v in distinct[:3]) + (", …" if len(distinct) > 3 else "")
