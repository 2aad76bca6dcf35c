"""The constants of floating-point error analysis (Higham, Accuracy and Stability, §3.1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arithmetic:
    """A floating-point format, rounding to nearest.

    ``unit``: its unit roundoff. ``tiny``: the most that underflow costs one operation: the smallest
    normal number, as if subnormals were flushed to zero. ``largest``: its largest finite number.
    ``sums``: the format that sums of products are accumulated in, None for this one.
    """

    unit: float
    tiny: float
    largest: float
    sums: Arithmetic | None = None

    @property
    def accumulator(self) -> Arithmetic:
        return self.sums or self


SINGLE = Arithmetic(2.0**-24, 2.0**-126, (2 - 2.0**-23) * 2.0**127)
# Sums of products of 16 bits are accumulated in float32. Half precision without its subnormals
# would lose what networks live on: they are taken as kept.
HALF = Arithmetic(2.0**-11, 2.0**-24, (2 - 2.0**-10) * 2.0**15, SINGLE)
BFLOAT16 = Arithmetic(2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127, SINGLE)
DOUBLE = Arithmetic(2.0**-53, 2.0**-1022, (2 - 2.0**-52) * 2.0**1023)

# What can be deployed, by the name of its option.
FORMATS = {"float16": HALF, "bfloat16": BFLOAT16, "float32": SINGLE, "float64": DOUBLE}

# The analysis itself runs in double precision.
FLOAT64 = DOUBLE.unit
FLOAT64_TINY = DOUBLE.tiny


def gamma(terms: float, unit: float = FLOAT64) -> float:
    """``γ_n = n u / (1 − n u)``: the relative error of ``n`` roundings, in any order; infinite
    where ``n u ≥ 1``."""
    product = terms * unit
    return product / (1 - product) if product < 1 else float("inf")
