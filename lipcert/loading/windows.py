"""Where the windows of convolutions and poolings lie, from the attributes that ONNX gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert.loading.allowance import GraphLimits
from lipcert.loading.value import Unsupported

Pair = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """One entry a spatial axis. ``padding`` reaches as far as the windows do; ``declared`` is
    the padding that the file asks for, which ceil_mode exceeds."""

    space: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[Pair, ...]
    declared: tuple[Pair, ...]
    counts: tuple[int, ...]

    def charge(self, allowance: GraphLimits) -> None:
        """For the ``positions`` of all axes, and the windows themselves, counted in one channel."""
        for count, width in zip(self.counts, self.kernel, strict=True):
            allowance.borrow(4 * count * width)
        allowance.borrow(math.prod(self.counts))

    def positions(self, axis: int) -> NDArray[np.int64]:
        """``(windows, kernel)``: the input places along an axis, outside of it in the padding."""
        first = np.arange(self.counts[axis])[:, None] * self.stride[axis] - self.padding[axis][0]
        return np.asarray(first + np.arange(self.kernel[axis]) * self.dilation[axis])


def windows(attributes: Mapping[str, Any], space: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Strides, dilations, pads, auto_pad and ceil_mode, with the ONNX defaults."""
    dims = len(space)
    stride = tuple(attributes.get("strides", (1,) * dims))
    dilation = tuple(attributes.get("dilations", (1,) * dims))
    pads = tuple(attributes.get("pads", (0,) * 2 * dims))
    lengths_fit = len(kernel) == len(stride) == len(dilation) == dims and len(pads) == 2 * dims
    if not lengths_fit or not dims or min(*stride, *dilation, *kernel) < 1:
        raise Unsupported(
            f"kernel {list(kernel)}, strides {list(stride)}, dilations {list(dilation)} or pads "
            f"{list(pads)} do not fit {dims} spatial axes"
        )
    if min(pads) < 0:
        raise Unsupported(f"negative pads {list(pads)}")
    mode = attributes.get("auto_pad", "NOTSET")
    declared, padding, counts = [], [], []
    for axis, size in enumerate(space):
        step, span = stride[axis], (kernel[axis] - 1) * dilation[axis] + 1
        before, after = (pads[axis], pads[axis + dims]) if mode == "NOTSET" else (0, 0)
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-size // step) - 1) * step + span - size, 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            after = total - before
        room = size + before + after - span
        count = room // step + 1
        if attributes.get("ceil_mode"):
            count = -(-room // step) + 1
            # A window must begin on the input or the padding before it.
            count -= (count - 1) * step >= size + before
        if room < 0:
            raise Unsupported(f"a window of {span} does not fit {size} values with its padding")
        reach = (count - 1) * step + span - size - before
        declared.append((before, after))
        padding.append((before, max(after, reach)))
        counts.append(count)
    return Windows(
        tuple(space),
        tuple(kernel),
        stride,
        dilation,
        tuple(padding),
        tuple(declared),
        tuple(counts),
    )
