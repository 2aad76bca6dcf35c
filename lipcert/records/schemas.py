"""The JSON Schemas in the package, the one home of fields, types and ranges, as a check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from lipcert.errors import CannotCertify
from lipcert.records.accepting import Check, accepts
from lipcert.records.strict_json import Record

Name = Literal["certificate", "sample", "audit"]


def schema(name: Name) -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``certificate.json``, ``audit.json``, or of one line of
    ``samples.jsonl``."""
    file = resources.files("lipcert.report").joinpath(f"{name}.schema.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def check(record: Record, name: Name, where: str) -> None:
    """Raises ``CannotCertify`` with the JSON path of the field that breaks the schema most."""
    expected = schema_id(name)
    if "schema" in record and record["schema"] != expected:
        found = repr(record["schema"])[:80]
        raise CannotCertify(
            f"{where}: at $.schema: is {found}, not {expected}: it was written by another version "
            "of lipcert; certify again"
        )
    # Nothing is searched for where nothing is wrong, which is faster.
    if _acceptor(name)(record):
        return
    validator = _validator(name)
    if validator.is_valid(record):
        return
    error = best_match(validator.iter_errors(record))
    said = error.message.replace("is a required property", "is missing")
    if len(said) > 160:  # what begins with a whole record ends with what is wrong with it
        said = f"{said[:40]}… {said[-110:]}"
    raise CannotCertify(f"{where}: is damaged: at {error.json_path[:80]}: {said}")


@lru_cache
def schema_id(name: Name) -> str:
    """What the field ``schema`` of such a file says."""
    found: str = schema(name)["$id"]
    return found


@lru_cache
def _validator(name: Name) -> Validator:
    return _STRICT(schema(name))


@lru_cache
def _acceptor(name: Name) -> Check:
    return accepts(schema(name))


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pattern(_: Validator, pattern: str, value: object, __: Record) -> Iterator[ValidationError]:
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


# JSON Schema calls 1.0 an integer, and Python's $ overlooks a line break at the end.
_STRICT = extend(
    Draft202012Validator,
    validators={"pattern": _pattern},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)
