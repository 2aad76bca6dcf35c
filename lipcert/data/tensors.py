"""Tensors saved by torch or safetensors, read without unpickling anything but numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipcert.bounded import check_stored
from lipcert.data.collect import Collected, collect
from lipcert.data.dataset import Dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.mistaken import mistaken


def read_tensors(
    path: Path, split: str, *, image_key: str | None = None, label_key: str | None = None
) -> Collected:
    """`.pt` and `.pth` files of (images, labels) or of a mapping of both; `.safetensors` files.

    Raises `CannotCertify` for a damaged file, one that declares more than it holds, or one that
    asks for more than tensors and containers, of which nothing is executed; `UsageError` where it
    holds something else.
    """
    made = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not isinstance(made, Mapping | tuple | list):
        raise UsageError(
            f"{path}: holds {type(made).__name__}; (images, labels) or a mapping of both is needed"
        )
    if not isinstance(made, Mapping) and len(made) != 2:
        made = made[:2]  # torchvision's own files had more beside
    found = collect(made, str(path), split, image_key=image_key, label_key=label_key)
    assert not isinstance(found, Dataset)
    return found


def _torch(path: Path) -> Any:
    import torch

    check_stored(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if said := mistaken(path):
            raise CannotCertify(f"{path}: not a file of tensors{said}") from error
        raise CannotCertify(
            f"{path}: not a sound file of tensors and nothing else ({type(error).__name__}), and "
            "nothing of it was executed; save (images, labels) as tensors, or use an .npz file"
        ) from error


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        said = mistaken(path) or f": {error}"
        raise CannotCertify(f"{path}: not a sound safetensors file{said}") from error
