"""The constants of floating-point error analysis (Higham, Accuracy and Stability, §3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


def coarsest(*formats: Arithmetic | None) -> Arithmetic | None:
    """What rounds at least as much as each of these, and overflows where one of them does; None
    stands for real numbers."""
    given = list(dict.fromkeys(found for found in formats if found is not None))
    if len(given) <= 1:
        return given[0] if given else None
    return Arithmetic(
        max(found.unit for found in given),
        max(found.tiny for found in given),
        min(found.largest for found in given),
        coarsest(*(f.accumulator for f in given)) if any(f.sums for f in given) else None,
    )


SINGLE = Arithmetic(2.0**-24, 2.0**-126, (2 - 2.0**-23) * 2.0**127)
# Sums of products of 16 bits are accumulated in float32. Half precision without its subnormals
# would lose what networks live on: they are taken as kept.
HALF = Arithmetic(2.0**-11, 2.0**-24, (2 - 2.0**-10) * 2.0**15, SINGLE)
BFLOAT16 = Arithmetic(2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127, SINGLE)
DOUBLE = Arithmetic(2.0**-53, 2.0**-1022, (2 - 2.0**-52) * 2.0**1023)

# What can be deployed, by the name of its option.
FORMATS = {"float16": HALF, "bfloat16": BFLOAT16, "float32": SINGLE, "float64": DOUBLE}

# Of what an analysis finds in double precision, whatever its own type.
FLOAT64 = DOUBLE.unit
FLOAT64_TINY = DOUBLE.tiny


def gamma(terms: float, unit: float = FLOAT64) -> float:
    """``γ_n = n u / (1 − n u)``: the relative error of ``n`` roundings, in any order; infinite
    where ``n u ≥ 1``."""
    product = terms * unit
    return product / (1 - product) if product < 1 else float("inf")


def exceeds(spent: float, allowed: float) -> bool:
    """Whether probabilities come to more than was allowed, and not by the rounding of their sum.

    Each is a product of a few numbers, at most ``2^33`` are added, in any order, and all of them
    are 0 or more: ``γ`` of that many roundings, 9.5e-7 of it, is what the computed sum may be above
    the exact one. NaN exceeds everything.
    """
    return not spent <= allowed * (1 + gamma(2.0**33))


def arithmetic_of(dtype: torch.dtype) -> Arithmetic:
    """That of the tensors of an analysis, ``torch.float32`` or ``torch.float64``."""
    return {"torch.float32": SINGLE, "torch.float64": DOUBLE}[str(dtype)]


def rounded_up(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The smallest numbers of this type that are not below ``values``; NaN stays."""
    found = values.to(dtype)
    if found.dtype == values.dtype:
        return found
    above = found.nextafter(found.new_full((), float("inf")))
    return above.where(found < values, found)


def column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Upper bounds of each sample, ``(B,)``, against ``(B, …)``, in its type and rounded up."""
    return rounded_up(values, like.dtype).reshape(-1, *(1,) * (like.dim() - 1))
