"""Convolutions, each by the way that suits its device.

On a CPU they are the library's, but where that is slow. It lays the columns of a whole batch side
by side in float64, far past what caches hold: here they come in pieces, and transposes as gradients
by an input, which take one sample's at a time. In float32 it is slow in transposes onto a few
channels, such as an image's: here these are columns that are summed up.
``tests/benchmarks/test_benchmark_convolutions.py`` measures both.

On any other device they are windows of the input, laid out and multiplied by the weights, so that
they are sums of products by construction: the libraries of GPUs choose among methods, Winograd's
and Fourier's included, whose rounding no error term here covers. Only weights that are trained are
left to the library.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_Convolve = Callable[..., Tensor]
_CONVOLVE: dict[int, _Convolve] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE: dict[int, _Convolve] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
# Values of columns in float64 that are laid out at a time, and above which the library's way is
# left; and in float32.
_NEAR, _MANY, _FAR = 2**18, 2**21, 2**22
# Values of windows on another device that are laid out at a time: a gibibyte in float64.
_LAID_OUT = 2**27
# So few channels are an image's.
_FEW = 3

# Whether windows are laid out on a CPU too.
_EVERYWHERE: ContextVar[bool] = ContextVar("windows", default=False)

# Strides, padding on both sides, and dilation, each by axis; groups.
Way = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


@contextmanager
def windows_everywhere() -> Iterator[None]:
    """Convolve on a CPU as on any other device, to compare the two."""
    token = _EVERYWHERE.set(True)
    try:
        yield
    finally:
        _EVERYWHERE.reset(token)


def convolve(v: Tensor, weight: Tensor, way: Way) -> Tensor:
    """``(N, in, *space)`` to ``(N, out, *space)``."""
    if _by_windows(v, weight):
        found: Tensor = _Windows.apply(v, weight, way)  # type: ignore[no-untyped-call]
        return found
    stride, pads, dilation, groups = way
    convolution = _CONVOLVE[weight.dim() - 2]

    def of(part: Tensor) -> Tensor:
        return convolution(part, weight, None, stride, pads, dilation, groups)

    taps = weight[0].numel()
    if v.device.type != "cpu" or taps == weight.shape[1] or not len(v):
        return of(v)
    places = _places(v.shape[2:], weight.shape[2:], way)
    if v.dtype == torch.float64:
        each, many = taps * math.prod(places), _MANY
    else:
        # What is read and written, of many vectors, passes the caches as it comes.
        each, many = v[0].numel(), _FAR
    if len(v) * each <= many:
        return of(v)
    at_once = max(1, _NEAR // each)
    if v.requires_grad or weight.requires_grad:
        return torch.cat([of(part) for part in torch.split(v, at_once)])
    # Parts put together in the end would take twice the memory.
    found = v.new_empty(len(v), len(weight), *places)
    for first in range(0, len(v), at_once):
        found[first : first + at_once] = of(v[first : first + at_once])
    return found


def transposed(v: Tensor, weight: Tensor, way: Way, space: Sequence[int]) -> Tensor:
    """The transpose of ``convolve`` for inputs of this ``space``."""
    if _by_windows(v, weight):
        back: Tensor = _Unwound.apply(v, weight, way, space)  # type: ignore[no-untyped-call]
        return back
    if v.device.type == "cpu" and len(v) and not weight.requires_grad:
        if v.dtype == torch.float64 and not v.requires_grad:
            return _gradient(v, weight, way, space)
        if v.dtype == torch.float32 and _few_channels(weight, way):
            found: Tensor = _Columns.apply(v, weight, way, space)  # type: ignore[no-untyped-call]
            return found
    stride, pads, dilation, groups = way
    # A stride can leave cells at the end of an axis unread.
    unread = [
        size - ((have - 1) * step - 2 * pad + gap * (width - 1) + 1)
        for size, have, pad, step, gap, width in zip(
            space, v.shape[2:], pads, stride, dilation, weight.shape[2:], strict=True
        )
    ]
    transpose = _TRANSPOSE[weight.dim() - 2]
    return transpose(v, weight, None, stride, pads, unread, groups, dilation)


def _by_windows(v: Tensor, weight: Tensor) -> bool:
    return (v.device.type != "cpu" or _EVERYWHERE.get()) and not weight.requires_grad


class _Windows(torch.autograd.Function):
    """The convolution by windows; its gradient is the transpose."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, weight: Tensor, way: Way) -> Tensor:
        ctx.weight, ctx.way, ctx.space = weight, way, v.shape[2:]
        groups = way[3]
        places = _places(v.shape[2:], weight.shape[2:], way)
        rows = weight.reshape(groups, len(weight) // groups, -1)
        parts = []
        for part in torch.split(v, _at_once(rows.shape[2] * groups, places)):
            # (n, groups, in / groups · kernel, places)
            seen = _windows(part, weight, way).reshape(
                len(part), groups, rows.shape[2], math.prod(places)
            )
            parts.append((rows @ seen).reshape(len(part), len(weight), *places))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return transposed(gradient, ctx.weight, ctx.way, ctx.space), None, None


class _Unwound(torch.autograd.Function):
    """The transpose: what each window gives, summed up in the same order always; its gradient is
    the convolution."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, weight: Tensor, way: Way, space: Sequence[int]) -> Tensor:
        ctx.weight, ctx.way = weight, way
        groups, kernel, places = way[3], weight.shape[2:], v.shape[2:]
        rows = weight.reshape(groups, len(weight) // groups, -1).mT
        parts = []
        for part in torch.split(v, _at_once(rows.shape[1] * groups, places)):
            given = rows @ part.reshape(len(part), groups, len(weight) // groups, math.prod(places))
            if len(space) <= 2:
                parts.append(_folded(given.flatten(1, 2), kernel, way, space))
            else:
                given = given.reshape(len(part), weight.shape[1] * groups, *kernel, *places)
                parts.append(_summed(given, kernel, way, space))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return convolve(gradient, ctx.weight, ctx.way), None, None, None


def _at_once(column: int, places: Sequence[int]) -> int:
    return max(1, _LAID_OUT // max(1, column * math.prod(places)))


def _windows(v: Tensor, weight: Tensor, way: Way) -> Tensor:
    """``(N, in, *kernel, *places)``: what each place sees, as a view of the padded input."""
    stride, pads, dilation, _ = way
    v = F.pad(v, [pad for one in reversed(pads) for pad in (one, one)]) if any(pads) else v
    v = v.contiguous()
    places = [
        (size - gap * (width - 1) - 1) // step + 1
        for size, gap, width, step in zip(
            v.shape[2:], dilation, weight.shape[2:], stride, strict=True
        )
    ]
    batch, channel, *axes = v.stride()
    taps = [axis * gap for axis, gap in zip(axes, dilation, strict=True)]
    steps = [axis * step for axis, step in zip(axes, stride, strict=True)]
    shape = (*v.shape[:2], *weight.shape[2:], *places)
    return v.as_strided(shape, (batch, channel, *taps, *steps), v.storage_offset())


def _folded(given: Tensor, kernel: Sequence[int], way: Way, space: Sequence[int]) -> Tensor:
    """``(N, in · kernel, places)`` to ``(N, in, *space)`` of one or two axes, by one kernel: each
    cell gathers its taps, in their order."""
    stride, pads, dilation, _ = way
    flat = [((one,) * (2 - len(space)) + tuple(axes)) for one, axes in (
        (1, space), (1, kernel), (1, dilation), (0, pads), (1, stride)
    )]  # fmt: skip
    found = F.fold(given, *flat)
    return found.reshape(*found.shape[:2], *space)


def _summed(given: Tensor, kernel: Sequence[int], way: Way, space: Sequence[int]) -> Tensor:
    """``(N, in, *kernel, *places)`` to ``(N, in, *space)``: taps summed up where they belong."""
    stride, pads, dilation, _ = way
    places = given.shape[2 + len(kernel) :]
    padded = [size + 2 * pad for size, pad in zip(space, pads, strict=True)]
    found = given.new_zeros(*given.shape[:2], *padded)
    taps: Iterator[tuple[int, ...]] = itertools.product(*(range(width) for width in kernel))
    for tap in taps:
        cells = [
            slice(at * gap, at * gap + (count - 1) * step + 1, step)
            for at, gap, count, step in zip(tap, dilation, places, stride, strict=True)
        ]
        found[_cells(cells)] += given[_cells(tap)]
    inside = [slice(pad, pad + size) for pad, size in zip(pads, space, strict=True)]
    return found[_cells(inside)]


def _cells(inside: Sequence[int | slice]) -> tuple[int | slice, ...]:
    """Of all samples and channels."""
    return slice(None), slice(None), *inside


def _gradient(v: Tensor, weight: Tensor, way: Way, space: Sequence[int]) -> Tensor:
    """The gradient by an input, of which only the shape counts."""
    stride, pads, dilation, groups = way
    shape = len(v), weight.shape[1] * groups, *space
    backward: Callable[..., tuple[Tensor, ...]] = torch.ops.aten.convolution_backward
    return backward(
        v, v.new_zeros(()).expand(shape), weight, None, stride, pads, dilation, False,
        (0,) * len(space), groups, (True, False, False),
    )[0]  # fmt: skip


def _few_channels(weight: Tensor, way: Way) -> bool:
    kernel = weight.shape[2:]
    return weight.shape[1] <= _FEW and way[3] == 1 and len(kernel) == 2 and math.prod(kernel) > 1


class _Columns(torch.autograd.Function):
    """The transpose by columns; its gradient is the convolution, which is fast."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, weight: Tensor, way: Way, space: Sequence[int]) -> Tensor:
        ctx.weight, ctx.way = weight, way
        stride, pads, dilation, _ = way
        rows = weight.flatten(1).mT
        at_once = max(1, _FAR // (len(rows) * math.prod(v.shape[2:])))
        parts = [
            F.fold(rows @ part.flatten(2), space, weight.shape[2:], dilation, pads, stride)  # type: ignore[arg-type]
            for part in torch.split(v, at_once)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return convolve(gradient, ctx.weight, ctx.way), None, None, None


def _places(space: Sequence[int], kernel: Sequence[int], way: Way) -> list[int]:
    """The space of the output."""
    stride, pads, dilation, _ = way
    return [
        (size + 2 * pad - gap * (width - 1) - 1) // step + 1
        for size, pad, gap, width, step in zip(space, pads, dilation, kernel, stride, strict=True)
    ]
