"""Images and labels out of an npz file."""

from pathlib import Path
from typing import IO

from lipcert.bounded import DATASET_BYTES, opened
from lipcert.data.dataset import Array
from lipcert.data.keys import pick


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
    with opened(file, source) as archive:
        wanted, truth = pick(
            list(archive.members), split, source,
            image_key=image_key, label_key=label_key, without_labels=without_labels,
        )  # fmt: skip
        images = archive.read(wanted, DATASET_BYTES)
        labels = None if truth is None else archive.read(truth, DATASET_BYTES)
    return images, labels
