"""``certificate.json`` and ``samples.jsonl``: the machine-readable results and their schemas.

A shard's files carry its number, ``certificate.1-of-4.json``, so that shards can share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lipcert.certificate import Certificate, Sample
from lipcert.errors import UsageError
from lipcert.records.reading import suffix_of as suffix
from lipcert.records.schemas import schema

__all__ = [
    "ESTIMATE", "certificate_text", "paths", "sample_record", "samples_digest", "samples_text",
    "schema", "suffix", "write",
]  # fmt: skip

ESTIMATE = "ESTIMATE: power iteration bounds nothing; no number here is a guarantee"


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


def samples_text(samples: Iterable[Sample], *, estimate: bool) -> str:
    """The content of ``samples.jsonl``."""
    return b"".join(_lines(samples, estimate=estimate)).decode()


def samples_digest(samples: Iterable[Sample], *, estimate: bool) -> str:
    """The ``samples_sha256`` of a certificate."""
    digest = hashlib.sha256()
    for line in _lines(samples, estimate=estimate):
        digest.update(line)
    return digest.hexdigest()


def _lines(samples: Iterable[Sample], *, estimate: bool) -> Iterator[bytes]:
    for sample in samples:
        record = sample_record(sample, estimate=estimate)
        yield json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write(folder: Path, certificate: Certificate, samples: Iterable[Sample]) -> tuple[Path, Path]:
    """Write both files, each whole or not at all; returns their paths.

    Raises ``UsageError`` where the folder cannot be written.
    """
    certificate_path, samples_path = paths(folder, certificate.data["shard"])
    # The certificate last: where it exists, its samples do.
    estimate = certificate.assurance.kind == "estimate"
    with written(samples_path) as file:
        file.writelines(_lines(samples, estimate=estimate))
    with written(certificate_path) as file:
        file.write(certificate_text(certificate).encode())
    return certificate_path, samples_path


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of ``path`` in the end, whole or not at all.

    Raises ``UsageError`` where it cannot be written.
    """
    # In the same folder, for a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An ``.npz`` file, whole or not at all. Raises ``UsageError`` where it cannot be written."""
    with written(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
