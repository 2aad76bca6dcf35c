"""Pictures decoded by Pillow, bounded: from files, archives and columns of bytes."""

import importlib
import io
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np

from lipcert.bounded import DATASET_BYTES, IMAGE_PIXELS, check_size
from lipcert.data.dataset import Array
from lipcert.errors import CannotCertify, LipcertError, UsageError

# Named one by one: Pillow also opens formats that start other programs.
FORMATS = {
    ".bmp": "BMP",
    ".jfif": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
Size = tuple[int, int]
_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def decode(file: Path | bytes, name: str, *, size: Size | None = None) -> Array:
    """(H, W, 1) or (H, W, 3) uint8, turned as its EXIF orientation says; transparency is dropped.

    `size`: (H, W) that it is brought to, by Pillow's bilinear filter. Raises `UsageError` without
    Pillow or for more than 8 bits a channel; `CannotCertify` for a damaged image or a bomb.
    """
    pillow, operations = _pillow(), importlib.import_module("PIL.ImageOps")
    # Whatever its name ends in: many a PNG is called .jpg.
    formats = sorted(set(FORMATS.values()))
    stream: Path | IO[bytes] = file if isinstance(file, Path) else io.BytesIO(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(stream, formats=formats) as image:
                if image.mode not in _GRAY + _COLOUR:
                    raise UsageError(
                        f"{name}: mode {image.mode} is not 8 bits a channel of gray or colour; "
                        "convert it, or give the numbers as an array with --data-range"
                    )
                gray, (width, height) = image.mode in _GRAY, image.size
                check_size(name, width * height, IMAGE_PIXELS)
                upright = operations.exif_transpose(image).convert("L" if gray else "RGB")
                if size is not None:
                    upright = upright.resize(size[::-1], pillow.Resampling.BILINEAR)
                pixels = np.asarray(upright, dtype=np.uint8)
    except LipcertError:
        raise
    except Exception as error:  # decoders fail with many types on damaged files
        raise CannotCertify(f"{name}: cannot be read as an image: {error}") from error
    return pixels[:, :, np.newaxis] if gray else pixels


class Stack:
    """Images of one size, one after the other; (N, C, H, W) in the end: C is 1 where all of them
    are gray, else 3."""

    def __init__(self, count: int, source: str) -> None:
        self._images: list[Array] = []
        self._first = ""
        self._count, self._source = count, source

    def add(self, image: Array, name: str) -> None:
        """Raises `UsageError` for another size, `CannotCertify` where all would be too large."""
        self._first = self._first or name
        if self._images and image.shape[:2] != self._images[0].shape[:2]:
            height, width = self._images[0].shape[:2]
            raise UsageError(
                f"{name}: is {image.shape[1]}x{image.shape[0]}, but {self._first} is "
                f"{width}x{height}; all images must be of one size: give one with --resize, such "
                f"as --resize {height},{width}"
            )
        check_size(
            f"{self._source}: {self._count} images like {name}",
            image.nbytes * self._count, DATASET_BYTES,
        )  # fmt: skip
        self._images.append(image)

    def array(self) -> Array:
        channels = max(image.shape[2] for image in self._images)
        stacked = np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in self._images])
        return stacked.transpose(0, 3, 1, 2)


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise UsageError("reading images needs Pillow: pip install 'lipcert[images]'") from error
