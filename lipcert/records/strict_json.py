"""JSON objects as lipcert writes them, and nothing that is merely read as JSON elsewhere.

Python's reader takes NaN, Infinity, numbers beyond a double, repeated keys, and digits and brackets
without end. In a certificate each of these is damage or a forgery.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from lipcert.errors import CannotCertify

Record = dict[str, Any]

# A certificate has at most 5 levels.
_DEEPEST = 16
_NAME = "name the --output of lipcert certify, or its certificate.json"
# Seeds and coins may have 128 bits; all other whole numbers have bounds of their own.
_INTEGERS = 2**128
# What may be more than a double or 128 bits hold, and text in which a quotation mark ends nothing;
# sought with every digit as a 0 and every E as an e.
_ALIKE = bytes.maketrans(b"0123456789E", b"0000000000e")
_UNUSUAL = (b"\\", b"e000", b"e+000", b"0" * 38)


def parse(content: bytes, where: str) -> Record:
    """The JSON object that ``content`` is, in UTF-8.

    Raises ``CannotCertify``, whose message begins with ``where``, for anything else: other
    encodings, repeated keys, NaN, numbers beyond a double, whole numbers of more than 128 bits,
    more than 16 levels, half of a surrogate pair.
    """
    try:
        found = _read(content)
    except RecursionError:
        raise _damaged(where, "it is nested too deeply") from None
    except UnicodeError as error:
        raise CannotCertify(
            f"{where}: is no record of lipcert, but other bytes; {_NAME}"
        ) from error
    except ValueError as error:
        if where.endswith(".jsonl"):
            raise CannotCertify(f"{where}: is a file of samples; {_NAME}") from error
        raise _damaged(where, f"it is no JSON that lipcert writes: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(where, "it is no JSON object")
    return found


def _read(content: bytes) -> Any:
    """Quickly where nothing can be wrong that Python's own reader overlooks, as in the lines of a
    run: then every text has two quotation marks, and a repeated key leaves some over."""
    text = content.decode("utf-8")
    if content.count(b"{") + content.count(b"[") <= _DEEPEST and _is_usual(content):
        found = _QUICK.decode(text)
        if content.count(b'"') == 2 * _texts(found):
            return found
    found = _STRICT.decode(text)
    _check(found)
    return found


def _is_usual(content: bytes) -> bool:
    """Five searches in C, where one regular expression takes six times as long."""
    alike = content.translate(_ALIKE)
    for unusual in _UNUSUAL:  # noqa: SIM110, twice as fast as any()
        if unusual in alike:
            return False
    return True


def _texts(value: Any) -> int:
    """How many keys and texts there are in it."""
    count, within = 0, [value]
    for one in within:
        kind = type(one)
        if kind is float or kind is int:
            continue
        if kind is str:
            count += 1
        elif kind is dict:
            count += len(one)
            within += one.values()
        elif kind is list:
            within += one
    return count


def _damaged(where: str, why: str) -> CannotCertify:
    return CannotCertify(f"{where}: is damaged: {why[:200]}")


def _object(pairs: list[tuple[str, Any]]) -> Record:
    made = dict(pairs)
    if len(made) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name[:60]!r} is repeated")
    return made


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is beyond a double")
    return value


def _integer(text: str) -> int:
    if len(text) > 40 or abs(int(text)) >= _INTEGERS:
        raise ValueError(f"the whole number {text[:40]}… has more than 128 bits")
    return int(text)


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


_QUICK = json.JSONDecoder(parse_constant=_constant)
_STRICT = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_integer, parse_constant=_constant
)


def _check(value: Any) -> None:
    """Raises ``ValueError`` for more than 16 levels, ``UnicodeError`` for half a surrogate pair."""
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                one.encode()
        if not below:
            return
        level = below
    raise ValueError(f"it has more than {_DEEPEST} levels")
