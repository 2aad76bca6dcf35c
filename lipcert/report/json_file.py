"""``certificate.json`` and ``samples.jsonl``: the machine-readable results and their schemas.

A shard's files carry its number, ``certificate.1-of-4.json``, so that shards can share a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from lipcert.certificate import Assurance, Certificate, Sample
from lipcert.errors import CannotCertify, UsageError

ESTIMATE = "ESTIMATE: power iteration bounds nothing; no number here is a guarantee"


def suffix(part: str | None) -> str:
    """``.2-of-4`` for the shard ``2/4``; empty for the whole run."""
    return f".{part.replace('/', '-of-')}" if part else ""


def paths(folder: Path, part: str | None = None) -> tuple[Path, Path]:
    """Where the certificate and the samples of a run, or of its shard ``part``, are written."""
    end = suffix(part)
    return folder / f"certificate{end}.json", folder / f"samples{end}.jsonl"


def proofs_path(folder: Path, part: str | None = None) -> Path:
    """Where the proofs of a run, or of its shard ``part``, are written."""
    return folder / f"proofs{suffix(part)}.npz"


def certificate_text(certificate: Certificate) -> str:
    """The content of ``certificate.json``."""
    return json.dumps(certificate.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sample_record(sample: Sample, *, estimate: bool) -> dict[str, Any]:
    """One line of ``samples.jsonl``; that of an ESTIMATE says so and has no field ``certified``."""
    record = sample.to_json()
    if estimate:
        del record["certified"]
        record["assurance"] = "ESTIMATE"
    return record


def write(folder: Path, certificate: Certificate, samples: Sequence[Sample]) -> tuple[Path, Path]:
    """Write both files, each whole or not at all; returns their paths.

    Raises ``UsageError`` where the folder cannot be written.
    """
    estimate = certificate.assurance.kind == "estimate"
    lines = (
        json.dumps(sample_record(sample, estimate=estimate), ensure_ascii=False, allow_nan=False)
        for sample in samples
    )
    written = paths(folder, certificate.data["shard"])
    # The certificate last: where it exists, its samples do.
    _replace(written[1], "".join(f"{line}\n" for line in lines))
    _replace(written[0], certificate_text(certificate))
    return written


def read_certificate(path: Path) -> Certificate:
    """The certificate in a file. Raises ``CannotCertify`` where it is damaged or no certificate."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = {"notes": tuple(record["notes"]), "assurance": Assurance(**record["assurance"])}
        return Certificate(**(record | known))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CannotCertify(f"{path}: not a certificate of this version: {error}") from error


def read_samples(path: Path) -> list[Sample]:
    """The samples in a file. Raises ``CannotCertify`` naming the first damaged line."""
    samples: list[Sample] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            record.pop("assurance", None)
            samples.append(Sample.from_json(record))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CannotCertify(f"{path}: line {len(samples) + 1} is no sample: {error}") from error
    return samples


def schema(name: Literal["certificate", "sample", "audit"]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``certificate.json``, ``audit.json``, or of one line of
    ``samples.jsonl``."""
    file = resources.files("lipcert.report").joinpath(f"{name}.schema.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _replace(path: Path, text: str) -> None:
    # In the same folder, for a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
