"""Which samples of a dataset are certified, and the digest that pins the choice."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipcert.data.dataset import Dataset, Indices
from lipcert.errors import CannotCertify, UsageError


def choose(
    dataset: Dataset,
    *,
    limit: int | None = None,
    indices_file: Path | None = None,
    seed: int | None = None,
) -> Indices:
    """Indices into `dataset`, each at most once.

    Without options all; with `limit` the first `limit`, or with `seed` too a random subset of that
    size, sorted. `indices_file` lists them instead, in its own order, of which `limit` keeps the
    first: one integer a line, a JSON list, or a JSON object of lists keyed `<name>_<split>` or
    `<name>` (`-` and `_` are one). A `limit` above what there is keeps all of it.

    Raises `UsageError` for a limit below 1, an unreadable file, a duplicate, an index out of
    range; `CannotCertify` where nothing is left.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 is needed")
    if indices_file is not None:
        chosen = _listed(indices_file, dataset)[:limit]
    elif seed is not None and limit is not None and limit < len(dataset):
        random = np.random.default_rng(seed)
        chosen = np.sort(random.choice(len(dataset), size=limit, replace=False))
    else:
        chosen = np.arange(len(dataset))[:limit]
    if len(chosen) == 0:
        raise CannotCertify(f"{indices_file}: lists no indices, so there is nothing to certify")
    return chosen.astype(np.int64)


def indices_digest(indices: Indices | Sequence[int]) -> str:
    """Hex SHA-256 of the indices in their order, as little-endian 64-bit integers."""
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()


def _listed(path: Path, dataset: Dataset) -> Indices:
    entries = _entries(path, dataset)
    seen: set[int] = set()
    for position, index in enumerate(entries, start=1):
        if isinstance(index, bool) or not isinstance(index, int):
            raise UsageError(f"{path}: entry {position} is not an integer: {str(index)[:60]!r}")
        if not 0 <= index < len(dataset):
            raise UsageError(
                f"{path}: entry {position} is {index}, outside 0 to {len(dataset) - 1} "
                f"of {dataset.name} {dataset.split}"
            )
        if index in seen:
            raise UsageError(f"{path}: entry {position} repeats {index}")
        seen.add(index)
    return np.array(entries, dtype=np.int64)


def _entries(path: Path, dataset: Dataset) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8").strip()
        listed = json.loads(text) if text[:1] in ("[", "{") else _lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: no list of indices: {error}; write one whole number a line, or a JSON array"
        ) from error
    if isinstance(listed, dict):
        listed = _keyed(listed, path, dataset)
    if not isinstance(listed, list):
        raise UsageError(f"{path}: a list of integers is needed, not {type(listed).__name__}")
    return listed


def _lines(text: str) -> list[int]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append(int(line))
        except ValueError:
            raise ValueError(f"line {number} is {line.strip()[:60]!r}") from None
    return found


def _keyed(lists: dict[str, Any], path: Path, dataset: Dataset) -> Any:
    by_name = {key.replace("-", "_"): value for key, value in lists.items()}
    for key in (f"{dataset.name}_{dataset.split}", dataset.name):
        if key.replace("-", "_") in by_name:
            return by_name[key.replace("-", "_")]
    raise UsageError(
        f"{path}: no list for {dataset.name} {dataset.split}; it has {', '.join(lists) or 'none'}"
    )
