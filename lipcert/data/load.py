"""From what a user writes, a name, a path or `module:factory`, to a `Dataset`."""

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lipcert.data.archives import PICTURED, picture_size
from lipcert.data.arrays import to_dataset
from lipcert.data.collect import collect
from lipcert.data.dataset import Array, Dataset, ValueRange
from lipcert.data.folder import read_folder
from lipcert.data.layouts import Expected, Layout
from lipcert.data.named import load_named, load_pictured
from lipcert.data.npy import labels_beside, read_npy
from lipcert.data.npz import read_npz
from lipcert.data.parquet import read_parquet, shards, splits_there
from lipcert.data.pillow import Size, depth
from lipcert.data.published import NAMED
from lipcert.data.table import read_labels, read_table
from lipcert.data.tensors import read_tensors
from lipcert.errors import LipcertError, UsageError

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
KNOWN = ("digits", *NAMED, *PICTURED)
# The kinds of files that data are read from; a table says what each takes of the options.
_KEYED = (".npz", ".pt", ".pth", ".safetensors", ".parquet")
_TABLES = (".csv", ".tsv")
FILES = (*_KEYED, ".npy", *_TABLES)


@dataclass(frozen=True)
class _Declared:
    """What the user said about files and arrays that do not say so themselves."""

    split: str
    layout: Layout
    value_range: ValueRange | None
    image_key: str | None
    label_key: str | None
    labels: Path | None
    resize: Size | None
    expected: Expected

    def keys(self) -> dict[str, Any]:
        return {"image_key": self.image_key, "label_key": self.label_key}

    def refuse(self, spec: str, *allowed: str) -> None:
        """Raises `UsageError` where an option is given that means nothing here."""
        given = {
            "--data-layout": self.layout != "auto", "--data-range": self.value_range is not None,
            "--image-key": self.image_key is not None, "--label-key": self.label_key is not None,
            "--labels": self.labels is not None, "--resize": self.resize is not None,
        }  # fmt: skip
        wrong = [option for option, there in given.items() if there and option not in allowed]
        if wrong:
            raise UsageError(f"{' and '.join(wrong)}: does not apply to {spec}; leave it out")


def load_dataset(
    spec: str,
    *,
    split: str = "test",
    data_dir: str | Path | None = None,
    offline: bool = False,
    layout: Layout = "auto",
    value_range: ValueRange | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    labels: Path | None = None,
    resize: Sequence[int] | None = None,
    expected: Expected | None = None,
) -> Dataset:
    """The dataset that `spec` names, verified where it is a published one.

    `spec` is one of `digits`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `tiny-imagenet` and
    `gtsrb`; the path of a file, `.npz`, `.npy`, `.csv`, `.tsv`, `.parquet`, `.pt`, `.pth` or
    `.safetensors`; of a folder with one sub-folder of images a class, or with the Parquet files of
    a dataset; or `package.module:factory`, which is handed `split` if it takes it and returns what
    `lipcert.data.collect` reads.

    `layout` and `value_range` tell how arrays are stored that do not say so themselves, see
    `to_dataset`; `image_key` and `label_key` under which names files keep them, or which column of
    a table is the label; `labels` is a file of labels for data without; `resize` a height and a
    width that pictures are brought to; `expected` what the model takes, which settles what arrays
    leave open. An option that means nothing for `spec` is refused.

    Raises `UsageError` for a wrong spec, split, option or array; `CannotCertify` for damaged or
    unpublished files, or a set that can neither be found nor downloaded.
    """
    declared = _Declared(
        split, layout, value_range, image_key, label_key, labels, picture_size(resize),
        expected or Expected(),
    )  # fmt: skip
    if spec in KNOWN:
        folder = None if data_dir is None else Path(data_dir)
        return _published(spec, declared, folder, offline)
    path = Path(spec)
    if path.is_dir():
        return _folder(path, declared)
    if path.is_file() and path.suffix.lower() in FILES:
        return _file(path, declared)
    if _FACTORY.fullmatch(spec):
        return _from_factory(spec, declared)
    raise _not_data(spec, path)


def _not_data(spec: str, path: Path) -> UsageError:
    """Why nothing is read from there, and what is."""
    if path.is_file() and path.suffix.lower() == ".onnx":
        return UsageError(
            f"--data {spec}: is a model, which comes first; name the data after --data"
        )
    if path.is_file() and path.suffix.lower() == ".py":
        return UsageError(f"{spec}: is code; name what makes the data in it, {path.stem}:factory")
    if path.is_file():
        return UsageError(
            f"{spec}: data is read from {', '.join(FILES)} files and folders of images"
        )
    if path.suffix.lower() in FILES or "/" in spec or os.sep in spec:
        return UsageError(
            f"{spec}: there is no such file or folder; give a file of {', '.join(FILES)}, a folder "
            "of images, or a dataset's name"
        )
    near = difflib.get_close_matches(spec.lower(), KNOWN, n=1)
    meant = f"; did you mean {near[0]}?" if near else ", nor a file or folder of that name."
    return UsageError(
        f"unknown dataset {spec!r}{meant} Known are {', '.join(KNOWN)}, "
        f"the path of a folder of images or of a file ({', '.join(FILES)}), and "
        "package.module:factory"
    )


