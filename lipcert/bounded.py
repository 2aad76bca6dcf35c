"""Bounded reading: what a file declares is checked before anything is read or taken memory for.

A few kilobytes of a zip, or a header of a hundred bytes, can ask for all memory there is. So every
array that is read from a file goes through here, under a limit that its reader justifies: what the
header declares must fit that limit, what the archive says is stored, and how far such data can
shrink.
"""

from __future__ import annotations

import gzip
import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lipcert.errors import CannotCertify
from lipcert.mistaken import mistaken

Array = NDArray[Any]

# A dataset in memory: all of ImageNet's validation images at 224 × 224, in float32, take 28 GiB.
DATASET_BYTES = 64 << 30
# One file of a published set; the largest, CIFAR-100's training split, takes 155 MB.
PUBLISHED_BYTES = 256 << 20
# The few pictures of a report.
PICTURES_BYTES = 256 << 20
# One image of a folder, in pixels: 8,192 × 8,192.
IMAGE_PIXELS = 1 << 26
# An array may be compressed to any degree up to so many bytes, as blank images are, and beyond
# them to one of so many parts; sound data is far from that.
FREE_BYTES, GROWTH = 256 << 20, 128

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
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


@dataclass(frozen=True)
class Header:
    """What an ``.npy`` header declares, and where its numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Archive:
    """The arrays of an ``.npz`` file, read one by one, each under a limit of its own.

    ``source`` names the file in errors. Use it within ``opened``.
    """

    def __init__(self, archive: zipfile.ZipFile, source: str) -> None:
        self.archive, self.source = archive, source
        self.members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def header(self, name: str) -> Header:
        """What the array declares; nothing else of it is read.

        Raises ``CannotCertify`` where that contradicts what the archive holds, for Python objects,
        and for an array that is not there.
        """
        if name not in self.members:
            raise CannotCertify(f"{self.source}: holds no array {name!r}")
        info = self.members[name]
        told, declared = f"{self.source}: {info.filename}", info.file_size
        if info.compress_size > self.archive.start_dir:
            raise CannotCertify(
                f"{told}: declares {info.compress_size} bytes, more than the file has"
            )
        if declared > max(FREE_BYTES, GROWTH * info.compress_size):
            raise CannotCertify(
                f"{told}: declares {declared} bytes, more than {info.compress_size} stored bytes "
                f"can hold: beyond {FREE_BYTES >> 20} MiB at most {GROWTH} for each; store it "
                "uncompressed if it is what it should be"
            )
        with self.archive.open(info) as stream:
            header = _header(stream, told)
        if header.start + header.bytes != declared:
            raise CannotCertify(
                f"{told}: its header declares shape {header.shape} of {header.dtype}, "
                f"{header.start + header.bytes} bytes in all, but the file holds {declared}"
            )
        return header

    def read(self, name: str, most: int, rows: int | None = None) -> Array:
        """The array, or its first ``rows``, which may take ``most`` bytes; else as ``header``."""
        header, info = self.header(name), self.members[name]
        some = header.shape
        if rows is not None:
            if header.fortran or not some:
                raise CannotCertify(f"{self.source}: {info.filename}: is no array of rows")
            some = (min(rows, some[0]), *some[1:])
        size = math.prod(some) * header.dtype.itemsize
        check_size(f"{self.source}: {info.filename}", size, most)
        with self.archive.open(info) as stream:
            if some == header.shape:
                array: Array = np.lib.format.read_array(stream, allow_pickle=False)
                stream.read()  # to the end, where the zip's own checksum is compared
                return array
            stream.read(header.start)
            return np.frombuffer(stream.read(size), header.dtype).reshape(some)


@contextmanager
def opened(file: Path | IO[bytes], source: str, remedy: str = "") -> Iterator[Archive]:
    """An ``.npz`` file; whatever is wrong with it is one ``CannotCertify`` that names ``source``,
    and ends with the ``remedy``."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield Archive(archive, source)
    except CannotCertify as error:
        if not remedy or str(error).endswith(remedy):
            raise
        raise CannotCertify(f"{error}{remedy}") from error
    except _BROKEN as error:
        said = (mistaken(file) if isinstance(file, Path) else "") or f": {error}{remedy}"
        raise CannotCertify(f"{source}: not a sound npz file{said}") from error


