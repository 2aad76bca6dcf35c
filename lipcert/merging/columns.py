"""The samples of one shard, read strictly, line by line, and kept as a few columns of numbers."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from lipcert.errors import CannotCertify
from lipcert.merging.shards import ShardFolder
from lipcert.records import Frame, read_sample
from lipcert.records.certificate_rules import check_claims, differing
from lipcert.records.lines import lines_of
from lipcert.records.strict_json import Record
from lipcert.tally import Tally

_REMEDY = "certify that shard again"


@dataclass(frozen=True)
class Counted:
    """``indices``: of the samples, in their order."""

    tally: Tally
    indices: array[int]


def count(shard: ShardFolder) -> Counted:
    """Read the samples of ``shard`` and hold its certificate against them.

    Raises ``CannotCertify`` where anything in them is not as a run writes it, naming file and line.
    """
    certificate, path = shard.certificate, shard.beside("samples", "jsonl")
    frame = Frame.of(certificate)
    tally = Tally(certificate["options"]["eps"], estimate=frame.estimate)
    indices, digest = array("q"), hashlib.sha256()
    if not path.is_file():
        raise CannotCertify(
            f"{path}: is not there, and {shard.path.name} claims nothing without it"
        )
    name = f"{path}: line"
    for line in lines_of(path, _REMEDY):
        digest.update(line)
        record = read_sample(line, frame, f"{name} {tally.n + 1}")
        indices.append(record["index"])
        tally.add(record)
    if digest.hexdigest() != certificate["samples_sha256"]:
        raise CannotCertify(
            f"{path}: is not the file that {shard.path.name} was written with: its sha256 is not "
            f"samples_sha256; {_REMEDY}"
        )
    if tally.n != shard.size:
        raise CannotCertify(
            f"{path}: has {tally.n} samples, and {shard.size} were chosen for the shard; {_REMEDY}"
        )
    check_claims(certificate, tally.spent, frame, str(shard.path))
    said = differing("summary", certificate["summary"], tally.summary()) or differing(
        "cascade", _by_rung(certificate.get("cascade", ())), _by_rung(tally.cascade())
    )
    if said:
        raise CannotCertify(f"{shard.path}: cannot be: {said}; {_REMEDY}")
    return Counted(tally, indices)


def _by_rung(rows: Iterable[Record]) -> dict[str, Record]:
    return {row["rung"]: row for row in rows}
