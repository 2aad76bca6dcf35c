"""The sets known by name: found on disk in any of their forms, or downloaded, and verified."""

import os
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import platformdirs

from lipcert.data.archives import PICTURED, PictureSet
from lipcert.data.arrays import to_dataset
from lipcert.data.dataset import Array, Dataset
from lipcert.data.download import fetch
from lipcert.data.files import read_file, read_members
from lipcert.data.formats import Blob
from lipcert.data.names import CLASS_NAMES
from lipcert.data.npz import read_npz
from lipcert.data.pillow import Size
from lipcert.data.published import NAMED, FileForm, NamedSet
from lipcert.errors import CannotCertify, UsageError


class Availability(NamedTuple):
    """One split of a named set, and the file it would be read from, None if it is not here."""

    name: str
    split: str
    where: Path | None


class _Found(NamedTuple):
    form: FileForm
    paths: list[Path]
    in_archive: bool


def cache_folder() -> Path | None:
    """Where downloads are kept, the last folder that is searched; None for a user without a home,
    as containers have."""
    try:
        folder = Path(platformdirs.user_cache_dir("lipcert"))
    except (RuntimeError, KeyError):
        return None
    # Without a home there is no `~` to put a folder's name for.
    return None if folder.parts[:1] == ("~",) else folder / "data"


def load_named(name: str, split: str, data_dir: Path | None, offline: bool) -> Dataset:
    """A published set from the first data folder that holds it, else downloaded to the cache.

    Searched are `data_dir`, $LIPCERT_DATA_DIR and the cache, each for npz, IDX, CIFAR batches and
    archives. Raises `UsageError` for a split it does not have; `CannotCertify` where it is neither
    here nor to be had, or is not the published set.
    """
    known = NAMED[name]
    if split not in known.counts:
        raise UsageError(f"{name} has the splits {', '.join(known.counts)}, not {split!r}")
    folders = _folders(data_dir)
    found = _find(known, split, folders)
    if found is None and not offline:
        found = _find(known, split, [_download(known, split)])
    if found is None:
        raise CannotCertify(f"{name} {split} was not found.\n{_help(known, split, folders)}")
    return _verified(_read(known, split, found), known, found.paths[0])


def load_pictured(name: str, split: str, data_dir: Path | None, size: Size | None) -> Dataset:
    """Tiny-ImageNet or GTSRB from the first data folder that holds it; raises as `load_named`."""
    known = PICTURED[name]
    if split not in known.counts:
        raise UsageError(f"{name} has the splits {', '.join(known.counts)}, not {split!r}")
    folders = _folders(data_dir)
    for folder in folders:
        if (arrays := _arrays(name, split, folder)) is not None:
            return _part(known, split, arrays)
        if (tree := known.find(split, folder)) is not None:
            return known.read(split, tree, size)
    raise CannotCertify(
        f"{name} {split} was not found: {known.help}; looked in {', '.join(map(str, folders))}"
    )


def _arrays(name: str, split: str, folder: Path) -> Path | None:
    """An npz file of the split, or of a part of it, in a data folder."""
    stem = f"{name.replace('-', '_')}_{split}"
    return next((p for p in (folder / f"{stem}.npz", *sorted(folder.glob(f"{stem}_*.npz")))
                 if p.is_file()), None)  # fmt: skip


def _part(known: PictureSet, split: str, path: Path) -> Dataset:
    images, labels = read_npz(path, str(path), split=split)
    assert labels is not None
    names = CLASS_NAMES.get(known.name, ())
    made = to_dataset(
        known.name, split, images, labels, source=path.name, names=names,
        classes=len(names) or None, notes=known.part_note(len(labels), split, path.name),
    )  # fmt: skip
    return replace(made, reading={})


def available(data_dir: Path | None = None) -> list[Availability]:
    """Each split of each named set, and where it was found; nothing is read or downloaded."""
    folders = _folders(data_dir)
    files = [
        Availability(known.name, split, found.paths[0] if found else None)
        for known in NAMED.values()
        for split in known.counts
        for found in [_find(known, split, folders)]
    ]
    return files + [
        Availability(known.name, split, _place(known, split, folders))
        for known in PICTURED.values()
        for split in known.counts
    ]


