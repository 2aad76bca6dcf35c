"""What lies beside the certificates of shards and goes along: counterexamples, thumbnails, proofs.

Nothing rests on these files: whoever reads them checks them. So their arrays are put one after the
other as they are.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert import bounded
from lipcert.errors import CannotCertify
from lipcert.merging.shards import ShardFolder
from lipcert.report import json_file, thumbnails
from lipcert.tally import right

Array = NDArray[Any]
Arrays = dict[str, Array]

# Bytes of all files together; a file of proofs that unpacks to more is read by no audit.
_MOST = 1 << 31
_REMEDY = "; remove it, or certify that shard again"
_BEGINS = b'{"index": '
# Of proofs.npz the places that count from the start of another array: which one it is.
_PLACES = {"form_sample": "index", "form_slopes": "slopes"}


def paths(folder: Path) -> tuple[Path, ...]:
    """The files that are written here."""
    return (*thumbnails.paths(folder), json_file.proofs_path(folder))


def proofs(shards: Sequence[ShardFolder], output: Path) -> int:
    """Write the proofs of all shards that have some; returns of how many samples there are any."""
    parts = [_read(path) for path in _there(shards, "proofs")]
    if not parts:
        return 0
    _check(parts)
    offsets = dict.fromkeys(_PLACES.values(), 0)
    for part in parts:
        for name, counted in _PLACES.items():
            # −1 is no place.
            moved = np.where(part[name] >= 0, part[name] + np.int64(offsets[counted]), part[name])
            part[name] = moved.astype(part[name].dtype)
        for counted in offsets:
            offsets[counted] += len(part[counted])
    made = {name: _joined(name, parts) for name in parts[0]}
    json_file.write_arrays(json_file.proofs_path(output), made)
    return len(made["index"])


def images(shards: Sequence[ShardFolder], output: Path) -> None:
    """Write the counterexamples of all shards, and the thumbnails worth showing of the whole."""
    small, found = thumbnails.paths(output)
    if parts := [_read(path) for path in _there(shards, thumbnails.COUNTEREXAMPLES)]:
        _check(parts)
        json_file.write_arrays(found, {name: _joined(name, parts) for name in parts[0]})
    parts = [_read(path) for path in _there(shards, thumbnails.THUMBNAILS)]
    if parts and len({part["image"].shape[1:] for part in parts}) == 1:
        made = {name: _joined(name, parts) for name in parts[0]}
        kept = np.isin(made["index"], _worth_showing(shards, set(made["index"].tolist())))
        made = {name: array[kept] for name, array in made.items()}
        order = np.argsort(made["index"])
        json_file.write_arrays(small, {name: array[order] for name, array in made.items()})


def _worth_showing(shards: Sequence[ShardFolder], shown: set[int]) -> list[int]:
    """Of the samples that shards show, those that a run of the whole would: what is among the
    smallest of all is among the smallest of its shard."""
    rows = [row for shard in shards for row in _rows(shard, shown)]
    by_radius = [
        (row.get("radius_estimate") or row["radius"] or 0.0, row["index"])
        for row in rows
        if right(row) and row["verdict"] != "error"
    ]
    each = thumbnails.EACH
    falsified = sorted(row["index"] for row in rows if row["verdict"] == "falsified")
    chosen = [*heapq.nsmallest(each, by_radius), *heapq.nlargest(each, by_radius)]
    return [*(index for _, index in chosen), *islice(falsified, each)]


def _rows(shard: ShardFolder, shown: set[int]) -> Iterator[dict[str, Any]]:
    with shard.beside("samples", "jsonl").open("rb") as file:
        for line in file:
            # As every line begins that lipcert writes; not all of them need to be read whole.
            if line.startswith(_BEGINS) and int(line[len(_BEGINS) :].split(b",", 1)[0]) in shown:
                yield json.loads(line)


def _there(shards: Sequence[ShardFolder], name: str) -> list[Path]:
    return [path for shard in shards if (path := shard.beside(name, "npz")).is_file()]


def _read(path: Path) -> Arrays:
    with bounded.opened(path, str(path), _REMEDY) as archive:
        found = {name: archive.read(name, _MOST) for name in archive.members}
        if missing := {"index"} - found.keys():
            raise CannotCertify(f"{path}: holds no array {min(missing)!r}")
    return found


def _check(parts: Sequence[Arrays]) -> None:
    if any(part.keys() != parts[0].keys() for part in parts):
        raise CannotCertify(f"the npz files of the shards hold different arrays{_REMEDY}")
    if sum(array.nbytes for part in parts for array in part.values()) > _MOST:
        raise CannotCertify(
            f"the npz files of the shards unpack to more than {_MOST >> 30} GiB together, which "
            "nothing would read: keep them where they are, and audit the shards one by one"
        )


def _joined(name: str, parts: Sequence[Arrays]) -> Array:
    arrays = [part[name] for part in parts]
    if all(array.ndim == 0 for array in arrays):  # the version of the format
        if any(array != arrays[0] for array in arrays):
            raise CannotCertify(f"the npz files of the shards are of different {name}s{_REMEDY}")
        return arrays[0]
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise CannotCertify(f"the arrays {name} of the shards do not fit: {error}") from error
