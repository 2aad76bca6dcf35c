"""The shards in the folders that are named, held against each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcert.errors import CannotCertify, UsageError
from lipcert.records.reading import certificate_of
from lipcert.records.strict_json import Record

# What shards of one run have in common, by the name of the field and in words.
_SAME = {
    "lipcert": "version of lipcert", "threat_model": "threat model", "options": "options",
    "options_digest": "options", "model": "model", "data": "data or choice of samples",
}  # fmt: skip
# What every shard finds or names for itself.
_OWN = {"model": ("cross_check",), "data": ("shard",)}
_NAMED = 8


@dataclass(frozen=True)
class ShardFolder:
    """``path``: of its certificate; ``sha256``: of that file."""

    path: Path
    certificate: Record
    sha256: str

    @property
    def number(self) -> int:
        return int(self.certificate["data"]["shard"].partition("/")[0])

    @property
    def count(self) -> int:
        return int(self.certificate["data"]["shard"].partition("/")[2])

    @property
    def size(self) -> int:
        """How many samples it has to have."""
        return len(range(self.number - 1, self.certificate["data"]["chosen"], self.count))

    def beside(self, name: str, kind: str) -> Path:
        """Its file of samples, of proofs, of images."""
        return self.path.with_name(f"{name}.{self.number}-of-{self.count}.{kind}")


def find(folders: Sequence[Path]) -> list[ShardFolder]:
    """All shards of one run, by their numbers.

    ``folders``: each has one or more of them, or is the certificate of one. Raises ``UsageError``
    for a folder that has none; ``CannotCertify`` where a certificate is damaged, where two are not
    of one run, or where one is there twice or not at all, naming the files and the field.
    """
    shards = [_read(path) for folder in folders for path in _certificates(folder)]
    first = shards[0]
    for shard in shards[1:]:
        _compare(first, shard)
    numbers: dict[int, ShardFolder] = {}
    for shard in shards:
        other = numbers.setdefault(shard.number, shard)
        if other is not shard:
            raise CannotCertify(
                f"{shard.path}: is shard {shard.certificate['data']['shard']}, and so is "
                f"{other.path}: name each shard once"
            )
    missing = [n for n in range(1, first.count + 1) if n not in numbers]
    if missing:
        named = ", ".join(f"{n}/{first.count}" for n in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise CannotCertify(
            f"{len(missing)} of {first.count} shards are missing: {named}{more}: certify them with "
            "--shard, or go on with them by --resume, and name their folders too"
        )
    return [numbers[number] for number in sorted(numbers)]


def _certificates(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    found = [path for path in folder.glob("certificate.*-of-*.json") if _number(path)]
    if not found:
        raise UsageError(
            f"{folder}: holds no certificate of a shard, such as certificate.1-of-4.json; name the "
            "--output of lipcert certify --shard"
            if folder.is_dir()
            else f"{folder}: there is no such folder or file"
        )
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    found = re.fullmatch(r"certificate\.([0-9]+)-of-[0-9]+\.json", path.name)
    return int(found[1]) if found else 0


def _read(path: Path) -> ShardFolder:
    certificate, sha256 = certificate_of(path)
    if certificate["data"]["shard"] is None:
        raise UsageError(f"{path}: is the certificate of a whole run; name those of shards")
    return ShardFolder(path, certificate, sha256)


def _compare(one: ShardFolder, other: ShardFolder) -> None:
    """Raises ``CannotCertify`` where they are not of one run."""
    if one.count != other.count:
        raise CannotCertify(
            f"{other.path}: is one of {other.count} shards, {one.path} one of {one.count}"
        )
    for field, word in _SAME.items():
        found, wanted = _common(other.certificate, field), _common(one.certificate, field)
        if found != wanted:
            inside = _differing(found, wanted)
            raise CannotCertify(
                f"{other.path}: is of another {word} than {one.path}: $.{field}{inside} differs; "
                "shards of one run have the same model, data, options and version"
            )


def _common(certificate: Record, field: str) -> Any:
    found = certificate[field]
    own = _OWN.get(field, ())
    return {k: v for k, v in found.items() if k not in own} if own else found


def _differing(found: Any, wanted: Any) -> str:
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return ""
    names = [name for name in found | wanted if found.get(name) != wanted.get(name)]
    return f".{names[0]}{_differing(found.get(names[0]), wanted.get(names[0]))}"
