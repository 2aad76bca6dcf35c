"""Small images beside a certificate, so that a report can show samples without their dataset.

``thumbnails.npz`` holds originals, small; ``counterexamples.npz`` what an attack found, exactly.
Both have the arrays ``index`` (N,) and ``image`` (N, C, H, W). No report depends on them.
"""

from __future__ import annotations

import base64
import heapq
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert import bounded
from lipcert.certificate import Sample
from lipcert.errors import UsageError

THUMBNAILS = "thumbnails"
COUNTEREXAMPLES = "counterexamples"
EACH = 8  # how many of the worst, of the best and of the falsified samples
MOST = 4 * EACH  # images that a report reads
LARGEST_SIDE = 64  # pixels

Images = dict[int, NDArray[np.uint8]]
Pixels = Callable[[NDArray[np.int64]], NDArray[np.float32]]


def chosen(samples: Sequence[Sample]) -> list[int]:
    """The samples worth showing: the correct ones with the smallest and the largest radii, and the
    first that were falsified."""
    radii = [
        (sample.radius_estimate or sample.radius or 0.0, sample.index)
        for sample in samples
        if sample.correct and sample.verdict != "error"
    ]
    worth = [*heapq.nsmallest(EACH, radii), *heapq.nlargest(EACH, radii)]
    falsified = (sample.index for sample in samples if sample.verdict == "falsified")
    return sorted({*(index for _, index in worth), *islice(falsified, EACH)})


def paths(folder: Path, suffix: str = "") -> tuple[Path, Path]:
    """Where thumbnails and counterexamples of a run, or of a shard's with that suffix, are."""
    return folder / f"{THUMBNAILS}{suffix}.npz", folder / f"{COUNTEREXAMPLES}{suffix}.npz"


def write(folder: Path, samples: Sequence[Sample], pixels: Pixels, *, suffix: str = "") -> None:
    """Write ``thumbnails.npz`` for the samples worth showing; ``suffix`` is a shard's.

    ``pixels``: from indices (N,) to images (N, C, H, W) in [0, 1], as ``Dataset.pixels``. Images of
    other than 1 or 3 channels, and plain features, have no picture: then an older file is removed.
    Raises ``UsageError`` where the folder cannot be written.
    """
    path, _ = paths(folder, suffix)
    index = np.asarray(chosen(samples), dtype=np.int64)
    shape = np.shape(pixels(index[:1])) if len(index) else ()
    if len(shape) != 4 or shape[1] not in (1, 3):
        path.unlink(missing_ok=True)
        return
    _save(path, index, np.stack([_small(image) for image in pixels(index)]))


def write_counterexamples(
    folder: Path,
    points: Mapping[int, NDArray[Any]],
    shape: Sequence[int],
    taken_for: Mapping[int, int],
    *,
    suffix: str = "",
) -> None:
    """Write ``counterexamples.npz``: ``points`` by sample index, as they were attacked, each of
    ``shape``, and the class that the network takes each for, as the array ``prediction`` (N,); the
    file is there where nothing was found too. Raises ``UsageError`` where the folder
    cannot be written.
    """
    _, path = paths(folder, suffix)
    found = np.stack(list(points.values())) if points else np.zeros((0, *shape), np.float32)
    classes = np.asarray([taken_for[index] for index in points], dtype=np.int64)
    _save(path, np.asarray(list(points), dtype=np.int64), found, prediction=classes)


def read_images(path: Path) -> Images:
    """The first ``MOST`` images by sample index, the others are not even read; none where there is
    no such file, or where it shows no pictures.

    Raises ``CannotCertify`` for a damaged file.
    """
    if not path.is_file():
        return {}
    with bounded.opened(path, str(path), "; remove it or certify again") as archive:
        index, image = (
            archive.read(name, bounded.PICTURES_BYTES, rows=MOST) for name in ("index", "image")
        )
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            return {}
        return {int(i): _small(one) for i, one in zip(index, image, strict=True)}


def read_predictions(path: Path) -> dict[int, int]:
    """What the first ``MOST`` counterexamples are taken for, by sample index; empty where the file
    is not there or does not say it. Raises ``CannotCertify`` for a damaged file."""
    if not path.is_file():
        return {}
    with bounded.opened(path, str(path), "; remove it or certify again") as archive:
        if "prediction" not in archive:
            return {}
        index, taken_for = (
            archive.read(name, bounded.PICTURES_BYTES, rows=MOST)
            for name in ("index", "prediction")
        )
        return {int(i): int(one) for i, one in zip(index, taken_for, strict=True)}


def difference(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """``other`` − ``image`` around a middle grey, and how many times as large as it is: as much as
    fits."""
    change = other.astype(np.int16) - image.astype(np.int16)
    times = max(1, 127 // max(1, int(np.abs(change).max())))
    return (128 + times * change).clip(0, 255).astype(np.uint8), times


def data_uri(image: NDArray[np.uint8]) -> str:
    """A PNG of (C, H, W) bytes, grey or RGB, as a ``data:`` address."""
    channels, height, width = image.shape
    rows = np.moveaxis(image, 0, 2).reshape(height, width * channels)
    # Every row begins with its filter: none.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _save(
    path: Path, index: NDArray[np.int64], image: NDArray[Any], **more: NDArray[np.int64]
) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, index=index, image=image, **more)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _small(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Bytes (C, H, W), no side above ``LARGEST_SIDE``: means over square blocks."""
    if image.dtype == np.uint8 and max(image.shape[1:]) <= LARGEST_SIDE:
        return image
    values = image / 255 if image.dtype == np.uint8 else image.astype(np.float64)
    block = -(-max(image.shape[1:]) // LARGEST_SIDE)
    height, width = (max(side // block, 1) for side in image.shape[1:])
    cut = values[:, : height * block, : width * block]
    means = cut.reshape(len(cut), height, cut.shape[1] // height, width, -1).mean(axis=(2, 4))
    small: NDArray[np.uint8] = np.rint(np.clip(means, 0, 1) * 255).astype(np.uint8)
    return small
