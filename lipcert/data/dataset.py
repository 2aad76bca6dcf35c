"""What every source of data ends as: a `Dataset`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lipcert.errors import CannotCertify, UsageError

Array = NDArray[Any]
Indices = NDArray[np.int64]
ValueRange = tuple[float, float]

# What eps is measured in: images in pixels; tables, signals and volumes in the numbers that they
# are stored in or, where a range was declared for these, in that range.
Unit = Literal["pixels [0,1]", "the data's own unit", "the data's range as [0,1]"]
PIXELS: Unit = "pixels [0,1]"
OWN: Unit = "the data's own unit"
RANGE: Unit = "the data's range as [0,1]"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples, held as they were stored.

    `images` is uint8 or float32, of shape (N, features), (N, C, length), (N, C, H, W) or
    (N, C, D, H, W): tables, signals, images, volumes. Bytes stand for 255ths; floats are finite
    and, unless `unit` is the data's own, within [0, 1]. `labels` is (N,) int64 in [0, classes).
    `source` names the file or set, for people; `names` those of the classes, in their order, or
    nothing, and `by_name` says whether only this order numbered the labels, as it does for
    folders; `notes` what a reader of any result should know; `reading` how the arrays were read,
    as the options of `load_dataset` that give the same again.
    Anything else raises `UsageError`; no samples at all, `CannotCertify`.
    """

    name: str
    split: str
    images: Array
    labels: NDArray[np.int64]
    classes: int
    source: str
    unit: Unit = PIXELS
    names: tuple[str, ...] = ()
    by_name: bool = False
    notes: tuple[str, ...] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim not in (2, 3, 4, 5) or images.dtype not in (np.uint8, np.float32):
            raise UsageError(
                f"{self.source}: images must be uint8 or float32 of shape (N, C, H, W), or "
                "(N, features), (N, C, length) or (N, C, D, H, W), "
                f"not {images.dtype} of shape {images.shape}"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise UsageError(
                f"{self.source}: {len(images)} samples need as many int64 labels, one each, "
                f"not {labels.dtype} of shape {labels.shape}; are images and labels of one split?"
            )
        if images.size == 0:
            raise CannotCertify(f"{self.source}: holds no samples, so there is nothing to certify")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise UsageError(
                f"{self.source}: labels run from {labels.min()} to {labels.max()}, "
                f"outside the {self.classes} classes 0 to {self.classes - 1}"
            )
        if images.dtype == np.float32:
            # Written so that a NaN fails it as well.
            least, most = float(images.min()), float(images.max())
            if self.unit == OWN and not -np.inf < least <= most < np.inf:
                raise UsageError(f"{self.source}: the values must be finite")
            if self.unit != OWN and not (least >= 0 and most <= 1):
                raise UsageError(f"{self.source}: float images must be finite and within [0, 1]")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pictures(self) -> bool:
        """Whether the samples are images, so that eps is in pixels."""
        return self.unit == PIXELS

    @cached_property
    def reach(self) -> float | None:
        """For data in their own unit, the diagonal of the box that they lie in: no two samples are
        further apart. None for data in [0, 1]."""
        if self.unit != OWN:
            return None
        sides = np.ptp(self.images.reshape(len(self), -1).astype(np.float64), axis=0)
        return max(float(np.linalg.norm(sides)), float(np.finfo(np.float32).tiny))

    def pixels(self, indices: Indices) -> NDArray[np.float32]:
        """The samples at `indices`, a fresh float32 array in `unit`; uint8 is divided by 255."""
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
