"""From an output folder to the results that reports are made of, checked on the way."""

from __future__ import annotations

import json
from pathlib import Path

from lipcert import records
from lipcert.errors import CannotCertify
from lipcert.report.results import Results
from lipcert.report.thumbnails import COUNTEREXAMPLES, THUMBNAILS, read_images
from lipcert.report.training import Training


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
    )


def _training(folder: Path) -> Training | None:
    """What ``lipcert finetune`` left beside the certificate, if it did.

    Raises ``CannotCertify`` where that is damaged.
    """
    metrics, recipe = folder / "metrics.jsonl", folder / "recipe.json"
    if not (metrics.is_file() and recipe.is_file()):
        return None
    try:
        records = tuple(json.loads(line) for line in metrics.read_bytes().splitlines())
        results = json.loads(recipe.read_bytes()).get("results", {})
        if not all(isinstance(record["epoch"], int) for record in records):
            raise ValueError("an epoch is no whole number")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CannotCertify(f"{metrics}: is damaged: {error}; remove it, or train again") from error
    return Training(records, results)
