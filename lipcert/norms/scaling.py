"""Powers of two, so that no square of a bound overflows or underflows.

All values are upper bounds, 0 or more; what a result loses where it is too small for a normal
number is made up for by the smallest one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64_TINY


def exponents(values: Tensor) -> Tensor:
    """Whole numbers e with ``2^(e−1) ≤ |value| < 2^e``, as int64; 0 for 0 and what is not
    finite."""
    usable = (values != 0) & torch.isfinite(values)
    found: Tensor = torch.frexp(torch.where(usable, values, 0.5)).exponent
    return found.long()


def exponent(value: float) -> int:
    """The same of one number."""
    return math.frexp(value)[1] if math.isfinite(value) else 0


def power(of: Tensor) -> Tensor:
    """``2^e`` in float64 for whole numbers ``|e| ≤ 1022``, exactly."""
    return torch.ldexp(torch.ones_like(of, dtype=torch.float64), of)


def lifted(values: Tensor, by: Tensor) -> Tensor:
    """``values · 2^by``, rounded up where that is below the normal numbers; in float64."""
    values, by = values.double(), by.clamp(-4000, 4000)
    found = values
    for part in range(4):
        found = found * power((by + part).div(4, rounding_mode="floor"))
    return torch.where((values > 0) & (found < FLOAT64_TINY), FLOAT64_TINY, found)


def product(*factors: Tensor) -> Tensor:
    """The product, rounded up, with no underflow or overflow on the way: in float64. Powers of two
    are exact, so that each further factor takes one rounding."""
    shape = np.broadcast_shapes(*(tuple(factor.shape) for factor in factors))
    side_by_side = torch.stack([factor.double().expand(shape) for factor in factors])
    by = exponents(side_by_side)
    total, *others = divided(side_by_side, by).unbind()
    for unit in others:
        total = total * unit
    return lifted(OUT64.up(total, len(factors) - 1), by.sum(0))


def divided(values: Tensor, by: Tensor) -> Tensor:
    """``values / 2^by`` of any sign, which is exact where it is a normal number: in float64."""
    half = by.div(2, rounding_mode="floor")
    return values.double() * power(-half) * power(half - by)