def _place(known: PictureSet, split: str, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        if (arrays := _arrays(known.name, split, folder)) is not None:
            return arrays
        if (tree := known.find(split, folder)) is not None:
            return tree.places[0]
    return None


def _folders(data_dir: Path | None) -> list[Path]:
    named = [str(data_dir)] if data_dir is not None else []
    if in_environment := os.environ.get("LIPCERT_DATA_DIR"):
        named.append(in_environment)
    cache = cache_folder()
    return [*map(Path, named), *([] if cache is None else [cache])]


def _find(known: NamedSet, split: str, folders: Sequence[Path]) -> _Found | None:
    for folder in folders:
        for subfolder in known.folders:
            for form in (_npz_form(known), *known.forms):
                if found := _find_form(form, split, folder / subfolder):
                    return found
    return None


def _find_form(form: FileForm, split: str, folder: Path) -> _Found | None:
    paths = [
        next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
        for name in form.files[split]
    ]
    present = [path for path in paths if path is not None]
    if len(present) == len(paths):
        return _Found(form, present, in_archive=False)
    if form.archive and (folder / form.archive).is_file():
        return _Found(form, [folder / form.archive], in_archive=True)
    return None


def _npz_form(known: NamedSet) -> FileForm:
    stem = known.name.replace("-", "_")
    return FileForm(_decode_npz, {split: (f"{stem}_{split}.npz",) for split in known.counts})


def _decode_npz(files: Sequence[Blob]) -> tuple[Array, Array]:
    (file,) = files
    images, labels = read_npz(BytesIO(file.data), file.name)
    assert labels is not None
    return images, labels


def _read(known: NamedSet, split: str, found: _Found) -> Dataset:
    if found.in_archive:
        blobs = read_members(found.paths[0], found.form.files[split])
    else:
        blobs = [read_file(path) for path in found.paths]
    images, labels = found.form.decode(blobs)
    source = ", ".join(path.name for path in found.paths)
    made = to_dataset(
        known.name, split, images, labels, source=source, classes=known.classes,
        names=CLASS_NAMES.get(known.name, ()),
    )  # fmt: skip
    return replace(made, reading={})


def _verified(dataset: Dataset, known: NamedSet, where: Path) -> Dataset:
    published = known.sha256.get(dataset.split)
    if published is not None and dataset.sha256 != published:
        raise CannotCertify(
            f"{where}: is not the published set {dataset.name} {dataset.split}; "
            f"its decoded arrays have\n  sha256   {dataset.sha256}\n  expected {published}"
        )
    shape = (known.counts[dataset.split], *known.shape)
    if dataset.images.dtype != "uint8" or dataset.images.shape != shape:
        raise CannotCertify(
            f"{where}: is not the published set {dataset.name} {dataset.split}, which is "
            f"uint8 of shape {shape}, not {dataset.images.dtype} of shape {dataset.images.shape}"
        )
    for other in NAMED.values():
        # MNIST and Fashion-MNIST are published under the same file names.
        if other is not known and dataset.sha256 in other.sha256.values():
            raise CannotCertify(f"{where}: is {other.name}, not {dataset.name}")
    return dataset


def _download(known: NamedSet, split: str) -> Path:
    """Into the cache, whose folder is returned."""
    cache = cache_folder()
    if cache is None:
        raise CannotCertify(
            f"{known.name} {split} was not found, and there is no home folder to download it to: "
            f"set XDG_CACHE_HOME.\n{_help(known, split, [])}"
        )
    target = cache / known.name
    for remote in known.remote[split]:
        if not (target / remote.name).is_file():
            try:
                fetch(remote, target)
            except CannotCertify as error:
                help_text = _help(known, split, [cache])
                raise CannotCertify(f"{error}\n{help_text}") from error
    return cache


def _help(known: NamedSet, split: str, folders: Sequence[Path]) -> str:
    names = [
        " with ".join(form.files[split]) + (f" (or {form.archive})" if form.archive else "")
        for form in (_npz_form(known), *known.forms)
    ]
    return (
        "Put it, in one of these forms, in a folder given by --data-dir or LIPCERT_DATA_DIR:\n  "
        + "\n  ".join(names)
        + "\nLooked in:\n  "
        + "\n  ".join(str(folder) for folder in folders)
    )
