"""Tables in CSV files: one row a sample, one column its label."""

import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lipcert.bounded import check_size, read_at_most
from lipcert.data.dataset import Array
from lipcert.data.keys import LABELS
from lipcert.data.layouts import Expected
from lipcert.errors import CannotCertify, UsageError

_MOST_BYTES = 8 << 30
_LOOKED_AT = 200  # rows that tell how a file is written
_MORE_LABELS = ("species", "category", "quality", "outcome", "diagnosis", "labelid", "classid")


class Table(NamedTuple):
    """The features (N, F), the labels (N,) and what was found out about the columns."""

    features: Array
    labels: Array
    notes: tuple[str, ...]


def read_table(path: Path, label_key: str | None, expected: Expected) -> Table:
    """Rows of numbers with commas, semicolons or tabs between; a first line of names is optional.

    The label is the column `label_key`, a name or a number from 0, -1 for the last; else the one
    that is named so, the only one of text, or the first or last, if only one of both can be it.
    Raises `UsageError` where this does not tell, naming the columns; `CannotCertify` for a file
    that is no table.
    """
    rows, delimiter = _first_rows(path)
    width = len(rows[0])
    head = None if any(map(_is_number, rows[0])) else rows[0]
    if head and len(rows) == 1:
        raise CannotCertify(
            f"{path}: holds a line of names and no rows: there is nothing to certify"
        )
    body = rows[1:] if head else rows
    names = [name.strip() for name in head] if head else [str(i) for i in range(width)]
    # pandas writes the numbers of the rows as a column without a name.
    numbered = [0] if head and names[0] in ("", "Unnamed: 0") else []
    label = _label_column(path, names, body, label_key, expected, head is not None, numbered)
    features = [i for i in range(width) if i != label and i not in numbered]
    texts = [names[i] for i in features if not all(_is_number(row[i]) for row in body)]
    if texts:
        place = names.index(texts[0])
        wrong = next(row[place] for row in body if not _is_number(row[place])).strip()
        what = "lacks a value: fill it in, or leave the row out"
        if wrong:
            what = (
                f"is not one of numbers, as it has {wrong!r}: leave it out of the file, write "
                "numbers with a point, or name the label's column with --label-key"
            )
        raise UsageError(f"{path}: the column {texts[0]} {what}")
    skip = 1 if head else 0
    values = _numbers(path, delimiter, skip, features)
    labels = _column(path, delimiter, skip, label)
    notes = [] if label_key else [f"labels are taken from the column {names[label]!r}"]
    notes += ["the column of row numbers is left out"] * len(numbered)
    return Table(values, labels, tuple(notes))


def read_labels(path: Path) -> Array:
    """A file of labels alone: `.npy`, or text with one on each line; of a table with a line of
    names, the column that is named as labels are, else the last one."""
    from lipcert.data.npy import read_npy

    if path.suffix == ".npy":
        return read_npy(path)
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if path.suffix.lower() not in (".csv", ".tsv") or not lines:
        return np.array(lines)
    rows = list(csv.reader(lines, delimiter=max((",", ";", "\t"), key=lines[0].count)))
    head, known = [name.strip().lower() for name in rows[0]], (*LABELS, *_MORE_LABELS)
    named = [i for i, name in enumerate(head) if name in known]
    body = rows[1:] if named or (len(head) > 1 and not any(map(_is_number, head))) else rows
    column = named[0] if named else -1
    try:
        return np.array([row[column].strip() for row in body])
    except IndexError as error:
        raise CannotCertify(f"{path}: a line has fewer columns than the first") from error


def _first_rows(path: Path) -> tuple[list[list[str]], str]:
    try:
        check_size(str(path), path.stat().st_size, _MOST_BYTES)
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(itertools.islice((s for s in file if s.strip()), _LOOKED_AT))
    except (OSError, UnicodeDecodeError) as error:
        raise CannotCertify(f"{path}: cannot be read as text: {error}") from error
    if not lines:
        raise CannotCertify(f"{path}: holds no rows, so there is nothing to certify")
    delimiter = max(
        (";", "\t", ","), key=lambda one: min(lines[0].count(one), lines[-1].count(one))
    )
    rows = list(csv.reader(lines, delimiter=delimiter))
    if len(rows[0]) < 2:
        raise UsageError(f"{path}: needs commas, semicolons or tabs between at least two columns")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise CannotCertify(
                f"{path}: line {number} has {len(row)} columns, the first has {len(rows[0])}; give "
                "every line as many"
            )
    return rows, delimiter


def _label_column(
    path: Path, names: list[str], body: list[list[str]], label_key: str | None, expected: Expected,
    headed: bool, numbered: list[int],
) -> int:  # fmt: skip
    width = len(names)
    if label_key is not None:
        if label_key in names:
            return names.index(label_key)
        if label_key.lstrip("-").isdecimal() and -width <= int(label_key) < width:
            return int(label_key) % width
        raise UsageError(f"--label-key {label_key}: {path} has the columns {_listed(names)}")
    if headed:
        known = {name.lower(): i for i, name in reversed(list(enumerate(names)))}
        for name in (*(key.lower() for key in LABELS if len(key) > 1), "y", *_MORE_LABELS):
            if name in known:
                return known[name]
    columns = [i for i in range(width) if i not in numbered]
    texts = [i for i in columns if not all(_is_number(row[i]) for row in body)]
    if len(texts) == 1:
        return texts[0]
    able = [i for i in (columns[0], columns[-1]) if _can_be_labels([r[i] for r in body], expected)]
    if len(able) == 1:
        return able[0]
    raise UsageError(
        f"{path}: does not tell which column is the label; name it with --label-key, a name or a "
        f"number from 0, -1 for the last; it has the columns {_listed(names)}"
    )


def _can_be_labels(texts: list[str], expected: Expected) -> bool:
    """Whole numbers, fewer kinds than rows, and no larger than the model has outputs."""
    try:
        values = np.array(texts, dtype=np.float64)
    except ValueError:
        return False
    most = np.inf if expected.classes is None else expected.classes
    whole = bool((values == np.rint(values)).all() and values.min() >= 0)
    kinds = len(np.unique(values))
    return whole and values.max() <= most and kinds < max(2, len(values)) and kinds > 1


def _numbers(path: Path, delimiter: str, skip: int, columns: list[int]) -> Array:
    try:
        return np.loadtxt(
            path, delimiter=delimiter, skiprows=skip, usecols=columns, ndmin=2, quotechar='"',
            comments=None, encoding="utf-8-sig",
        )  # fmt: skip
    except (OSError, ValueError, IndexError) as error:
        raise CannotCertify(f"{path}: is no table of numbers: {error}") from error


def _column(path: Path, delimiter: str, skip: int, column: int) -> Array:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = filter(any, csv.reader(file, delimiter=delimiter))
            texts = np.array([row[column] for row in itertools.islice(rows, skip, None)])
    except (OSError, UnicodeDecodeError, IndexError, csv.Error) as error:
        raise CannotCertify(f"{path}: is no table: {error}") from error
    try:
        return texts.astype(np.float64)
    except ValueError:
        return texts


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return read_at_most(file, str(path), _MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f", … {names[-1]}" if len(names) > 12 else "")
