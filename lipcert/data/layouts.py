"""The axes of stored arrays: which are declared, which can be told, which have to be asked for."""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np

from lipcert.data.dataset import Array
from lipcert.errors import UsageError

Layout = Literal[
    "auto", "nchw", "nhwc", "nhw", "flat", "nf", "ncl", "nlc", "ncdhw", "ndhwc", "ndhw"
]
Kind = Literal["images", "table", "signals", "volumes"]

KINDS: dict[str, Kind] = {
    "nchw": "images", "nhwc": "images", "nhw": "images", "flat": "images", "nf": "table",
    "ncl": "signals", "nlc": "signals",
    "ncdhw": "volumes", "ndhwc": "volumes", "ndhw": "volumes",
}  # fmt: skip
_CHANNELS = (1, 3, 4)
# No gray image is so oblong that its sides differ by this factor; a signal's axes nearly always do.
_OBLONG = 4


class Expected(NamedTuple):
    """What the model takes and gives, as far as it is known before the data: its input's shape
    without the batch, and the number of its outputs. It settles what arrays leave open."""

    shape: tuple[int, ...] | None = None
    classes: int | None = None

    @property
    def image(self) -> bool:
        """Whether the input has the shape of an image: three axes, at least two of them real."""
        shape = self.shape or ()
        return len(shape) == 3 and sum(extent > 1 for extent in shape) >= 2


def layout_of(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], unit_interval: bool, layout: Layout,
    expected: Expected, source: str,
) -> Layout:  # fmt: skip
    """The layout of an array of this `shape`; never `auto`.

    `unit_interval`: whether its values lie in [0, 1], or in a range that was declared.
    Raises `UsageError` where `layout` does not fit the shape, or is `auto` and nothing tells it.
    """
    if layout not in get_args(Layout):
        raise UsageError(f"--data-layout {layout}: one of {', '.join(get_args(Layout))} is needed")
    ndim = len(shape)
    if layout in ("nchw", "nhwc") and ndim in (2, 3):
        layout = "auto"  # it speaks of channels, which such arrays do not have
    if layout != "auto":
        wanted = 2 if layout == "flat" else len(layout)
        if ndim != wanted:
            raise UsageError(
                f"--data-layout {layout}: needs arrays of {wanted} axes, but {source} has the "
                f"shape {shape}"
            )
        return layout
    found: Layout | None = None
    if ndim == 2:
        found = "flat" if dtype == np.uint8 or expected.image else "nf"
    elif ndim == 3:
        found = _three(shape[1:], dtype, unit_interval, expected)
    elif ndim == 4:
        found = _four(shape[1:], expected)
    elif ndim == 5:
        found = _five(shape[1:], expected)
    else:
        raise UsageError(f"{source}: images must have 2 to 5 axes, not the shape {shape}")
    if found is None:
        raise UsageError(
            f"{source}: shape {shape} does not tell where the channels are; {_ASKED[ndim]}"
        )
    return found


def channels_first(array: Array, layout: Layout) -> Array:
    """(N, features), (N, C, length), (N, C, H, W) or (N, C, D, H, W)."""
    if layout in ("nhw", "ndhw"):
        return array[:, np.newaxis]
    return np.moveaxis(array, -1, 1) if layout in ("nhwc", "nlc", "ndhwc") else array


_ASKED = {
    3: "say --data-layout nhw for gray images, or --data-layout ncl or nlc for signals",
    4: "say --data-layout nchw or --data-layout nhwc, or ndhw for volumes of one channel",
    5: "say --data-layout ncdhw or --data-layout ndhwc",
}


def _three(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], unit_interval: bool, expected: Expected
) -> Layout | None:
    """Gray images or signals."""
    few, many = min(shape), max(shape)
    if dtype == np.uint8 or expected.image:
        return "nhw"
    if many >= _OBLONG * few:
        return "ncl" if shape[0] <= shape[1] else "nlc"
    if unit_interval:
        return "nhw"
    if expected.shape is not None and len(expected.shape) == 2 and shape[0] != shape[1]:
        if shape == expected.shape:
            return "ncl" if shape[0] < shape[1] else "nlc"
        if shape == expected.shape[::-1]:
            return "nlc" if shape[0] > shape[1] else "ncl"
    return None


def _four(shape: tuple[int, ...], expected: Expected) -> Layout | None:
    """Images, or volumes of one channel."""
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if first != last:
        return "nchw" if first else "nhwc"
    wanted = expected.shape or ()
    if len(wanted) == 4 and math.prod(wanted) == math.prod(shape) and 1 in (wanted[0], wanted[3]):
        return "ndhw"
    # The model confirms the extents, and the channels are the axis that differs from the sides.
    if len(wanted) == 3 and sorted(wanted) == sorted(shape):
        if shape[1] == shape[2] != shape[0]:
            return "nchw"
        if shape[0] == shape[1] != shape[2]:
            return "nhwc"
    return None


def _five(shape: tuple[int, ...], expected: Expected) -> Layout | None:
    """Volumes."""
    first, last = shape[0] in _CHANNELS, shape[3] in _CHANNELS
    if first != last:
        return "ncdhw" if first else "ndhwc"
    wanted = expected.shape or ()
    if len(wanted) == 4 and shape[0] != shape[3] and sorted(wanted) == sorted(shape):
        return "ncdhw" if shape[0] < shape[3] else "ndhwc"
    return None
