"""Images and labels out of an npz file, with every size checked before memory is taken for it."""

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from lipcert.data.dataset import Array
from lipcert.data.keys import pick
from lipcert.errors import CannotCertify

_MOST_BYTES = 64 << 30
# No deflate stream grows beyond this ratio, so a larger declared size is a lie.
_MOST_GROWTH = 1032
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


def read_npz(
    file: Path | IO[bytes],
    source: str,
    *,
    split: str = "test",
    image_key: str | None = None,
    label_key: str | None = None,
    without_labels: bool = False,
) -> tuple[Array, Array | None]:
    """The raw (images, labels) of an npz file, nothing unpickled.

    Which arrays these are `lipcert.data.keys` tells; the labels are None where they are elsewhere,
    `without_labels`. Raises `UsageError` where they are not there, `CannotCertify` for a damaged
    file, one whose headers contradict its size, or arrays of Python objects.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            names = pick(
                list(members), split, source,
                image_key=image_key, label_key=label_key, without_labels=without_labels,
            )  # fmt: skip
            images, labels = (
                None if name is None else _array(archive, members[name], source) for name in names
            )
    except _BROKEN as error:
        raise CannotCertify(f"{source}: not a sound npz file: {error}") from error
    assert images is not None
    return images, labels


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> Array:
    member = f"{source}: {info.filename}"
    declared = info.file_size
    if info.compress_size > archive.start_dir:
        raise CannotCertify(
            f"{member}: declares {info.compress_size} bytes, more than the file has"
        )
    if declared > min(_MOST_BYTES, _MOST_GROWTH * (info.compress_size + 1)):
        raise CannotCertify(
            f"{member}: declares {declared} bytes, more than {info.compress_size} stored bytes "
            f"can hold or than the {_MOST_BYTES >> 30} GiB that are read"
        )
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise CannotCertify(f"{member}: holds Python objects, which are never unpickled")
    if expected != declared or min(shape, default=0) < 0:
        raise CannotCertify(
            f"{member}: its header declares shape {shape} of {dtype}, {expected} bytes in all, "
            f"but the file holds {declared}"
        )
    with archive.open(info) as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read()  # to the end, where the zip's own checksum is compared
    return array


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy format {version[0]}.{version[1]} is not read")
    return shape, dtype
