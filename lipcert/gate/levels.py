"""Levels as they are written, exactly: shares, percentage points, radii and seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from lipcert.errors import UsageError
from lipcert.options import Epsilon

_DECIMAL = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?"


def share(option: str, text: str) -> Fraction:
    """``0.60`` or ``60%``: a share of the samples, in [0, 1]. Raises ``UsageError``."""
    match = re.fullmatch(rf"\s*({_DECIMAL})\s*(%?)\s*", text)
    value = Fraction(match[1]) / (100 if match[2] else 1) if match else None
    if value is None or value > 1:
        raise UsageError(f"{option} {text!r}: give a share from 0 to 1, such as 0.60 or 60%")
    return value


def points(option: str, text: str) -> Fraction:
    """``0.5pp``: percentage points, as a share. Raises ``UsageError``."""
    match = re.fullmatch(rf"\s*({_DECIMAL})\s*pp\s*", text)
    if not match or Fraction(match[1]) > 100:
        raise UsageError(f"{option} {text!r}: give percentage points, such as 0.5pp")
    return Fraction(match[1]) / 100


def number(option: str, text: str) -> Fraction:
    """``0.14``, ``36/255``: a number of at least 0. Raises ``UsageError``."""
    above, _, below = text.replace(" ", "").partition("/")
    if not all(re.fullmatch(_DECIMAL, part) for part in (above, below or "1")):
        raise UsageError(f"{option} {text!r}: give a number of at least 0, such as 0.14 or 36/255")
    if Fraction(below or 1) == 0:
        raise UsageError(f"{option} {text!r}: divides by zero; give a number such as 36/255")
    return Fraction(above) / Fraction(below or 1)


def confidence(option: str, text: str) -> Fraction:
    """``0.95`` or ``95%``: below 1 and at least one half. Raises ``UsageError``."""
    value = share(option, text)
    if not Fraction(1, 2) <= value < 1:
        raise UsageError(f"{option} {text!r}: give a confidence from 0.5 to below 1, such as 0.95")
    return value


def shares_at(option: str, texts: Sequence[str]) -> dict[Epsilon | None, Fraction]:
    """``0.60`` and ``36/255=0.60``: shares by eps, where None is the largest eps of the run.

    One text may hold several, with commas between. Raises ``UsageError``, also for an eps that is
    given twice.
    """
    levels: dict[Epsilon | None, Fraction] = {}
    for text in ",".join(texts).split(",") if texts else ():
        before, equals, after = text.rpartition("=")
        eps = Epsilon.parse(before) if equals else None
        if any(_same(eps, other) for other in levels):
            raise UsageError(
                f"{option} {text.strip()!r}: this eps is given twice; keep one of them"
            )
        levels[eps] = share(option, after)
    return levels


def _same(one: Epsilon | None, other: Epsilon | None) -> bool:
    return one == other or (one is not None and other is not None and one.value == other.value)


def decimals(value: Fraction) -> int | None:
    """How many decimals write ``value`` exactly; None where no number of them does."""
    twos = fives = 0
    rest = value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None


def written(value: Fraction) -> str:
    """``value`` exactly, as a decimal where there is one, else as a fraction."""
    places = decimals(value)
    return str(value) if places is None else rounded(value, places, up=False)


def rounded(value: Fraction, places: int, *, up: bool) -> str:
    """``value`` with so many decimals, rounded up or down, in exact arithmetic."""
    scaled = value * 10**places
    whole = -(-scaled.numerator // scaled.denominator) if up else scaled.__floor__()
    sign, digits = "-" if whole < 0 else "", f"{abs(whole):0{places + 1}d}"
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
