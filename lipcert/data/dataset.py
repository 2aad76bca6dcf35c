"""What every source of images ends as: a `Dataset`, and the way raw arrays become one."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipcert.errors import CannotCertify, UsageError

Array = NDArray[Any]
Indices = NDArray[np.int64]
Layout = Literal["auto", "nchw", "nhwc"]
ValueRange = tuple[float, float]

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, held as they were stored.

    `images` is (N, C, H, W) or (N, features): uint8, or float32 in pixels, that is in [0, 1].
    `labels` is (N,) int64 in [0, classes). `source` names the file or set, for people.
    Anything else raises `UsageError`; no images at all, `CannotCertify`.
    """

    name: str
    split: str
    images: Array
    labels: NDArray[np.int64]
    classes: int
    source: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim not in (2, 4) or images.dtype not in (np.uint8, np.float32):
            raise UsageError(
                f"{self.source}: images must be uint8 or float32 of shape (N, C, H, W) or "
                f"(N, features), not {images.dtype} of shape {images.shape}"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise UsageError(
                f"{self.source}: {len(images)} images need as many int64 labels, "
                f"not {labels.dtype} of shape {labels.shape}"
            )
        if images.size == 0:
            raise CannotCertify(f"{self.source}: holds no images, so there is nothing to certify")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise UsageError(
                f"{self.source}: labels run from {labels.min()} to {labels.max()}, "
                f"outside the {self.classes} classes 0 to {self.classes - 1}"
            )
        # Written so that a NaN fails it as well.
        if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
            raise UsageError(f"{self.source}: float images must be finite and within [0, 1]")

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: Indices) -> NDArray[np.float32]:
        """The images at `indices`, a fresh float32 array in [0, 1]; uint8 is divided by 255."""
        chosen = self.images[np.asarray(indices, dtype=np.int64)]
        if chosen.dtype == np.uint8:
            return chosen.astype(np.float32) / np.float32(255)
        return chosen

    @cached_property
    def sha256(self) -> str:
        """Hex digest of dtype, shape and values of `images`, then of `labels`.

        It is the same for every file form that decodes to the same arrays.
        """
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{little.dtype.str} {array.shape}\n".encode())
            digest.update(little.data)
        return digest.hexdigest()


def to_dataset(
    name: str,
    split: str,
    images: Array,
    labels: Array,
    *,
    source: str,
    classes: int | None = None,
    layout: Layout = "auto",
    value_range: ValueRange | None = None,
) -> Dataset:
    """Bring raw arrays into the form that `Dataset` asks for.

    Images: (N, H, W, C), (N, C, H, W), (N, H, W) or (N, features), of uint8 or floats.
    Floats outside [0, 1] need `value_range` = (lo, hi), which sends lo to 0 and hi to 1; where it
    is given it is applied to every float array. Labels: (N,) integers.
    `classes` is the largest label + 1 where it is not known. Raises `UsageError`.
    """
    numbers = _labels(np.asarray(labels), source)
    if classes is None:
        classes = int(numbers.max(initial=-1)) + 1
    stored = _channels_first(_scaled(np.asarray(images), value_range, source), layout, source)
    return Dataset(name, split, np.ascontiguousarray(stored), numbers, classes, source)


def _labels(labels: Array, source: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UsageError(
            f"{source}: labels must be a list of integers, one an image, "
            f"not {labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.int64)


def _scaled(images: Array, value_range: ValueRange | None, source: str) -> Array:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise UsageError(f"{source}: images must be uint8 or floats, not {images.dtype}")
    if not np.isfinite(images).all():
        raise UsageError(f"{source}: images hold NaN or infinite values")
    lo, hi = (0.0, 1.0) if value_range is None else value_range
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise UsageError(
            f"--data-range {lo},{hi}: two finite numbers, the smaller first, are needed"
        )
    least, most = images.min(initial=hi), images.max(initial=lo)
    if least < lo or most > hi:
        raise UsageError(
            f"{source}: image values run from {least:g} to {most:g}, outside [{lo:g}, {hi:g}]; "
            "name the values of black and white with --data-range lo,hi"
        )
    if value_range is not None:
        images = (images.astype(np.float64) - lo) / (hi - lo)
    return images.astype(np.float32)


def _channels_first(images: Array, layout: Layout, source: str) -> Array:
    if layout not in ("auto", "nchw", "nhwc"):
        raise UsageError(f"--data-layout {layout}: one of auto, nchw, nhwc is needed")
    if images.ndim == 3:
        return images[:, np.newaxis]
    if images.ndim != 4:
        return images
    if layout == "auto":
        first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
        if first == last:
            raise UsageError(
                f"{source}: shape {images.shape} does not tell where the channels are; "
                "say --data-layout nchw or --data-layout nhwc"
            )
        layout = "nchw" if first else "nhwc"
    return images if layout == "nchw" else np.moveaxis(images, 3, 1)
