"""Whether a journal may be resumed: what its header says, held against that of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipcert.errors import UsageError
from lipcert.options import in_words
from lipcert.run.folder import AFRESH

Header = Mapping[str, Any]

# What else a header holds, for people, and how they would say what it differs in.
_WORDS = {
    "lipcert": "version of lipcert",
    "model": "model file, or other weights",
    "data": "data set: the images or labels are not the same",
    "summation": "order of sums, measured on another machine, processor or version of onnxruntime",
    "samples": "choice of samples (--limit, --indices or --random)",
}
# The header's own words for its options, which no digest counts.
SETTINGS = "settings"
_OPTIONS = {"value_range": "--range"}


def compare(path: Path, found: dict[str, Any], expected: Header) -> None:
    """Raises ``UsageError`` where the header that was found is that of another run, naming each
    difference in the words of the command line."""
    wanted = json.loads(json.dumps(dict(expected)))
    differing = [
        name for name in wanted | found if name != SETTINGS and found.get(name) != wanted.get(name)
    ]
    if not differing:
        return
    said = [text for name in differing for text in _in_words(name, found, wanted)]
    raise UsageError(
        f"{path}: was written with another {', another '.join(dict.fromkeys(said))}; "
        f"resume with the same, {AFRESH}"
    )


def _in_words(name: str, found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Which options differ, or what else does."""
    of, now = found.get(name), wanted.get(name)
    if name == "options":
        of, now = found.get(SETTINGS), wanted.get(SETTINGS)
    if isinstance(of, dict) and isinstance(now, dict) and name in ("options", "preprocessing"):
        differing = [key for key in of | now if of.get(key) != now.get(key)]
        return [_option(key) + _changed(of.get(key), now.get(key)) for key in differing] or [name]
    if name == "coins":
        return ["--seed"]
    if name in ("eps", "lipcert"):
        return [_WORDS.get(name, f"--{name}") + _changed(of, now)]
    return [_WORDS.get(name, name + _changed(of, now))]


def _option(key: str) -> str:
    return _OPTIONS.get(key, f"--{key.replace('_', '-')}")


def _changed(of: Any, now: Any) -> str:
    return f" ({_short(of)}, now {_short(now)})"


def _short(value: Any) -> str:
    text = in_words(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
