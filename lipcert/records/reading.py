"""From an output folder to the records of a certificate and its samples, checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipcert.errors import CannotCertify, UsageError
from lipcert.records import schemas
from lipcert.records.certificate_rules import check_certificate
from lipcert.records.figures import Figures
from lipcert.records.frame import Frame
from lipcert.records.lines import FEW, Lines, lines_of
from lipcert.records.sample_rules import read_sample
from lipcert.records.strict_json import Record, parse

# Bytes: far more than a certificate of a thousand layers takes.
_CERTIFICATE = 1 << 25


@dataclass(frozen=True)
class Records:
    """A certificate and its samples, as their files say it, and true to each other.

    ``path``: of the certificate. ``samples``: in memory up to 100,000 of them, else each is read
    again when it is asked for. ``digests``: sha256 of both files, by name.
    """

    path: Path
    certificate: Record
    samples: Sequence[Record]
    digests: Mapping[str, str]

    @property
    def suffix(self) -> str:
        """``.1-of-4`` for the files of a shard, else empty."""
        return _suffix(self.path.name)


def read(path: Path) -> Records:
    """The records in an output folder, or of the certificate at ``path``.

    Raises ``UsageError`` for a path that leads to no certificate; ``CannotCertify`` where the
    samples are not there, or where anything in either file is not as a run writes it.
    """
    file = path / "certificate.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(_absent(path))
    certificate, digest = certificate_of(file)
    frame = Frame.of(certificate)
    suffix = _suffix(file.name)
    rows = file.with_name(f"samples{suffix}.jsonl")
    if not rows.is_file():
        raise CannotCertify(
            f"{rows}: is not there, and {file.name} claims nothing without it; bring it back"
        )
    samples, figures, rows_digest = _samples(rows, frame)
    check_certificate(certificate, figures, frame, str(file))
    digests = {file.name: digest, rows.name: rows_digest}
    if digests[rows.name] != certificate["samples_sha256"]:
        raise CannotCertify(
            f"{rows}: is not the file that {file.name} was written with: its sha256 is not "
            "samples_sha256; certify again"
        )
    return Records(file, certificate, samples, digests)


def certificate_of(file: Path) -> tuple[Record, str]:
    """The record of a ``certificate.json`` whose fields have been checked, but not against its
    samples, and the sha256 of the file. Raises as ``read`` does."""
    content = read_bytes(file, _CERTIFICATE)
    certificate = parse(content, str(file))
    schemas.check(certificate, "certificate", str(file))
    try:
        Frame.of(certificate)
    except ValueError as error:
        raise CannotCertify(f"{file}: is damaged: at $.options: {str(error)[:200]}") from error
    shard = certificate["data"]["shard"]
    if file.name.startswith("certificate.") and _suffix(file.name) != suffix_of(shard):
        raise CannotCertify(f"{file}: is named as another shard than $.data.shard, {shard}")
    return certificate, hashlib.sha256(content).hexdigest()


def suffix_of(shard: str | None) -> str:
    """``.2-of-4`` for the shard ``2/4``; empty for the whole run."""
    return f".{shard.replace('/', '-of-')}" if shard else ""


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file. Raises ``CannotCertify`` where it is larger than ``most`` bytes,
    ``UsageError`` where it cannot be read, or is a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: cannot be read: it is no regular file")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise CannotCertify(f"{path}: is damaged: it has more than {most >> 20} MiB")
    return content


def _samples(path: Path, frame: Frame) -> tuple[Sequence[Record], Figures, str]:
    """The samples, in memory where they are few; their figures, and the sha256 of the file."""
    few: list[Record] = []
    all_, figures, digest = Lines(path), Figures(frame), hashlib.sha256()
    for number, line in enumerate(lines_of(path), start=1):
        digest.update(line)
        record = read_sample(line, frame, f"{path}: line {number}")
        figures.add(record)
        all_.append(line)
        if number <= FEW:
            few.append(record)
        elif few:
            few = []
    return tuple(few) if len(all_) <= FEW else all_, figures, digest.hexdigest()


def _suffix(name: str) -> str:
    match = re.fullmatch(r"certificate(\.\d+-of-\d+)\.json", name)
    return match[1] if match else ""


def _absent(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: there is no such file or folder; name the --output of lipcert certify"
    parts = sorted(path.glob("certificate.*-of-*.json"))
    if parts:
        return (
            f"{path}: holds {parts[0].name} of a shard, and no certificate of the whole; "
            "name that file, or join the shards with lipcert certify --resume"
        )
    return f"{path}: holds no certificate.json; name the --output of lipcert certify"
