"""Pooling and reductions: averages are affine, maxima are a gather and a ``GroupMax``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import torch

from lipcert.loading.assembler import Index, Variable, places
from lipcert.loading.value import Call, Unsupported
from lipcert.loading.windows import Windows, windows
from lipcert.network.operators import Convolution


def _average_pool(call: Call) -> Variable:
    """Each channel summed over its windows, then divided by how many values each window counts."""
    x = call.variable(0)
    channels, space = x.shape[1], x.shape[2:]
    over = windows(call.attributes, space, call.attributes["kernel_shape"])
    over.charge(call.assembler.allowance)
    call.assembler.allowance.keep(channels * math.prod(over.kernel))
    summed = call.assembler.operator(
        Convolution.of(
            torch.ones(channels, 1, *over.kernel, dtype=torch.float64),
            None,
            x.shape,
            stride=over.stride,
            padding=over.padding,
            dilation=over.dilation,
            groups=channels,
        ),
        x,
    )
    with_padding = bool(call.attributes.get("count_include_pad", 0))
    counted = []
    for axis, size in enumerate(space):
        before, after = over.declared[axis] if with_padding else (0, 0)
        position = over.positions(axis)
        counted.append(((position >= -before) & (position < size + after)).sum(1))
    count = reduce(np.multiply.outer, counted)
    if not count.all():
        raise Unsupported("a window lies in the padding alone")
    if (count == count.flat[0]).all():
        count = count.reshape(-1)[0]
    return call.assembler.diagonal(summed, 1 / torch.as_tensor(count, dtype=torch.float64), None)


def _max_pool(call: Call) -> Variable:
    x = call.variable(0)
    over = windows(call.attributes, x.shape[2:], call.attributes["kernel_shape"])
    over.charge(call.assembler.allowance)
    call.assembler.allowance.move(math.prod((*x.shape[:2], *over.counts, *over.kernel)))
    index = _window_places(over)
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * index.ndim)
    gathered = call.assembler.select(x, planes * math.prod(over.space) + index)
    return call.assembler.group_extremum(gathered, largest=True)


def _window_places(over: Windows) -> Index:
    """``(*windows, values of a window)``: places in one plane; in the padding, the nearest place
    of the same window instead, which leaves its maximum as it is."""
    dims = len(over.space)
    total = np.zeros((1,) * 2 * dims, dtype=np.int64)
    for axis, size in enumerate(over.space):
        position = over.positions(axis)
        inside = (position >= 0) & (position < size)
        if not inside.any(1).all():
            raise Unsupported("a window lies in the padding alone")
        low = np.where(inside, position, size).min(1, keepdims=True)
        high = np.where(inside, position, -1).max(1, keepdims=True)
        position = position.clip(low, high)
        extents = [1] * 2 * dims
        extents[axis], extents[dims + axis] = position.shape
        total = total * size + position.reshape(extents)
    return total.reshape(*over.counts, -1)


def _group(call: Call, x: Variable, axes: Sequence[int]) -> Variable:
    """The values of these axes side by side in a new last axis, the others before it."""
    call.assembler.allowance.move(x.size)
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = places(x.shape).transpose([*kept, *axes])
    return call.assembler.select(x, order.reshape([*(x.shape[axis] for axis in kept), -1]))


def _reduce(call: Call, x: Variable, axes: Sequence[int], keep: bool, kind: str) -> Variable:
    assembler, grouped = call.assembler, _group(call, x, axes)
    size = grouped.shape[-1]
    shape = [1 if a in axes else n for a, n in enumerate(x.shape) if keep or a not in axes]
    if kind in ("Mean", "Sum"):
        entry = 1 / size if kind == "Mean" else 1.0
        result = assembler.dense(grouped, torch.full((1, size), entry, dtype=torch.float64))
    elif size == 2:
        assembler.allowance.move(grouped.size)
        index = places(grouped.shape)
        pair = [assembler.select(grouped, index[..., half]) for half in (0, 1)]
        result = assembler.max_and_min(pair[0], pair[1])[0 if kind == "Max" else 1]
    else:
        result = assembler.group_extremum(grouped, largest=kind == "Max")
    return assembler.reshape(result, shape)


def _global(kind: str) -> Callable[[Call], Variable]:
    """Over all spatial axes."""

    def rule(call: Call) -> Variable:
        x = call.variable(0)
        return _reduce(call, x, range(2, len(x.shape)), True, kind)

    return rule


def reduced(call: Call, x: Variable, kind: str) -> Variable:
    """A value reduced over the axes that a node names."""
    rank, axes = len(x.shape), call.axes()
    if not axes and call.attributes.get("noop_with_empty_axes"):
        return x
    if axes and any(not -rank <= axis < rank for axis in axes):
        raise Unsupported(f"axes {axes} of {rank}")
    over = sorted({axis % rank for axis in axes}) if axes else range(rank)
    return _reduce(call, x, over, bool(call.attributes["keepdims"]), kind)


def _reduction(kind: str) -> Callable[[Call], Variable]:
    return lambda call: reduced(call, call.variable(0), kind)


POOLING: dict[str, Callable[[Call], Variable]] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global("Mean"),
    "GlobalMaxPool": _global("Max"),
    "MaxPool": _max_pool,
    "ReduceMax": _reduction("Max"),
    "ReduceMean": _reduction("Mean"),
    "ReduceMin": _reduction("Min"),
    "ReduceSum": _reduction("Sum"),
}
