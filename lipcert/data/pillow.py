"""Pictures decoded by Pillow, bounded: from files, archives and columns of bytes."""

import importlib
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lipcert.bounded import DATASET_BYTES, IMAGE_PIXELS, check_size
from lipcert.data.dataset import Array, ValueRange
from lipcert.errors import CannotCertify, LipcertError, UsageError
from lipcert.mistaken import mistaken

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
# Pillow's modes of gray in 16 bits; it reads a deep PGM, scaled to 16 bits, as 32.
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
# Black and white of 16 bits, and how many times those of 8 bits they are.
DEEP_RANGE, _DEEPER = (0.0, 65535.0), 257


class Picture(NamedTuple):
    """(H, W, 1) or (H, W, 3) uint8, of gray in 16 bits uint16; and whether only the upper 8 of 16
    bits of its colours are left, for Pillow keeps no more."""

    pixels: Array
    narrowed: bool


def decode(file: Path | bytes, name: str, *, size: Size | None = None) -> Picture:
    """A picture turned as its EXIF orientation says; transparency is dropped.

    `size`: (H, W) that it is brought to, by Pillow's bilinear filter. Raises `UsageError` without
    Pillow or for numbers that do not say what white is; `CannotCertify` for a damaged image or a
    bomb.
    """
    pillow, operations = _pillow(), importlib.import_module("PIL.ImageOps")
    # Whatever its name ends in: many a PNG is called .jpg.
    formats = sorted(set(FORMATS.values()))
    try:
        if isinstance(file, Path):
            # By its path Pillow turns a TIFF twice.
            check_size(name, file.stat().st_size, DATASET_BYTES)
            file = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(io.BytesIO(file), formats=formats) as image:
                deep = image.mode in _DEEP or (image.mode, image.format) == ("I", "PPM")
                if not deep and image.mode not in _GRAY + _COLOUR:
                    raise UsageError(
                        f"{name}: mode {image.mode} is not 8 or 16 bits of gray, nor 8 bits a "
                        "channel of colour; convert it, or give the numbers as an array with "
                        "--data-range"
                    )
                gray, (width, height) = deep or image.mode in _GRAY, image.size
                check_size(name, width * height, IMAGE_PIXELS)
                narrowed = not gray and _of_more_bits(image.tile)
                mode = "F" if deep else "L" if gray else "RGB"
                upright = operations.exif_transpose(image).convert(mode)
                if size is not None:
                    upright = upright.resize(size[::-1], pillow.Resampling.BILINEAR)
                # Whole numbers of 16 bits are exact in float32.
                pixels = np.rint(np.asarray(upright)).astype(np.uint16 if deep else np.uint8)
    except LipcertError:
        raise
    except Exception as error:  # decoders fail with many types on damaged files
        # Pillow names an object of Python where the file would be.
        what = "" if isinstance(error, pillow.UnidentifiedImageError) else f": {error}"
        said = mistaken(file) or f"{what}; replace it, or take it away"
        raise CannotCertify(f"{name}: cannot be read as an image{said}") from error
    return Picture(pixels[:, :, np.newaxis] if gray else pixels, narrowed)


def _of_more_bits(tiles: Any) -> bool:
    """Whether Pillow drops bits: where a decoder is told of more than 8, or of a white above 255"""
    said = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in tiles]
    return any(
        ";16" in part if isinstance(part, str) else isinstance(part, int) and part > 255
        for parts in said
        for part in parts
    )


class Stack:
    """Images of one size, one after the other; (N, C, H, W) in the end: C is 1 where all of them
    are gray, else 3; uint8, or uint16 where one of them has 16 bits."""

    def __init__(self, count: int, source: str) -> None:
        self._images: list[Array] = []
        self._first = ""
        self._narrowed = 0
        self._count, self._source = count, source

    def add(self, picture: Picture, name: str) -> None:
        """Raises `UsageError` for another size, `CannotCertify` where all would be too large."""
        image = picture.pixels
        self._narrowed += picture.narrowed
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
        deep = any(image.dtype == np.uint16 for image in self._images)
        images = [_deepened(image) if deep else image for image in self._images]
        stacked = np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in images])
        return stacked.transpose(0, 3, 1, 2)

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened to the numbers of pictures on the way."""
        if not self._narrowed:
            return ()
        return (
            f"{self._narrowed} of {self._count} pictures have 16 bits a colour, of which the upper "
            "8 are read, as Pillow does; give them as an array to keep the others",
        )


def _deepened(image: Array) -> Array:
    """In 16 bits: the same share of white."""
    return image if image.dtype == np.uint16 else image.astype(np.uint16) * np.uint16(_DEEPER)


def depth(images: Array, declared: ValueRange | None) -> tuple[ValueRange | None, tuple[str, ...]]:
    """The range of pictures, that of 16 bits where it is not declared, and a note that says so."""
    if declared is not None or images.dtype != np.uint16:
        return declared, ()
    return DEEP_RANGE, (
        "pictures of 16 bits: 0 to 65535 were brought to [0, 1]; where white is less, say so, such "
        "as --data-range 0,4095",
    )


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise UsageError("reading images needs Pillow: pip install 'lipcert[images]'") from error
