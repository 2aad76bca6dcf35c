"""From what is written after an option to a value; every refusal names the option."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from lipcert.errors import UsageError

_MOST_BYTES = 1 << 24  # of a file of classes


def texts(values: Sequence[str]) -> list[str]:
    """The parts of all the values, split at commas."""
    return [part.strip() for value in values for part in value.split(",")]


def numbers(option: str, value: str | None) -> tuple[float, ...] | None:
    """``0.49,0.48,0.45``: finite numbers; None stays None. Raises ``UsageError``."""
    if value is None:
        return None
    try:
        parsed = tuple(float(part) for part in value.split(","))
    except ValueError:
        parsed = ()
    if not parsed or not all(math.isfinite(number) for number in parsed):
        raise UsageError(f"{option} {value!r}: give numbers with commas between, such as 0.5,0.25")
    return parsed


def pair(option: str, value: str | None) -> tuple[float, float] | None:
    """``0,255``: two numbers, the smaller first; None stays None. Raises ``UsageError``."""
    parsed = numbers(option, value)
    if parsed is None:
        return None
    if len(parsed) != 2 or parsed[0] >= parsed[1]:
        raise UsageError(f"{option} {value!r}: give two numbers, the smaller first, such as 0,255")
    return parsed[0], parsed[1]


def classes(option: str, value: str | None) -> tuple[int, ...] | None:
    """``0,3,10-19``, or the path of a file that lists classes likewise, in any number of lines, or
    as a JSON list; None stays None. Raises ``UsageError``."""
    if value is None:
        return None
    # numpy comes with it; without it --help answers at once.
    from lipcert.bounded import read_at_most

    wrong = UsageError(
        f"{option} {value!r}: give classes by their numbers, such as 0,3,10-19, or a file of them"
    )
    path = Path(value)
    try:
        with path.open("rb") as file:
            text = read_at_most(file, f"{option} {value}", _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise wrong from error
    except OSError:
        text = value
    found: list[int] = []
    for part in re.split(r"[,\s]+", text.strip().removeprefix("[").removesuffix("]").strip()):
        ends = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", part)
        if ends is None:
            raise wrong
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(found)


def shape(option: str, value: str | None) -> tuple[int, ...] | None:
    """``3,32,32``: whole numbers from 1; None stays None. Raises ``UsageError``."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {value!r}: give whole numbers, such as 3,32,32")
    return tuple(int(part) for part in parts)
