"""Images and labels out of an npz file."""

from pathlib import Path
from typing import IO

from lipcert.bounded import DATASET_BYTES, Archive, opened
from lipcert.data.dataset import Array
from lipcert.errors import UsageError


def read_npz(file: Path | IO[bytes], source: str) -> tuple[Array, Array]:
    """The raw (images, labels) of an npz file, nothing unpickled.

    Images are under `images` or `x`, labels under `labels` or `y`. Raises `UsageError`
    where they are not, `CannotCertify` for a damaged file, one whose headers contradict its size,
    or arrays of Python objects.
    """
    with opened(file, source) as archive:
        wanted = [_first_of(keys, archive) for keys in (("images", "x"), ("labels", "y"))]
        images, labels = (archive.read(name, DATASET_BYTES) for name in wanted)
    return images, labels


def _first_of(keys: tuple[str, ...], archive: Archive) -> str:
    for key in keys:
        if key in archive:
            return key
    raise UsageError(
        f"{archive.source}: needs an array {' or '.join(keys)}; it has "
        f"{', '.join(archive.members) or 'none'}"
    )
