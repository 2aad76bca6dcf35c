"""From pixels to the network's input, as operators of the network: radii are then in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.errors import UsageError
from lipcert.loading.assembler import Assembler, Variable, number, places
from lipcert.network import Network
from lipcert.network.operators import Diagonal, Select, Shape


def with_preprocessing(
    network: Network,
    *,
    image_shape: tuple[int, ...],
    layout: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    value_range: tuple[float, float] = (0, 1),
) -> Network:
    """The same network as a function of pixels in [0, 1], of shape ``(1, *image_shape)``.

    In front come, in this order: the value range ``p ↦ lo + p (hi − lo)``; the shift by ``−mean``
    and the scale by ``1 / std``, one number for all channels or one each; the order of the axes.

    ``image_shape`` is ``(C, H, W)`` or ``(features,)``. ``layout`` is the order in which the
    network reads an image, a permutation of ``"CHW"``, for flat inputs too; by default it follows
    from the input's shape: ``(1, H, W, C)`` is transposed, any other one read in the order C, H, W.

    ``UsageError`` for shapes, statistics or a layout that do not fit, and for statistics given to
    a network that already normalises.
    """
    assembler = Assembler((1, *image_shape), "pixels")
    assembler.origin = "preprocessing"
    low, high = (float(bound) for bound in value_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"value range {low} to {high}: expected two finite, increasing numbers")
    found = normalisation_found(network)
    if found is not None and (mean is not None or std is not None):
        raise UsageError(
            f"mean and std are given, but the network already normalises its input ({found}); "
            "leave them out, or give a network without normalisation"
        )
    x = assembler.input
    if (low, high) != (0.0, 1.0):
        scale = None if high - low == 1 else number(high - low)
        x = assembler.diagonal(x, scale, number(low) if low else None)
    if mean is not None:
        x = assembler.diagonal(x, None, -_statistic("mean", mean, image_shape))
    if std is not None:
        deviation = _statistic("std", std, image_shape)
        if not bool((deviation > 0).all()):
            raise UsageError(f"std {list(std)}: every entry must be greater than 0")
        x = assembler.diagonal(x, 1 / deviation, None)
    x = _arrange(assembler, x, image_shape, network.in_shape, layout)
    if (own := network.nodes[0].format) is not None:
        x = assembler.stored(x, own)
    front = assembler.builder.nodes
    moved = [
        replace(node, inputs=tuple(x.node + i for i in node.inputs)) for node in network.nodes[1:]
    ]
    return Network((*front, *moved), leaves=network.leaves, each=network.each)


def _statistic(name: str, values: Sequence[float], image_shape: Shape) -> Tensor:
    if len(values) not in (1, image_shape[0]) or not all(map(math.isfinite, values)):
        several = f" or {image_shape[0]}" if image_shape[0] > 1 else ""
        raise UsageError(
            f"{name} {list(values)}: expected 1{several} finite numbers for images "
            f"{list(image_shape)}"
        )
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *(1,) * (len(image_shape) - 1))


def _arrange(
    assembler: Assembler, x: Variable, image_shape: Shape, in_shape: Shape, layout: str | None
) -> Variable:
    if math.prod(image_shape) != math.prod(in_shape):
        raise UsageError(
            f"images {list(image_shape)} have {math.prod(image_shape)} values, the network's input "
            f"{list(in_shape)} has {math.prod(in_shape)}"
        )
    if layout is None:
        if len(image_shape) != 3 or in_shape == (1, *image_shape):
            return assembler.reshape(x, in_shape)
        channels, height, width = image_shape
        layout = "HWC" if in_shape == (1, height, width, channels) else "CHW"
    elif sorted(layout) != ["C", "H", "W"] or len(image_shape) != 3:
        raise UsageError(f"layout {layout!r}: expected an order of C, H and W, for images with all")
    elif sum(extent != 1 for extent in in_shape) > 1:
        ordered = [image_shape["CHW".index(axis)] for axis in layout]
        if [n for n in ordered if n != 1] != [n for n in in_shape if n != 1]:
            raise UsageError(
                f"layout {layout!r} makes {ordered} of images {list(image_shape)}, which does not "
                f"fit the network's input {list(in_shape)}"
            )
    order = [1 + "CHW".index(axis) for axis in layout]
    return assembler.select(x, places(x.shape).transpose(0, *order).reshape(in_shape))


def normalisation_found(network: Network) -> str | None:
    """What the network does to its input before anything else, if that shifts or scales it."""
    read, found = {0}, []
    for i, node in enumerate(network.nodes):
        if not read.intersection(node.inputs) or not isinstance(node.kind, Select | Diagonal):
            continue
        read.add(i)
        if isinstance(node.kind, Diagonal):
            bias, scale = node.kind.bias, node.kind.scale
            if scale is not None and bool((scale != 1).any()):
                found.append(f"a scale of {_told(scale)} at {node.origin!r}")
            if bias is not None and bool((bias != 0).any()):
                found.append(f"a shift by {_told(bias)} at {node.origin!r}")
    return " and ".join(found) or None


def _told(values: Tensor) -> str:
    distinct = values.reshape(-1).tolist()
    return ", ".join(f"{v:.6g}" for v in distinct[:3]) + (", …" if len(distinct) > 3 else "")
