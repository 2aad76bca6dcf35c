"""The training images: a validation split held out, batches in an order of their own, crops and
flips where the images are natural ones.

Everything random follows from the seed and the number of the epoch or step, so that a run can be
continued at any step, by any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.data import Dataset
from lipcert.errors import UsageError

Augment = Literal["auto", "none", "crop", "flip", "crop-flip"]

# Pixels of the usual random crop of 32x32 pictures.
_PAD = 4
# Streams of random numbers: of the order of an epoch, of a step's augmentation, of the split.
_EPOCH, _STEP, _SPLIT = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Images:
    """Images as stored, and their labels."""

    data: Dataset
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def some(self, count: int) -> Images:
        """So many of them, spread over all: data that lie sorted by class keep every class."""
        places = np.linspace(0, len(self), min(count, len(self)), endpoint=False).astype(int)
        return Images(self.data, self.indices[places])

    def batch(self, places: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pixels in [0, 1] and labels at these places."""
        chosen = self.indices[places]
        pixels = torch.from_numpy(self.data.pixels(chosen))
        return pixels, torch.from_numpy(self.data.labels[chosen])


def held_out(
    data: Dataset, share: float, seed: int, limit: int | None = None
) -> tuple[Images, Images]:
    """The images to train on and those of the validation, drawn by the seed.

    ``limit``: use only so many images, chosen by the seed, in all.
    """
    order = np.random.default_rng([seed, _SPLIT]).permutation(len(data))[:limit]
    count = round(len(order) * share)
    if not 0 < count < len(order):
        raise UsageError(
            f"--validation {share}: leaves {len(order) - count} of {len(order)} images to train "
            f"on and {count} to validate with; give another share, or more images"
        )
    return Images(data, np.sort(order[count:])), Images(data, np.sort(order[:count]))


@dataclass(frozen=True, eq=False)
class Batches:
    """An epoch's batches of ``size`` images, of which this process takes its slice.

    What does not fill a batch is left for another epoch's order. ``augment``: whether and how its
    images are moved. ``most``: an epoch ends after so
    many batches, and the next one draws among all images again.
    """

    images: Images
    size: int
    seed: int
    augment: Augment
    rank: int = 0
    world: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if self.size % self.world:
            raise UsageError(
                f"--batch-size {self.size}: is no multiple of the {self.world} processes"
            )
        if len(self.images) < self.size:
            raise UsageError(
                f"--batch-size {self.size}: only {len(self.images)} images are left to train on"
            )

    def __len__(self) -> int:
        return self.whole if self.most is None else min(self.whole, self.most)

    @property
    def whole(self) -> int:
        """Batches that all images make."""
        return len(self.images) // self.size

    def epoch(self, number: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch ``number``, from batch ``start`` on."""
        order = np.random.default_rng([self.seed, _EPOCH, number]).permutation(len(self.images))
        share = self.size // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for step in range(start, len(self)):
            pixels, labels = self.images.batch(order[step * self.size :][: self.size])
            random = np.random.default_rng([self.seed, _STEP, number, step])
            pixels = augmented(pixels, self.augment, random)
            yield pixels[mine], labels[mine]


def chosen_augment(asked: Augment, data: Dataset, patches: bool = False) -> Augment:
    """``auto`` is ``crop-flip`` of photographs and ``none`` of all else. Of photographs that a
    network reads in ``patches`` of fixed places it is ``flip``: moved by a pixel all of them are
    others, and in short trainings that costs more than it brings (tests/benchmarks/RESULTS.md).

    Raises ``UsageError`` where images that are flat are to be moved.
    """
    found: Augment = asked
    if asked == "auto":
        moved: Augment = "flip" if patches else "crop-flip"
        found = moved if natural(data) else "none"
    if found != "none" and data.images.ndim != 4:
        raise UsageError(f"--augment {asked}: the images are flat; give --augment none")
    return found


def augmented(pixels: Tensor, how: Augment, random: np.random.Generator) -> Tensor:
    """``(B, C, H, W)``: each image moved by up to 4 pixels, black coming in (``crop``), mirrored
    or not (``flip``), or both."""
    if how == "none":
        return pixels
    batch, _, height, width = pixels.shape
    padded = F.pad(pixels, [_PAD] * 4)
    down, right = torch.from_numpy(random.integers(0, 2 * _PAD + 1, (2, batch)))
    flip = torch.from_numpy(random.random(batch) < 0.5)
    if "crop" not in how:
        down = right = torch.full_like(down, _PAD)
    if "flip" not in how:
        flip = torch.zeros_like(flip)
    rows = down[:, None] + torch.arange(height)
    columns = torch.arange(width)
    columns = torch.where(flip[:, None], columns.flip(0), columns) + right[:, None]
    sample = torch.arange(batch)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


def natural(data: Dataset) -> bool:
    """Whether the images are taken for photographs: three channels, at least 16 pixels a side."""
    shape = data.images.shape
    return len(shape) == 4 and shape[1] == 3 and min(shape[2:]) >= 16
