"""Convolutions on a CPU where the library's own way is slow; elsewhere it is the library's.

It lays the columns of a whole batch side by side in float64, far past what caches hold: here they
come in pieces, and transposes as gradients by an input, which take one sample's at a time. In
float32 it is slow in transposes onto a few channels, such as an image's: here these are columns
that are summed up. ``tests/benchmarks/test_benchmark_convolutions.py`` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
# So few channels are an image's.
_FEW = 3

# Strides, padding on both sides, and dilation, each by axis; groups.
Way = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def convolve(v: Tensor, weight: Tensor, way: Way) -> Tensor:
    """``(N, in, *space)`` to ``(N, out, *space)``."""
    stride, pads, dilation, groups = way
    convolution = _CONVOLVE[weight.dim() - 2]

    def of(part: Tensor) -> Tensor:
        return convolution(part, weight, None, stride, pads, dilation, groups)

    taps = weight[0].numel()
    if v.device.type != "cpu" or v.dtype != torch.float64 or taps == weight.shape[1]:
        return of(v)
    each = taps * math.prod(_places(v.shape[2:], weight.shape[2:], way))
    if len(v) * each <= _MANY:
        return of(v)
    return torch.cat([of(part) for part in torch.split(v, max(1, _NEAR // each))])


def transposed(v: Tensor, weight: Tensor, way: Way, space: Sequence[int]) -> Tensor:
    """The transpose of ``convolve`` for inputs of this ``space``."""
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
