"""From an output folder to the results that reports are made of, checked on the way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from lipcert import records
from lipcert.errors import CannotCertify
from lipcert.records import schemas
from lipcert.records.reading import read_bytes
from lipcert.records.strict_json import parse
from lipcert.report.results import Record, Results
from lipcert.report.thumbnails import (
    COUNTEREXAMPLES,
    THUMBNAILS,
    read_images,
    read_predictions,
)
from lipcert.report.training import TrainingRecord

# Bytes: an audit of a million samples is less.
_LARGEST_AUDIT = 1 << 31


def read_results(path: Path) -> Results:
    """The results in an output folder, or beside the certificate at ``path``.

    Raises ``UsageError`` for a path that leads to no certificate, ``CannotCertify`` for files that
    are damaged, not there, or not of one run.
    """
    found = records.read(path)
    file, end = found.path, found.suffix
    return Results(
        found.certificate,
        found.samples,
        dict(found.digests),
        images=read_images(file.with_name(f"{THUMBNAILS}{end}.npz")),
        counterexamples=read_images(file.with_name(f"{COUNTEREXAMPLES}{end}.npz")),
        training=_training(file.parent),
        taken_for=read_predictions(file.with_name(f"{COUNTEREXAMPLES}{end}.npz")),
        audit=_audit(file.with_name(f"audit{end}.json"), found.digests),
    )


def _audit(path: Path, digests: Mapping[str, str]) -> Record | None:
    """The audit beside a certificate; None where there is none, or where it was one of other files.

    Raises ``CannotCertify`` where it is damaged.
    """
    if not path.is_file():
        return None
    remedy = "remove it, or audit again"
    try:
        record = parse(read_bytes(path, _LARGEST_AUDIT), str(path))
        schemas.check(record, "audit", str(path))
    except CannotCertify as error:
        raise CannotCertify(f"{error}; {remedy}") from error
    found = Counter(one["outcome"] for one in record["samples"])
    if record["counts"] != {name: found[name] for name in record["counts"]} or (
        record["agreement"] == bool(found["contradicted"] or record["files_contradict"])
    ):
        raise CannotCertify(f"{path}: cannot be: its counts are not those of its samples; {remedy}")
    same = all(record["files"].get(name) == digest for name, digest in digests.items())
    return record if same else None


def _training(folder: Path) -> TrainingRecord | None:
    """What ``lipcert finetune`` left beside the certificate, if it did.

    Raises ``CannotCertify`` where that is damaged.
    """
    metrics, recipe = folder / "metrics.jsonl", folder / "recipe.json"
    if not (metrics.is_file() and recipe.is_file()):
        return None
    try:
        lines = read_bytes(metrics, _LARGEST_AUDIT).splitlines()
        records = tuple(json.loads(line) for line in lines)
        results = json.loads(read_bytes(recipe, _LARGEST_AUDIT)).get("results", {})
        if not all(isinstance(record["epoch"], int) for record in records):
            raise ValueError("an epoch is no whole number")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CannotCertify(f"{metrics}: is damaged: {error}; remove it, or train again") from error
    return TrainingRecord(records, results)
