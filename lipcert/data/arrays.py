"""How raw arrays become a `Dataset`: their axes, their unit, and labels as people write them."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipcert.bounded import DATASET_BYTES, check_size
from lipcert.data.dataset import OWN, PIXELS, RANGE, Array, Dataset, Unit, ValueRange
from lipcert.data.layouts import KINDS, Expected, Layout, channels_first, layout_of
from lipcert.errors import UsageError

_BYTES = (0.0, 255.0)
_SIGNS = "the labels -1 and 1 were numbered 0 and 1; --label-map says which class each of them is"
# So many classes no data have: what goes beyond are no numbers of classes.
_MOST_CLASSES = 1 << 20
# Whole numbers that reach so far, and not beyond 255, are those of an image's bytes.
_REACHED_BY_BYTES = 128


def to_dataset(
    name: str,
    split: str,
    images: Array,
    labels: Array,
    *,
    source: str,
    classes: int | None = None,
    layout: Layout = "auto",
    value_range: ValueRange | None = None,
    expected: Expected | None = None,
    names: Sequence[str] = (),
    by_name: bool = False,
    notes: Sequence[str] = (),
) -> Dataset:
    """Bring raw arrays into the form that `Dataset` asks for.

    `layout` names the axes, see `lipcert.data.layouts`; with `auto` the shape tells them or, where
    it does not, what the model is `expected` to take.

    Images are bytes, whole numbers that are those of bytes, or floats in [0, 1]; they are in
    pixels. Other numbers need `value_range` = (lo, hi), which sends lo to 0 and hi to 1; where it
    is given it is applied to every array. Tables, signals and volumes keep the numbers that they
    are stored in, which are then the unit of eps, unless a range is declared or they are bytes.

    Labels: (N,) or (N, 1) whole numbers, of any type, text, or one-hot rows (N, K). `classes` is
    the largest label + 1 where it is not known. Raises `UsageError`.
    """
    images, labels, expected = np.asarray(images), np.asarray(labels), expected or Expected()
    for array in (images, labels):  # a view may be larger than what it is of
        check_size(source, array.nbytes, DATASET_BYTES)
    numbers, found, told_of_signs = _numbered(labels, source)
    notes = (*notes, *told_of_signs)
    images = _real_numbers(images, source)
    least, most = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if value_range is not None:
        _check_range(value_range)
    within = value_range is not None or (least >= 0 and most <= 1)
    told = layout_of(images.shape, images.dtype, within, layout, expected, source)
    pictures = KINDS[told] == "images"
    if value_range is None and images.dtype == np.uint8 and KINDS[told] == "volumes":
        value_range, notes = _BYTES, (*notes, "bytes of 0 to 255 were brought to [0, 1]")
    stored, unit = _scaled(images, (least, most), value_range, pictures, source)
    if classes is None:
        classes = len(found) or int(numbers.max(initial=-1)) + 1
    ranged = {} if value_range is None else {"value_range": list(value_range)}
    return Dataset(
        name, split, np.ascontiguousarray(channels_first(stored, told)), numbers, classes, source,
        unit=unit, names=tuple(names) or found, by_name=by_name or bool(found and not names),
        notes=tuple(notes), reading={"layout": told, **ranged},
    )  # fmt: skip


def _real_numbers(images: Array, source: str) -> Array:
    """The values, black and white as 0 and 1. Raises `UsageError` for what are no finite ones."""
    if images.dtype.kind not in "biuf":
        raise UsageError(f"{source}: the values must be real numbers, not {images.dtype}")
    if images.dtype.kind == "b":
        images = images.astype(np.float32)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise UsageError(f"{source}: the data hold NaN or infinite values")
    return images


def label_numbers(labels: Array, source: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(N,) int64, and the names of the classes where the labels are text; they are then numbered
    in the order of their names, of their numbers where all are numbers. Raises `UsageError`."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise UsageError(
                f"{source}: labels of shape {labels.shape} must be one-hot, one 1 in each row and "
                "0 elsewhere; give one class a sample"
            )
        return labels.argmax(axis=1).astype(np.int64), ()
    if labels.ndim != 1 or labels.dtype.kind not in "biufUSO":
        raise UsageError(
            f"{source}: labels must be whole numbers or names, one a sample, "
            f"not {labels.dtype} of shape {labels.shape}"
        )
    if labels.dtype.kind in "USO":
        return _named(labels, source)
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        wrong = labels[~(np.isfinite(labels) & (labels == np.rint(labels)))][0]
        raise UsageError(f"{source}: labels must be whole numbers, not {wrong:g}")
    _check_numbers(labels, source)
    return labels.astype(np.int64), ()


def _numbered(
    labels: Array, source: str
) -> tuple[NDArray[np.int64], tuple[str, ...], tuple[str, ...]]:
    """The numbers of the classes, their names where labels have some, and what is to be said of
    it."""
    numbers, found = label_numbers(labels, source)
    numbers, signs = _without_signs(numbers, source)
    return numbers, found or signs, (_SIGNS,) if signs else ()


def _without_signs(
    numbers: NDArray[np.int64], source: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels of -1 and 1 as classes 0 and 1, and their names; others as they are. Raises
    `UsageError` for a label below 0 elsewhere, where it marks what has no label."""
    if not numbers.size or numbers.min() >= 0:
        return numbers, ()
    values, numbered = np.unique(numbers, return_inverse=True)
    if values.tolist() != [-1, 1]:
        some = ", ".join(map(str, values.tolist()[:3])) + (", …" if len(values) > 3 else "")
        raise UsageError(
            f"{source}: a label below 0 is no class, and the labels are {some}: leave those "
            "samples out, number the classes from 0, or name them and give --label-map"
        )
    return numbered, ("-1", "1")


