"""Numbers as people read them, rounded to the side that promises less."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context


def percent(count: int, n: int) -> str:
    """``59.80 %``: hundredths of a per cent, rounded down: for a share that is certified."""
    return f"{10_000 * count // n / 100:.2f} %" if n else "no samples"


def percent_up(count: int, n: int) -> str:
    """``59.81 %``: hundredths of a per cent, rounded up: for a share that is an upper bound."""
    return f"{-(-10_000 * count // n) / 100:.2f} %" if n else "no samples"


def share(count: int, n: int, upper: int | None = None) -> str:
    """``54.00 % (54 of 100)``; with an upper bound the interval of both, where they differ."""
    if not n:
        return "no samples"
    if upper is None:
        return f"{percent(count, n)} ({count} of {n})"
    if upper == count:
        return f"{percent(count, n)} ({count} certified, none open, of {n})"
    interval = f"[{percent(count, n)}, {percent_up(upper, n)}]"
    return f"{interval} ({count} certified, {upper} not falsified, of {n})"


def rounded_down(value: float) -> str:
    """Four digits, never above the value: for a radius that is certified."""
    return f"{float(Context(4, ROUND_FLOOR).create_decimal(repr(value))):.4g}"


def distance_up(value: float) -> str:
    """Four digits, never below the value: for a radius at which an attack succeeded."""
    return f"{float(Context(4, ROUND_CEILING).create_decimal(repr(value))):.4g}"


def rounded_up(value: float) -> str:
    """Two digits and a power of ten, never below the value: for a probability."""
    return f"{float(Context(2, ROUND_CEILING).create_decimal(repr(value))):.1e}"
