"""Parquet files, as the Hugging Face hub serves its datasets."""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lipcert.bounded import DATASET_BYTES, FREE_BYTES, GROWTH, check_size
from lipcert.data.dataset import Array
from lipcert.data.keys import LABELS, SPLITS, aliases, pick
from lipcert.data.pages import unpacked_sizes
from lipcert.data.pillow import Size, Stack, decode
from lipcert.errors import CannotCertify, LipcertError, UsageError
from lipcert.mistaken import mistaken


class Columns(NamedTuple):
    """Raw images or features, labels, the classes' names where the file has them, and what
    happened to the numbers of pictures."""

    images: Array
    labels: Array
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def shards(folder: Path, split: str) -> list[Path]:
    """The Parquet files of the split in a folder, or in its `data`: `test-00000-of-00001.parquet`,
    `test.parquet`, `test/0000.parquet`; empty where it has none."""
    for place in (folder, folder / "data"):
        for name in aliases(split):
            found = [*place.glob(f"{name}-*.parquet"), *place.glob(f"{name}.parquet")]
            if found := sorted(found or (place / name).glob("*.parquet")):
                return found
    return []


def splits_there(folder: Path) -> list[str]:
    """The splits of which a folder has Parquet files."""
    return [split for split in SPLITS if shards(folder, split)]


def read_parquet(
    files: Sequence[Path],
    split: str,
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    size: Size | None = None,
) -> Columns:
    """A column of pictures (bytes, or the hub's `{bytes, path}`), of arrays, or, without any,
    all columns of numbers as features; and a column of labels.

    Raises `UsageError` without pyarrow or where the columns do not tell, naming them;
    `CannotCertify` for a damaged file or one too large.
    """
    source = files[0].name
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError("reading Parquet needs pyarrow: pip install 'lipcert[data]'") from error
    try:
        opened = [parquet.ParquetFile(path) for path in files]
        for path, file in zip(files, opened, strict=True):
            _check_pages(path, file.metadata)
        schema = opened[0].schema_arrow
        images, label = _columns(schema, split, source, image_key, label_key)
        tables = [*_tables(opened, [*images, label], source)]
        notes: list[str] = []
        parts = [
            _values(table.column(images[0]), f"{source}: {images[0]}", size, notes)
            if len(images) == 1
            else _table(table, images, source)
            for table in tables
        ]
        labels = [np.asarray(table.column(label).to_pylist()) for table in tables]
        rows = np.concatenate(parts), np.concatenate(labels)
    except LipcertError:
        raise
    except Exception as error:  # pyarrow's errors derive from many types
        said = next(filter(None, map(mistaken, files)), f": {error}")
        raise CannotCertify(f"{source}: not a sound Parquet file{said}") from error
    return Columns(*rows, _names(schema, label), tuple(notes))


