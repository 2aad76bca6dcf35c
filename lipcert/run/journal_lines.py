"""The lines of a journal: each ends with its digest, and a point of the input goes as text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert.bounded import array_of
from lipcert.errors import CannotCertify, UsageError
from lipcert.records.strict_json import parse

DIGEST = "sha256"


def whole_lines(path: Path, most: int, *, repair: bool) -> Iterator[bytes]:
    """The whole lines of a journal; what a killed process left unfinished is cut off, where that is
    to be repaired. Raises ``CannotCertify`` where it has more than ``most`` bytes, ``UsageError``
    where it cannot be read, or is a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: cannot be read: it is no regular file")
    begun = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(most + 1):
                if begun + len(line) > most:
                    raise CannotCertify(f"{path}: is damaged: it has more than {most >> 20} MiB")
                if not line.endswith(b"\n"):
                    break
                begun += len(line)
                yield line[:-1]
            else:
                return
        if repair:
            with path.open("r+b") as file:
                file.truncate(begun)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def text_of(array: NDArray[Any]) -> str:
    """An array as a line of a journal holds it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def point_of(text: Any, where: str = "a line of the journal") -> NDArray[Any]:
    """What ``text_of`` wrote; ``CannotCertify`` where it is damaged."""
    try:
        content = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise CannotCertify(f"{where}: is damaged: its counterexample is none: {error}") from error
    return array_of(content, f"{where}: its counterexample")


def sealed(record: dict[str, Any], seed: str) -> dict[str, Any]:
    """With the digest of ``seed`` and of itself."""
    text = seed + json.dumps(record, allow_nan=False)
    return record | {DIGEST: hashlib.sha256(text.encode()).hexdigest()}


def opened(line: bytes, seed: str, where: str) -> dict[str, Any]:
    """The record of a line, whose digest is checked. Raises ``CannotCertify``."""
    record = parse(line, where)
    digest = record.pop(DIGEST, None)
    if digest != sealed(record, seed)[DIGEST]:
        raise CannotCertify(f"{where}: is damaged: it has not the sha256 that it was written with")
    return record
