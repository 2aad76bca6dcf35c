"""A `.npy` file of images and, beside it, one of labels."""

import re
from pathlib import Path

from lipcert.bounded import DATASET_BYTES, read_array
from lipcert.data.dataset import Array
from lipcert.errors import UsageError

# What a file of images is called, and the labels that belong to it.
_PAIRS = {
    "images": ("labels", "targets"), "image": ("label",), "imgs": ("labels",),
    "x": ("y",), "X": ("y", "Y"), "data": ("labels", "targets", "label"),
    "inputs": ("labels", "targets"), "features": ("labels", "targets"),
}  # fmt: skip


def read_npy(path: Path) -> Array:
    """The array of a `.npy` file, nothing unpickled.

    Raises `UsageError` where there is no such file, `CannotCertify` where it is damaged, or not as
    long as its header says.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    return read_array(path, DATASET_BYTES)


def labels_beside(path: Path) -> Path:
    """The file of labels for a `.npy` file of images. Raises `UsageError` where there is none."""
    names = [name for name in _candidates(path.stem) if name != path.stem]
    found = next((p for name in names if (p := path.with_name(f"{name}.npy")).is_file()), None)
    if found is None:
        beside = f" or put them beside it as {names[0]}.npy," if names else ""
        raise UsageError(
            f"{path}: holds no labels; name their file with --labels,{beside} or give both in one "
            ".npz file"
        )
    return found


def _candidates(stem: str) -> list[str]:
    return [
        re.sub(rf"(?<![A-Za-z]){word}(?![A-Za-z])", other, stem)
        for word, others in _PAIRS.items()
        if re.search(rf"(?<![A-Za-z]){word}(?![A-Za-z])", stem)
        for other in others
    ]
