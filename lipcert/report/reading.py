"""From an output folder to the results that reports are made of, checked on the way."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipcert.certificate import SCHEMA
from lipcert.errors import CannotCertify, UsageError
from lipcert.options import Epsilon
from lipcert.report import json_file
from lipcert.report.results import Record, Results, correct
from lipcert.report.thumbnails import COUNTEREXAMPLES, THUMBNAILS, read_images
from lipcert.report.training import Training

_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": int | float,
    "null": type(None), "boolean": bool,
}  # fmt: skip


def read_results(path: Path, *, samples: bool = True) -> Results:
    """The results in an output folder, or beside the certificate at ``path``.

    Samples are left out where they are not there and ``samples`` is false. Raises ``UsageError``
    for a path that leads to no certificate, ``CannotCertify`` for files that are damaged or that
    contradict each other.
    """
    file = path / "certificate.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(_absent(path))
    end = _part(file.name)
    rows = file.with_name(f"samples{end}.jsonl")
    text = _read(file)
    certificate = _checked(text, json_file.schema("certificate"), str(file))
    word = "estimated" if certificate["assurance"]["kind"] == "estimate" else "certified"
    if f"{word}_count" not in certificate["summary"]:
        raise CannotCertify(f"{file}: is damaged: {word}_count of summary is missing")
    digests = {file.name: hashlib.sha256(text).hexdigest()}
    if not rows.is_file():
        if samples:
            raise UsageError(
                f"{rows}: is not there, and is needed beside {file.name}; bring it back"
            )
        return Results(certificate, digests=digests)
    lines = _read(rows)
    schema = json_file.schema("sample")
    records = tuple(
        _checked(line, schema, f"{rows}: line {number}")
        for number, line in enumerate(lines.splitlines(), start=1)
    )
    if _counts(records, word, certificate) != _claimed(certificate, word):
        raise CannotCertify(
            f"{rows}: has other counts than {file.name}, so they are not of one run; "
            "certify again with --overwrite"
        )
    return Results(
        certificate,
        records,
        digests | {rows.name: hashlib.sha256(lines).hexdigest()},
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
        records = tuple(json.loads(line) for line in _read(metrics).splitlines())
        results = json.loads(_read(recipe)).get("results", {})
        if not all(isinstance(record["epoch"], int) for record in records):
            raise ValueError("an epoch is no whole number")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CannotCertify(f"{metrics}: is damaged: {error}; remove it, or train again") from error
    return Training(records, results)


Counts = tuple[int, int, dict[str, int], dict[str, int]]


def _claimed(certificate: Record, word: str) -> Counts:
    summary = certificate["summary"]
    upper = summary.get("upper_count", {})
    return summary["n"], summary["clean_correct"], summary[f"{word}_count"], upper


def _counts(records: Sequence[Record], word: str, certificate: Record) -> Counts:
    """What the summary should say of these samples."""
    summary, right = certificate["summary"], [record for record in records if correct(record)]
    held = {eps: sum(eps in r.get(word, ()) for r in records) for eps in summary[f"{word}_count"]}
    upper = {
        eps: sum(_reaches_beyond(record, Epsilon.parse(eps)) for record in right)
        for eps in summary.get("upper_count", {})
    }
    return len(records), len(right), held, upper


def _reaches_beyond(record: Record, eps: Epsilon) -> bool:
    broken = record.get("attack_radius")
    return broken is None or broken > eps.rounded_down


def _part(name: str) -> str:
    """``.1-of-2`` for the certificate of a shard; empty for any other name."""
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _checked(text: bytes, schema: Record, where: str) -> Record:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise CannotCertify(f"{where}: is no JSON, so it is damaged: {error}") from error
    problem = _other_schema(record) or _problem(record, schema, schema.get("$defs", {}))
    if problem:
        raise CannotCertify(f"{where}: is not of this version of lipcert, or damaged: {problem}")
    found: Record = record
    return found


def _other_schema(record: Any) -> str | None:
    found = record.get("schema", SCHEMA) if isinstance(record, dict) else SCHEMA
    return None if found == SCHEMA else f"has the schema {found!r}, not {SCHEMA}"


def _problem(value: Any, schema: Record, defs: Record, at: str = "the record") -> str | None:
    """The first field that is missing or of the wrong type, by the schema.

    Its other rules hold for what lipcert writes, and are checked by tests; these keep a report from
    stumbling over what it did not write.
    """
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    types = schema.get("type", ())
    names = [types] if isinstance(types, str) else types
    if names and not any(_is(value, name) for name in names):
        return f"{at} is no {' or '.join(names)}"
    below: list[tuple[Any, Any, str]] = []
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                return f"{name} of {at} is missing"
        known = schema.get("properties", {})
        others = schema.get("additionalProperties")
        below = [(value[name], known.get(name, others), f"{name} of {at}") for name in value]
    elif isinstance(value, list):
        below = [(entry, schema.get("items"), f"an entry of {at}") for entry in value]
    found = (_problem(v, s, defs, where) for v, s, where in below if isinstance(s, dict))
    return next(filter(None, found), None)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])