def _tables(opened: Sequence[Any], columns: Sequence[str], source: str) -> Iterator[Any]:
    """These columns of each file, read by a few rows at a time: a row may be a reference to a value
    that others have too, so that rows can take far more memory than what is stored.

    Raises `CannotCertify` where they take more than the stored bytes can hold, or all too much.
    """
    arrow, total = importlib.import_module("pyarrow"), 0
    for file in opened:
        batches, taken = [], 0
        largest, stored = _declared(file, columns, source)
        most = max(FREE_BYTES, GROWTH * stored)
        rows = min(1024, max(1, FREE_BYTES // max(1, largest)))
        for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
            taken += batch.nbytes
            total += batch.nbytes
            check_size(source, total, DATASET_BYTES)
            check_size(f"{source}: stored in {stored} bytes", taken, most)
            batches.append(batch)
        yield arrow.Table.from_batches(batches) if batches else file.read(columns=list(columns))


def _declared(file: Any, columns: Sequence[str], source: str) -> tuple[int, int]:
    """The most bytes that a part of these columns says it unpacks to, so that no row has more; and
    the bytes in which all of it is stored.

    Raises `CannotCertify` where all of it would be too much, or more than is stored can hold.
    """
    declared, stored, largest = 0, 0, 0
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for part in map(group.column, range(group.num_columns)):
            path = part.path_in_schema
            if any(path == name or path.startswith(f"{name}.") for name in columns):
                size = max(part.total_uncompressed_size, 8 * part.num_values)
                declared += size
                stored += part.total_compressed_size
                largest = max(largest, size)
    check_size(source, declared, DATASET_BYTES)
    if declared > max(FREE_BYTES, GROWTH * stored):
        raise CannotCertify(
            f"{source}: declares {declared} bytes, more than {stored} stored bytes can hold"
        )
    return largest, stored


def _check_pages(path: Path, metadata: Any) -> None:
    """Raises `CannotCertify` where the pages of a column unpack to more than the column declares,
    as one of them may take 2 GiB before anything of it is looked at."""
    with path.open("rb") as stream:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for part in map(group.column, range(group.num_columns)):
                starts = [part.data_page_offset, part.dictionary_page_offset or 0]
                start = min((at for at in starts if at > 0), default=0)
                sizes = unpacked_sizes(stream, start, part.total_compressed_size)
                if sum(sizes) > part.total_uncompressed_size:
                    raise CannotCertify(
                        f"{path.name}: {part.path_in_schema}: its pages unpack to more than the "
                        f"{part.total_uncompressed_size} bytes that it declares"
                    )


def _columns(
    schema: Any, split: str, source: str, image_key: str | None, label_key: str | None
) -> tuple[list[str], str]:
    arrow = importlib.import_module("pyarrow")
    there = list(schema.names)
    plain = [
        name for name in there
        if arrow.types.is_integer(schema.field(name).type)
        or arrow.types.is_floating(schema.field(name).type)
        or arrow.types.is_boolean(schema.field(name).type)
    ]  # fmt: skip
    nested = [name for name in there if _holds_samples(arrow, schema.field(name).type)]
    if image_key is None and not nested:
        low = {name.lower(): name for name in reversed(there)}
        label = label_key or next((low[key] for key in LABELS if key in low), None)
        if label is None or label not in there:
            raise UsageError(
                f"{source}: does not tell which column is the label; name it with --label-key; it "
                f"has {', '.join(there)}"
            )
        return [name for name in plain if name != label and not name.startswith("__")], label
    if image_key is None and len(nested) == 1:
        image_key = nested[0]
    images, label = pick(there, split, source, image_key=image_key, label_key=label_key)
    assert label is not None
    return [images], label


def _holds_samples(arrow: Any, kind: Any) -> bool:
    """Bytes, the hub's pictures, or lists of numbers."""
    pictures = arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    types = arrow.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(pictures or lists or binary)


def _values(column: Any, name: str, size: Size | None, notes: list[str]) -> Array:
    """(N, C, H, W) of pictures, (N, …) of lists, (N, 1) of plain numbers; notes are added."""
    values = column.to_pylist()
    if values and isinstance(values[0], Mapping | bytes):
        stack = Stack(len(values), name)
        for row, content in enumerate(_contents(values, name)):
            where = f"{name}, row {row}"
            stack.add(decode(content, where, size=size), where)
        notes += stack.notes
        return stack.array()
    try:
        found = np.asarray(values)
        if found.dtype.kind not in "biuf":
            raise ValueError(f"an array of {found.dtype}")
    except ValueError as error:
        raise UsageError(f"{name}: must hold pictures or arrays of one shape: {error}") from error
    return found[:, np.newaxis] if found.ndim == 1 else found


def _contents(values: Sequence[Any], name: str) -> Iterator[bytes]:
    for row, value in enumerate(values):
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(content, bytes):
            raise CannotCertify(f"{name}, row {row}: holds no picture, only the path of one")
        yield content


def _table(table: Any, names: Sequence[str], source: str) -> Array:
    columns = [np.asarray(table.column(name).to_numpy(), dtype=np.float64) for name in names]
    if not columns:
        raise UsageError(f"{source}: has no columns of numbers; name one with --image-key")
    return np.stack(columns, axis=1)


def _names(schema: Any, label: str) -> tuple[str, ...]:
    """Those that the hub's metadata gives to the classes."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