def _published(spec: str, declared: _Declared, data_dir: Path | None, offline: bool) -> Dataset:
    if declared.layout != "auto" or declared.value_range is not None:
        raise UsageError(
            f"{spec} is a published set: --data-layout and --data-range do not "
            "apply; leave them out"
        )
    declared.refuse(spec, *(("--resize",) if spec in PICTURED else ()))
    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(f"--data-dir or LIPCERT_DATA_DIR {data_dir}: there is no such folder")
    if spec == "digits":
        return _digits(declared.split)
    if spec in PICTURED:
        size = declared.resize or (_side(declared.expected) if PICTURED[spec].size else None)
        return load_pictured(spec, declared.split, data_dir, size)
    return load_named(spec, declared.split, data_dir, offline)


def _side(expected: Expected) -> Size | None:
    """(H, W) of the images that a model takes."""
    if not expected.image or expected.shape is None:
        return None
    return expected.shape[1:] if expected.shape[0] in (1, 3) else expected.shape[:2]  # type: ignore[return-value]


def _folder(path: Path, declared: _Declared) -> Dataset:
    name = path.resolve().name
    files = shards(path, declared.split)
    if files:
        return _parquet(files, name, name, declared)
    if others := splits_there(path):
        raise UsageError(
            f"{path}: has Parquet files of the splits {', '.join(others)}, not "
            f"{declared.split!r}; choose one with --split"
        )
    declared.refuse(f"the folder {path}", "--resize", "--data-range")
    found = read_folder(path, declared.split, declared.resize)
    value_range, deep = depth(found.images, declared.value_range)
    made = to_dataset(
        name, declared.split, found.images, found.labels, source=name, classes=len(found.names),
        layout="nchw", value_range=value_range, names=found.names, by_name=True,
        notes=(*found.notes, *deep),
    )  # fmt: skip
    # Pictures say themselves what their axes are.
    return replace(made, reading=_kept(resize=declared.resize, value_range=value_range))


def _file(path: Path, declared: _Declared) -> Dataset:
    kind = path.suffix.lower()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if kind == ".parquet":
        return _parquet([path], path.stem, path.name, declared)
    given = None if declared.labels is None else read_labels(declared.labels)
    arrays = ("--data-layout", "--data-range", "--labels")
    images: Array
    labels: Array | None
    if kind == ".npz":
        declared.refuse(str(path), *arrays, "--image-key", "--label-key")
        images, labels = read_npz(
            path, str(path), split=declared.split, without_labels=given is not None,
            **declared.keys(),
        )  # fmt: skip
    elif kind == ".npy":
        declared.refuse(str(path), *arrays)
        images, labels = read_npy(path), None
        if given is None:
            labels = read_npy(labels_beside(path))
    elif kind in _TABLES:
        declared.refuse(str(path), "--data-layout", "--data-range", "--label-key")
        images, labels, notes = read_table(path, declared.label_key, declared.expected)
    else:
        declared.refuse(str(path), *arrays, "--image-key", "--label-key")
        images, labels, names = read_tensors(path, declared.split, **declared.keys())
    labels = labels if given is None else given
    assert labels is not None
    return _arrays(path.stem, path.name, images, labels, declared, names, notes)


def _parquet(files: Sequence[Path], name: str, source: str, declared: _Declared) -> Dataset:
    declared.refuse(
        source, "--data-layout", "--data-range", "--image-key", "--label-key", "--resize"
    )
    found = read_parquet(files, declared.split, size=declared.resize, **declared.keys())
    value_range, deep = depth(found.images, declared.value_range)
    declared = replace(declared, value_range=value_range)
    return _arrays(
        name, source, found.images, found.labels, declared, found.names, (*found.notes, *deep)
    )


def _arrays(
    name: str, source: str, images: Array, labels: Array, declared: _Declared,
    names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Dataset:  # fmt: skip
    made = to_dataset(
        name, declared.split, images, labels, source=source, layout=declared.layout,
        value_range=declared.value_range, expected=declared.expected, names=names,
        classes=len(names) or None, notes=notes,
    )  # fmt: skip
    kept = _kept(resize=declared.resize, **declared.keys())
    return replace(made, reading=dict(made.reading) | kept)


def _kept(**options: Any) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None
    }


def _digits(split: str) -> Dataset:
    """The 1,797 embedded 8x8 digits: every fifth, from the first, is `test`, the rest `train`."""
    with resources.files("lipcert.data").joinpath("digits.npz").open("rb") as file:
        images, labels = read_npz(file, "digits")
    assert labels is not None
    is_test = np.arange(len(labels)) % 5 == 0
    splits = {"test": is_test, "train": ~is_test, "all": np.ones_like(is_test)}
    if split not in splits:
        raise UsageError(f"digits has the splits {', '.join(splits)}, not {split!r}")
    chosen = splits[split]
    return Dataset(
        name="digits",
        split=split,
        images=images[chosen].astype(np.float32)[:, np.newaxis] / np.float32(16),
        labels=labels[chosen].astype(np.int64),
        classes=10,
        source="digits, embedded",
    )


def _from_factory(spec: str, declared: _Declared) -> Dataset:
    declared.refuse(spec, "--data-layout", "--data-range", "--image-key", "--label-key")
    try:
        with _working_folder_importable():
            made = _call(spec, declared.split)
            found = collect(made, spec, declared.split, **declared.keys())
    except LipcertError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{spec}: {type(error).__name__}: {error}") from error
    if isinstance(found, Dataset):
        return found
    return _arrays(spec, spec, found.images, found.labels, declared, found.names)


def _call(spec: str, split: str) -> Any:
    module, _, name = spec.partition(":")
    factory: Callable[..., Any] = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(factory).parameters.values()
    takes_split = any(p.name == "split" or p.kind is p.VAR_KEYWORD for p in parameters)
    return factory(split=split) if takes_split else factory()


@contextlib.contextmanager
def _working_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.path.remove(folder)
