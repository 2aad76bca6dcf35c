"""A folder of images, one sub-folder a class."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lipcert.bounded import DATASET_BYTES, IMAGE_PIXELS, check_size
from lipcert.data.dataset import Array
from lipcert.errors import CannotCertify, UsageError

# Named one by one: Pillow also opens formats that start other programs.
_FORMATS = {
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def read_folder(folder: Path, split: str) -> tuple[Array, Array, int]:
    """Images (N, C, H, W) uint8, labels (N,) int64 and the number of classes.

    Classes are the sub-folders of `folder/<split>`, or of `folder` where that does not exist,
    numbered by name; images are taken in the order of their names. C is 1 where every image is
    gray, else 3; transparency is dropped.
    Raises `UsageError` without Pillow, without classes, or for images of several sizes or of more
    than 8 bits; `CannotCertify` for a damaged image or a decompression bomb.
    """
    root = folder / split if (folder / split).is_dir() else folder
    try:
        classes = [path for path in _visible(root) if path.is_dir()]
        files = [
            (path, label)
            for label, sub in enumerate(classes)
            for path in _visible(sub)
            if path.suffix.lower() in _FORMATS
        ]
    except OSError as error:
        raise UsageError(f"{root}: cannot be listed: {error}") from error
    if not files:
        raise UsageError(
            f"{root}: needs a sub-folder of images for each class ({', '.join(sorted(_FORMATS))})"
        )
    pillow = _pillow()
    images: list[Array] = []
    for path, _ in files:
        image = _image(pillow, path, DATASET_BYTES // len(files))
        if images and image.shape[:2] != images[0].shape[:2]:
            raise UsageError(
                f"{path}: is {image.shape[1]}x{image.shape[0]}, but {files[0][0]} is "
                f"{images[0].shape[1]}x{images[0].shape[0]}; all images must be of one size"
            )
        images.append(image)
    channels = max(image.shape[2] for image in images)
    stacked = np.stack([np.broadcast_to(i, (*i.shape[:2], channels)) for i in images])
    labels = np.array([label for _, label in files], dtype=np.int64)
    return stacked.transpose(0, 3, 1, 2), labels, len(classes)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise UsageError("reading images needs Pillow: pip install 'lipcert[images]'") from error


def _image(pillow: Any, path: Path, most: int) -> Array:
    """(H, W, 1) or (H, W, 3) uint8, in `most` bytes, which is known before it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path, formats=[_FORMATS[path.suffix.lower()]]) as image:
                if image.mode not in _GRAY + _COLOUR:
                    raise UsageError(f"{path}: mode {image.mode} is not 8 bits a channel")
                gray, (width, height) = image.mode in _GRAY, image.size
                check_size(str(path), width * height, IMAGE_PIXELS)
                check_size(str(path), width * height * (1 if gray else 3), most)
                pixels = np.asarray(image.convert("L" if gray else "RGB"), dtype=np.uint8)
    except (UsageError, CannotCertify):
        raise
    except Exception as error:  # decoders fail with many types on damaged files
        raise CannotCertify(f"{path}: cannot be read as an image: {error}") from error
    return pixels[:, :, np.newaxis] if gray else pixels
