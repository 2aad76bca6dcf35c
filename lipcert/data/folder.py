"""A folder of images, one sub-folder a class."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lipcert.data.dataset import Array
from lipcert.data.keys import SPLITS, aliases
from lipcert.data.pillow import FORMATS, Size, Stack, decode
from lipcert.errors import UsageError

_FOREIGN = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "lost+found")
_NAMED = 3  # files left out that a note names


class Folder(NamedTuple):
    """Images (N, C, H, W) uint8 or uint16, labels (N,) int64, the classes' names, and notes of what
    was left out or changed."""

    images: Array
    labels: Array
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(folder: Path, split: str, size: Size | None = None) -> Folder:
    """The images below `folder/<split>`, or below `folder` where that does not exist.

    Classes are the sub-folders, in the order of their numbers where all their names are whole
    numbers, else of their names; the folders inside them belong to them. Images are taken in the
    order of their names; other files are counted and named in a note. C is 1 where every image is
    gray, else 3; transparency is dropped. `size`: (H, W) that all are brought to.
    Raises `UsageError` without Pillow, without classes, or for images of several sizes or of
    numbers that do not say what white is; `CannotCertify` for a damaged image or a decompression
    bomb.
    """
    root = next((p for name in aliases(split) if (p := folder / name).is_dir()), folder)
    try:
        classes = _in_order([path for path in _visible(root) if path.is_dir()])
        files = [[*_files(path)] for path in classes]
        beside = [path for path in _visible(root) if not path.is_dir()]
    except OSError as error:
        raise UsageError(f"{root}: cannot be listed: {error}") from error
    splits = [path.name for path in classes if path.name.lower() in SPLITS]
    if classes and len(splits) == len(classes):
        raise UsageError(
            f"{root}: has the splits {', '.join(splits)}, not {split!r}; choose one with --split"
        )
    images = [[path for path in some if path.suffix.lower() in FORMATS] for some in files]
    if not any(images):
        raise UsageError(
            f"{root}: needs a sub-folder of images for each class ({', '.join(sorted(FORMATS))})"
        )
    other = [path for some in files for path in some if path.suffix.lower() not in FORMATS]
    names = tuple(path.name for path in classes)
    empty = [name for name, some in zip(names, images, strict=True) if not some]
    stack = Stack(sum(map(len, images)), str(root))
    for path in (path for some in images for path in some):
        stack.add(decode(path, str(path), size=size), str(path))
    labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(some) for some in images])
    notes = (*_notes(root, [*beside, *other], empty), *stack.notes)
    return Folder(stack.array(), labels, names, notes)


def by_number(names: list[str]) -> bool:
    """Whether all the names are whole numbers, each another one."""
    return all(name.isdecimal() for name in names) and len(set(map(int, names))) == len(names)


def _in_order(classes: list[Path]) -> list[Path]:
    if by_number([path.name for path in classes]):
        return sorted(classes, key=lambda path: int(path.name))
    return classes


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_own(path.name))


def _is_own(name: str) -> bool:
    """Not hidden, and not what systems leave beside people's files."""
    return not name.startswith(".") and name not in _FOREIGN


def _files(folder: Path) -> Iterator[Path]:
    """All below, in the order of their names; links to folders are not followed."""
    for path, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(filter(_is_own, folders))
        yield from (Path(path) / name for name in sorted(filter(_is_own, names)))


def _raise(error: OSError) -> None:
    raise error


def _notes(root: Path, left_out: list[Path], empty: list[str]) -> Iterator[str]:
    if left_out:
        some = ", ".join(str(path.relative_to(root)) for path in left_out[:_NAMED])
        more = ", …" if len(left_out) > _NAMED else ""
        yield (
            f"{len(left_out)} files of {root.name} were left out, as they are no images of a class "
            f"in a format that is read ({', '.join(sorted(FORMATS))}): {some}{more}"
        )
    if empty:
        more = ", …" if len(empty) > _NAMED else ""
        yield (
            f"{len(empty)} classes of {root.name} have no images: {', '.join(empty[:_NAMED])}{more}"
        )
