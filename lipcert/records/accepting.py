"""A JSON Schema as one quick function, for the many records that nothing is wrong with.

The validator of ``schemas`` takes some tenths of a millisecond a sample, which is hours for ten
million. What ``accepts`` answers True to, that validator accepts; where it answers False, the
validator decides, and says what is wrong. A keyword that is not known here makes it answer False.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,),
    "number": (int, float), "null": (type(None),), "boolean": (bool,),
}  # fmt: skip
_NUMBERS = frozenset((int, float))
_SIZES = {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_SAYS_NOTHING = {"description", "title", "$schema", "$id", "then", "else"}


def accepts(schema: Mapping[str, Any] | bool) -> Check:
    """Whether a value is certainly as this schema demands."""
    if isinstance(schema, bool):
        return lambda _: bool(schema)
    checks = [_kind_and_size(schema)] if schema.keys() & _SIZES else []
    for word, wanted in schema.items():
        if word in _KEYWORDS:
            checks.append(_KEYWORDS[word](wanted, schema))
        elif word not in _SAYS_NOTHING | _SIZES:
            return lambda _: False
    return _all(checks)


def _kind_and_size(schema: Mapping[str, Any]) -> Check:
    """Its type, and the range of numbers: what most fields are asked for, in one."""
    kinds = schema.get("type", [*_TYPES])
    names = [kinds] if isinstance(kinds, str) else kinds
    # By the very type: a bool is no integer.
    allowed = frozenset(kind for name in names for kind in _TYPES[name])
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if above is not None or below is not None:
        more, less = (-math.inf if above is None else above), (math.inf if below is None else below)
        return lambda value: (
            type(value) in allowed
            and (type(value) not in _NUMBERS or (low <= value <= high and more < value < less))
        )
    if low == -math.inf and high == math.inf:
        return lambda value: type(value) in allowed
    if allowed <= _NUMBERS:
        return lambda value: type(value) in allowed and low <= value <= high
    return lambda value: (
        type(value) in allowed and (type(value) not in _NUMBERS or low <= value <= high)
    )


def _all(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]
    if len(checks) == 2:
        first, second = checks
        return lambda value: first(value) and second(value)

    def check(value: Any) -> bool:
        for one in checks:  # noqa: SIM110, twice as fast as all()
            if not one(value):
                return False
        return True

    return check


def _properties(wanted: Mapping[str, Any], schema: Mapping[str, Any]) -> Check:
    known = {name: accepts(one) for name, one in wanted.items()}
    others = schema.get("additionalProperties", True)
    if others is True:
        return _some_properties(known)
    other = accepts(others)

    def check(value: Any) -> bool:
        if isinstance(value, dict):
            for name, one in value.items():
                if not known.get(name, other)(one):
                    return False
        return True

    return check


def _some_properties(known: Mapping[str, Check]) -> Check:
    """Of a value that may have others too."""

    def check(value: Any) -> bool:
        if isinstance(value, dict):
            for name, one in known.items():
                if name in value and not one(value[name]):
                    return False
        return True

    return check


def _additional(wanted: Any, schema: Mapping[str, Any]) -> Check:
    # Where there are properties, they see to it.
    return accepts(True) if "properties" in schema else _properties({}, schema)


def _required(wanted: Any, _: Mapping[str, Any]) -> Check:
    names = frozenset(wanted)
    return lambda value: not isinstance(value, dict) or names <= value.keys()


def _items(wanted: Any, _: Mapping[str, Any]) -> Check:
    each = accepts(wanted)
    return lambda value: not isinstance(value, list) or all(map(each, value))


def _unique(wanted: Any, _: Mapping[str, Any]) -> Check:
    def check(value: Any) -> bool:
        # Of texts alone: other things are equal in ways of their own.
        texts = isinstance(value, list) and all(type(one) is str for one in value)
        return texts and len(set(value)) == len(value)

    return check if wanted else accepts(True)


def _conditional(wanted: Any, schema: Mapping[str, Any]) -> Check:
    asked = accepts(wanted)
    then, other = accepts(schema.get("then", True)), accepts(schema.get("else", True))
    # Only of one that demands fields alone is a no as certain as a yes.
    if wanted.keys() != {"required"}:
        return accepts(False)
    return lambda value: then(value) if asked(value) else other(value)


def _negated(wanted: Any, _: Mapping[str, Any]) -> Check:
    if wanted.keys() == {"required"}:
        asked = accepts(wanted)
        return lambda value: not asked(value)
    if wanted.keys() == {"const"} and isinstance(wanted["const"], str):
        return lambda value: bool(value != wanted["const"])
    return accepts(False)


def _enum(wanted: Any, _: Mapping[str, Any]) -> Check:
    texts = frozenset(one for one in wanted if isinstance(one, str))
    return lambda value: type(value) is str and value in texts


def _pattern(wanted: str, _: Mapping[str, Any]) -> Check:
    whole = re.compile(re.sub(r"\$$", r"\\Z", wanted))
    return lambda value: not isinstance(value, str) or whole.search(value) is not None


_KEYWORDS: dict[str, Callable[[Any, Mapping[str, Any]], Check]] = {
    "properties": _properties, "additionalProperties": _additional, "required": _required,
    "items": _items, "uniqueItems": _unique, "if": _conditional, "not": _negated,
    "enum": _enum, "const": lambda wanted, schema: _enum([wanted], schema), "pattern": _pattern,
}  # fmt: skip
