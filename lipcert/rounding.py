"""The constants of floating-point error analysis (Higham, Accuracy and Stability, §3.1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format, rounding to nearest.

    ``unit``: its unit roundoff. ``tiny``: its smallest normal number; nothing below counts where
    subnormals are flushed to zero. ``largest``: its largest finite number.
    """

    unit: float
    tiny: float
    largest: float


SINGLE = Arithmetic(2.0**-24, 2.0**-126, (2 - 2.0**-23) * 2.0**127)
DOUBLE = Arithmetic(2.0**-53, 2.0**-1022, (2 - 2.0**-52) * 2.0**1023)

# The analysis itself runs in double precision.
FLOAT64 = DOUBLE.unit
FLOAT64_TINY = DOUBLE.tiny


def gamma(terms: float, unit: float = FLOAT64) -> float:
    """``γ_n = n u / (1 − n u)``: the relative error of ``n`` roundings, in any order; infinite
    where ``n u ≥ 1``."""
    product = terms * unit
    return product / (1 - product) if product < 1 else float("inf")