def array_of(content: bytes, source: str) -> Array:
    """The array of an ``.npy`` file's content; ``CannotCertify`` unless it is just that long."""
    try:
        header = _header(io.BytesIO(content), source)
        if header.start + header.bytes != len(content):
            raise CannotCertify(
                f"{source}: declares shape {header.shape} of {header.dtype}, "
                f"{header.start + header.bytes} bytes in all, but holds {len(content)}"
            )
        array: Array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except _BROKEN as error:
        raise CannotCertify(
            f"{source}: not a sound array{mistaken(content) or f': {error}'}"
        ) from error
    return array


def read_array(path: Path, most: int) -> Array:
    """The array of an ``.npy`` file, nothing unpickled, which may take ``most`` bytes;
    ``CannotCertify`` unless the file is just as long as its header declares."""
    try:
        with path.open("rb") as stream:
            header, held = _header(stream, str(path)), path.stat().st_size
            if header.start + header.bytes != held:
                raise CannotCertify(
                    f"{path}: declares shape {header.shape} of {header.dtype}, "
                    f"{header.start + header.bytes} bytes in all, but holds {held}"
                )
            check_size(str(path), header.bytes, most)
            stream.seek(0)
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    except _BROKEN as error:
        raise CannotCertify(
            f"{path}: not a sound npy file{mistaken(path) or f': {error}'}"
        ) from error
    return array


def check_stored(path: Path) -> None:
    """Raises ``CannotCertify`` where a zip's members, as torch writes them, are not as long as they
    are stored."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos: Iterable[zipfile.ZipInfo] = archive.infolist()
            whole = sum(info.file_size for info in infos)
            packed = any(info.compress_type != zipfile.ZIP_STORED for info in infos)
    except _BROKEN as error:
        said = mistaken(path) or (
            " of tensors: it is damaged, or of a torch before 1.6; save it again with torch.save"
        )
        raise CannotCertify(f"{path}: not a sound file{said}") from error
    if packed or whole > path.stat().st_size:
        raise CannotCertify(f"{path}: is damaged: it declares more than it holds")


def check_size(source: str, size: int, most: int) -> None:
    """Raises ``CannotCertify`` where ``source`` would take more than ``most`` bytes."""
    if size > most:
        raise CannotCertify(f"{source}: takes {size} bytes, more than the {most} that are read")


def read_at_most(stream: IO[bytes] | gzip.GzipFile, source: str, most: int) -> bytes:
    """All of a stream, which may unpack to ``most`` bytes; ``CannotCertify`` where it is longer."""
    content = stream.read(most + 1)
    check_size(source, len(content), most)
    return content


class Bounded(io.BytesIO):
    """A stream that unpacks as it is read, for ``tarfile``: nothing in it may take more than
    ``most`` bytes at once, and all that is read or passed over eight times as many."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, source: str, most: int) -> None:
        super().__init__()
        self.stream, self.source, self.most = stream, source, most

    def read(self, size: int | None = -1) -> bytes:
        size = self.most + 1 if size is None or size < 0 else size
        check_size(self.source, size, self.most + 1)
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        check_size(self.source, offset, 8 * self.most)
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def _header(stream: IO[bytes], told: str) -> Header:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy format {version[0]}.{version[1]} is not read")
    if dtype.hasobject:
        raise CannotCertify(f"{told}: holds Python objects, which are never unpickled")
    if min(shape, default=0) < 0:
        raise CannotCertify(f"{told}: its header declares shape {shape}")
    return Header(shape, dtype, fortran, stream.tell())
