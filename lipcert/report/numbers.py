"""Numbers as people read them, rounded to the side that promises less."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context


def percent(count: int, n: int) -> str:
    """``59.80 %``: hundredths of a per cent, rounded down."""
    return f"{10_000 * count // n / 100:.2f} %" if n else "no samples"


def rounded_down(value: float) -> str:
    """Four digits, never above the value: for a radius that is certified."""
    return f"{float(Context(4, ROUND_FLOOR).create_decimal(repr(value))):.4g}"


def distance_up(value: float) -> str:
    """Four digits, never below the value: for a radius at which an attack succeeded."""
    return f"{float(Context(4, ROUND_CEILING).create_decimal(repr(value))):.4g}"


def rounded_up(value: float) -> str:
    """Two digits and a power of ten, never below the value: for a probability."""
    return f"{float(Context(2, ROUND_CEILING).create_decimal(repr(value))):.1e}"
