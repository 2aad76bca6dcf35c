"""Sums of probabilities: what rounding makes of them passes, anything beyond does not."""

import math
from fractions import Fraction

import pytest
import torch

from lipcert.rounding import exceeds


@pytest.mark.parametrize("count", [1, 3, 1000, 300_000])
def test_parts_of_a_probability_do_not_exceed_it_by_their_rounding(count):
    allowed = 1e-9
    shares = torch.full((count,), allowed / count, dtype=torch.float64)
    # One after the other is the worst order of all.
    spent = float(shares.cumsum(0)[-1])
    assert abs(Fraction(spent) - Fraction(allowed)) <= Fraction(allowed) * (count + 1) / 2**53
    assert not exceeds(spent, allowed)


def test_what_is_spent_beyond_is_seen():
    assert exceeds(1e-9 * (1 + 1e-6), 1e-9)
    assert exceeds(5e-324, 0.0)
    assert exceeds(math.nan, 1.0)
    assert exceeds(math.inf, 1.0)
    assert not exceeds(0.0, 0.0)
