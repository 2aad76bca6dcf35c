"""A JSON Schema as one quick function, for the many records that nothing is wrong with.

The validator of ``schemas`` takes some tenths of a millisecond a sample, which is hours for ten
million. What ``accepts`` answers True to, that validator accepts; where it answers False, the
validator decides, and says what is wrong. A keyword that is not known here makes it answer False.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,),
    "number": (int, float), "null": (type(None),), "boolean": (bool,),
}  # fmt: skip
_NUMBERS = frozenset((int, float))
_SAYS_NOTHING = {"description", "title", "$schema", "$id", "then", "else"}


def accepts(schema: Mapping[str, Any] | bool) -> Check:
    """Whether a value is certainly as this schema demands."""
    if isinstance(schema, bool):
        return lambda _: bool(schema)
    checks: list[Check] = []
    kinds = schema.get("type")
    if kinds is not None:
        names = [kinds] if isinstance(kinds, str) else kinds
        allowed = frozenset(kind for name in names for kind in _TYPES[name])
        # By the very type: a bool is no integer.
        checks.append(lambda value: type(value) in allowed)
    for word, wanted in schema.items():
        if word in _KEYWORDS:
            checks.append(_KEYWORDS[word](wanted, schema))
        elif word not in _SAYS_NOTHING | {"type"}:
            return lambda _: False
    return _all(checks)


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
    other = accepts(schema.get("additionalProperties", True))

    def check(value: Any) -> bool:
        if isinstance(value, dict):
            for name, one in value.items():
                if not known.get(name, other)(one):
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


def _bound(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Mapping[str, Any]], Check]:
    def keyword(wanted: Any, _: Mapping[str, Any]) -> Check:
        return lambda value: type(value) not in _NUMBERS or holds(value, wanted)

    return keyword


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
    "minimum": _bound(operator.ge), "maximum": _bound(operator.le),
    "exclusiveMinimum": _bound(operator.gt), "exclusiveMaximum": _bound(operator.lt),
}  # fmt: skip
