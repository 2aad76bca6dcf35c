"""The sets known by name: found on disk in any of their forms, or downloaded, and verified."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import platformdirs

from lipcert.data.dataset import Array, Dataset, to_dataset
from lipcert.data.download import fetch
from lipcert.data.files import read_file, read_members
from lipcert.data.formats import Blob
from lipcert.data.npz import read_npz
from lipcert.data.published import NAMED, Form, NamedSet
from lipcert.errors import CannotCertify, UsageError


class Availability(NamedTuple):
    """One split of a named set, and the file it would be read from, None if it is not here."""

    name: str
    split: str
    where: Path | None


class _Found(NamedTuple):
    form: Form
    paths: list[Path]
    in_archive: bool


def cache_folder() -> Path:
    """Where downloads are kept, the last folder that is searched."""
    return Path(platformdirs.user_cache_dir("lipcert")) / "data"


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
        _download(known, split)
        found = _find(known, split, [cache_folder()])
    if found is None:
        raise CannotCertify(f"{name} {split} was not found.\n{_help(known, split, folders)}")
    return _verified(_read(known, split, found), known, found.paths[0])


def available(data_dir: Path | None = None) -> list[Availability]:
    """Each split of each named set, and where it was found; nothing is read or downloaded."""
    folders = _folders(data_dir)
    return [
        Availability(known.name, split, found.paths[0] if found else None)
        for known in NAMED.values()
        for split in known.counts
        for found in [_find(known, split, folders)]
    ]


def _folders(data_dir: Path | None) -> list[Path]:
    named = [str(data_dir)] if data_dir is not None else []
    if in_environment := os.environ.get("LIPCERT_DATA_DIR"):
        named.append(in_environment)
    return [*map(Path, named), cache_folder()]


def _find(known: NamedSet, split: str, folders: Sequence[Path]) -> _Found | None:
    for folder in folders:
        for subfolder in known.folders:
            for form in (_npz_form(known), *known.forms):
                if found := _find_form(form, split, folder / subfolder):
                    return found
    return None


def _find_form(form: Form, split: str, folder: Path) -> _Found | None:
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


def _npz_form(known: NamedSet) -> Form:
    stem = known.name.replace("-", "_")
    return Form(_decode_npz, {split: (f"{stem}_{split}.npz",) for split in known.counts})


def _decode_npz(files: Sequence[Blob]) -> tuple[Array, Array]:
    (file,) = files
    return read_npz(BytesIO(file.data), file.name)


def _read(known: NamedSet, split: str, found: _Found) -> Dataset:
    if found.in_archive:
        blobs = read_members(found.paths[0], found.form.files[split])
    else:
        blobs = [read_file(path) for path in found.paths]
    images, labels = found.form.decode(blobs)
    source = ", ".join(path.name for path in found.paths)
    return to_dataset(known.name, split, images, labels, source=source, classes=known.classes)


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


def _download(known: NamedSet, split: str) -> None:
    for remote in known.remote[split]:
        target = cache_folder() / known.name
        if not (target / remote.name).is_file():
            try:
                fetch(remote, target)
            except CannotCertify as error:
                help_text = _help(known, split, [cache_folder()])
                raise CannotCertify(f"{error}\n{help_text}") from error


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