def _check_numbers(labels: Array, source: str) -> None:
    if labels.size and not -_MOST_CLASSES < labels.min() <= labels.max() < _MOST_CLASSES:
        raise UsageError(
            f"{source}: labels run from {labels.min()} to {labels.max()}, which are no numbers of "
            f"classes: they are below {_MOST_CLASSES}"
        )


def _named(labels: Array, source: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "O" and not all(isinstance(label, str) for label in labels):
        raise UsageError(f"{source}: labels must be whole numbers or names, one a sample")
    names, numbers = np.unique(np.char.strip(labels.astype(np.str_)), return_inverse=True)
    if names.size and all(name.isdecimal() for name in names):
        found = np.array([int(name) for name in names], dtype=object)
        _check_numbers(found, source)
        return found[numbers.reshape(-1)].astype(np.int64), ()
    return numbers.reshape(-1).astype(np.int64), tuple(map(str, names))


def _check_range(value_range: ValueRange) -> None:
    lo, hi = value_range
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise UsageError(
            f"--data-range {lo},{hi}: two finite numbers, the smaller first, are needed"
        )


def _scaled(
    images: Array,
    extent: tuple[float, float],
    value_range: ValueRange | None,
    pictures: bool,
    source: str,
) -> tuple[Array, Unit]:
    """uint8 or float32, and the unit that it is in."""
    least, most = extent
    if value_range is not None:
        lo, hi = value_range
        if least < lo or most > hi:
            raise UsageError(
                f"{source}: values run from {least:g} to {most:g}, outside [{lo:g}, {hi:g}]; name "
                "the range of the data with --data-range lo,hi"
            )
        unit = PIXELS if pictures else RANGE
        if images.dtype == np.uint8 and (lo, hi) == _BYTES:
            return images, unit
        return ((images.astype(np.float64) - lo) / (hi - lo)).astype(np.float32), unit
    if not pictures:
        if images.size and max(-least, most) > float(np.finfo(np.float32).max):
            raise UsageError(f"{source}: values as large as {most:g} pass those of float32")
        return images.astype(np.float32), OWN
    if images.dtype == np.uint8:
        return images, PIXELS
    if images.dtype.kind == "f" and least >= 0 and most <= 1:
        return images.astype(np.float32), PIXELS
    if least >= 0 and _REACHED_BY_BYTES <= most <= 255 and (images == np.rint(images)).all():
        return images.astype(np.uint8), PIXELS
    raise UsageError(_asked(images, least, most, source))


def _asked(images: Array, least: float, most: float, source: str) -> str:
    """Why these numbers do not tell which of them are black and white."""
    if least >= 0:
        white = next((w for w in (1, 15, 16, 255, 4095, 65535) if most <= w), None)
        such = "" if white is None else f", such as --data-range 0,{white}"
    else:
        such = ", such as --data-range=-1,1" if least >= -1 and most <= 1 else ""
    normalised = (
        "; where they are normalised already, give the images before that, and --mean and --std"
        if least < 0
        else ""
    )
    return (
        f"{source}: image values run from {least:g} to {most:g}, in {images.dtype}: neither bytes "
        "nor within [0, 1]; name the values of black and white with --data-range "
        f"lo,hi{such}{normalised}; for data that are no images, say what their axes are with "
        "--data-layout"
    )
