"""From what a user writes, a name, a path or `module:factory`, to a `Dataset`."""

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lipcert.data.dataset import Dataset, Layout, ValueRange, to_dataset
from lipcert.data.folder import read_folder
from lipcert.data.named import load_named
from lipcert.data.npz import read_npz
from lipcert.data.published import NAMED
from lipcert.errors import LipcertError, UsageError

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def load_dataset(
    spec: str,
    *,
    split: str = "test",
    data_dir: Path | None = None,
    offline: bool = False,
    layout: Layout = "auto",
    value_range: ValueRange | None = None,
) -> Dataset:
    """The dataset that `spec` names, verified where it is a published one.

    `spec` is `digits`, `mnist`, `fashion-mnist`, `cifar10` or `cifar100`; the path of an npz file
    or of a folder with one sub-folder of images a class; or `package.module:factory`, which
    returns (images, labels) or a `Dataset` and is handed `split` if it takes it.
    `layout` and `value_range` tell how arrays are stored that do not say so themselves, see
    `to_dataset`; the named sets need neither and refuse them.

    Raises `UsageError` for a wrong spec, split or array; `CannotCertify` for damaged or unpublished
    files, or a set that can neither be found nor downloaded.
    """
    if spec == "digits" or spec in NAMED:
        if layout != "auto" or value_range is not None:
            raise UsageError(
                f"{spec} is a published set: --data-layout and --data-range do not apply"
            )
        if data_dir is not None and not data_dir.is_dir():
            raise UsageError(f"--data-dir {data_dir}: there is no such folder")
        if spec == "digits":
            return _digits(split)
        return load_named(spec, split, data_dir, offline)
    path = Path(spec)
    if path.is_dir():
        images, labels, classes = read_folder(path, split)
        name = path.resolve().name
        return to_dataset(name, split, images, labels, source=name, classes=classes, layout="nchw")
    if path.is_file() and path.suffix == ".npz":
        images, labels = read_npz(path, spec)
        return to_dataset(
            path.stem,
            split,
            images,
            labels,
            source=path.name,
            layout=layout,
            value_range=value_range,
        )
    if _FACTORY.fullmatch(spec):
        return _from_factory(spec, split, layout, value_range)
    if path.is_file():
        raise UsageError(f"{spec}: data is read from .npz files and folders of images")
    if path.suffix == ".npz" or "/" in spec or os.sep in spec:
        raise UsageError(
            f"{spec}: there is no such file or folder; give an .npz file, a folder of images, or a "
            "dataset's name"
        )
    names = ["digits", *NAMED]
    nearest = difflib.get_close_matches(spec.lower(), names, n=1, cutoff=0.0)[0]
    raise UsageError(
        f"unknown dataset {spec!r}; did you mean {nearest}? Known are {', '.join(names)}, "
        "the path of an .npz file or folder of images, and package.module:factory"
    )


def _digits(split: str) -> Dataset:
    """The 1,797 embedded 8x8 digits: every fifth, from the first, is `test`, the rest `train`."""
    with resources.files("lipcert.data").joinpath("digits.npz").open("rb") as file:
        images, labels = read_npz(file, "digits")
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


def _from_factory(spec: str, split: str, layout: Layout, value_range: ValueRange | None) -> Dataset:
    try:
        with _working_folder_importable():
            made = _call(spec, split)
        if isinstance(made, Dataset):
            return made
        images, labels = made
        images, labels = np.asarray(images), np.asarray(labels)
    except LipcertError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{spec}: {type(error).__name__}: {error}") from error
    return to_dataset(
        spec, split, images, labels, source=spec, layout=layout, value_range=value_range
    )


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
