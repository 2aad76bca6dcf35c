"""The published file forms of MNIST and CIFAR, decoded from bytes that nothing is executed from.

A decoder takes the files of one split and returns raw images and labels; it raises `CannotCertify`
naming the file and what is wrong with it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lipcert.data.dataset import Array
from lipcert.data.pickled import PickledArray, unpickle
from lipcert.errors import CannotCertify

_CIFAR_SHAPE = (3, 32, 32)
_UBYTE = 0x08


class Blob(NamedTuple):
    """The content of one file, under the name that an error calls it by."""

    name: str
    data: bytes


Decoder = Callable[[Sequence[Blob]], tuple[Array, Array]]


def decode_idx(files: Sequence[Blob]) -> tuple[Array, Array]:
    """MNIST's IDX files, images then labels: (N, 1, H, W) and (N,) uint8."""
    images, labels = files
    return _idx(images, 3)[:, np.newaxis], _idx(labels, 1)


def _idx(file: Blob, ndim: int) -> Array:
    start = 4 + 4 * ndim
    if len(file.data) < start or file.data[:4] != bytes((0, 0, _UBYTE, ndim)):
        raise CannotCertify(f"{file.name}: not an IDX file of {ndim}-dimensional unsigned bytes")
    shape = tuple(int(size) for size in np.frombuffer(file.data, ">u4", ndim, offset=4))
    if len(file.data) != start + math.prod(shape):
        raise CannotCertify(
            f"{file.name}: its header declares shape {shape}, {start + math.prod(shape)} bytes "
            f"in all, but it holds {len(file.data)}"
        )
    return np.frombuffer(file.data, np.uint8, offset=start).reshape(shape)


def decode_cifar10_binary(files: Sequence[Blob]) -> tuple[Array, Array]:
    """CIFAR-10's binary batches: (N, 3, 32, 32) and (N,) uint8."""
    return _cifar_binary(files, label_bytes=1)


def decode_cifar100_binary(files: Sequence[Blob]) -> tuple[Array, Array]:
    """CIFAR-100's binary files, fine labels: (N, 3, 32, 32) and (N,) uint8."""
    return _cifar_binary(files, label_bytes=2)


def _cifar_binary(files: Sequence[Blob], label_bytes: int) -> tuple[Array, Array]:
    width = label_bytes + math.prod(_CIFAR_SHAPE)
    for file in files:
        if len(file.data) % width:
            raise CannotCertify(
                f"{file.name}: {len(file.data)} bytes are no whole number of {width}-byte records"
            )
    records = np.concatenate([np.frombuffer(f.data, np.uint8).reshape(-1, width) for f in files])
    # CIFAR-100 writes the coarse label first: the fine one is always the byte before the pixels.
    return records[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE), records[:, label_bytes - 1]


def decode_cifar10_python(files: Sequence[Blob]) -> tuple[Array, Array]:
    """CIFAR-10's pickled batches: (N, 3, 32, 32) uint8 and (N,) int64."""
    return _cifar_python(files, "labels")


def decode_cifar100_python(files: Sequence[Blob]) -> tuple[Array, Array]:
    """CIFAR-100's pickled files, fine labels: (N, 3, 32, 32) uint8 and (N,) int64."""
    return _cifar_python(files, "fine_labels")


def _cifar_python(files: Sequence[Blob], label_key: str) -> tuple[Array, Array]:
    images, labels = [], []
    for file in files:
        batch = unpickle(file.data, file.name)
        data = _entry(batch, "data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
            raise CannotCertify(f"{file.name}: its 'data' is no array of unsigned bytes")
        if data.ndim != 2 or data.shape[1] != math.prod(_CIFAR_SHAPE):
            raise CannotCertify(f"{file.name}: its 'data' has shape {data.shape}, not (N, 3072)")
        try:
            numbers = np.array(_entry(batch, label_key), dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise CannotCertify(f"{file.name}: no integers under {label_key!r}") from error
        if numbers.shape != data.shape[:1]:
            raise CannotCertify(f"{file.name}: {len(data)} images, labels {numbers.shape}")
        images.append(data.reshape(-1, *_CIFAR_SHAPE))
        labels.append(numbers)
    return np.concatenate(images), np.concatenate(labels)


def _entry(batch: Any, key: str) -> Any:
    if not isinstance(batch, dict):
        return None
    # Python 2 wrote byte strings, which later writers kept as bytes.
    value = batch.get(key, batch.get(key.encode()))
    return value.array if isinstance(value, PickledArray) else value
