import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.gate.interval import clopper_pearson, lower_end_reaches

CONFIDENCE = Fraction(95, 100)


def tail(count: int, n: int, share: Fraction) -> Fraction:
    """P(X ≥ count), term by term."""
    return sum(
        (math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(count, n + 1)),
        Fraction(0),
    )


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_the_predicate_is_the_binomial_tail(data):
    n = data.draw(st.integers(1, 60))
    count = data.draw(st.integers(0, n))
    share = Fraction(data.draw(st.integers(1, 999)), 1000)
    confidence = data.draw(st.sampled_from([Fraction(1, 2), CONFIDENCE, Fraction(999, 1000)]))
    expected = count > 0 and tail(count, n, share) <= (1 - confidence) / 2
    assert lower_end_reaches(count, n, share, confidence) == expected


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        # No success in n: the upper end is 1 − (α/2)^(1/n).
        (0, 10, 0.0, 1 - 0.025 ** (1 / 10)),
        (10, 10, 0.025 ** (1 / 10), 1.0),
        (0, 1, 0.0, 0.975),
        # One in two: α/2 = 1 − (1 − p)², and by symmetry.
        (1, 2, 1 - 0.975**0.5, 0.975**0.5),
    ],
)
def test_ends_that_have_a_closed_form(count, n, low, high):
    found = clopper_pearson(count, n, CONFIDENCE, digits=6)
    assert low - 1e-6 <= found[0] <= low + 1e-12
    assert high - 1e-12 <= found[1] <= high + 1e-6


@given(st.integers(1, 400), st.data())
@settings(deadline=None, max_examples=40)
def test_ends_lie_around_the_share_and_are_rounded_outwards(n, data):
    count = data.draw(st.integers(0, n))
    low, high = clopper_pearson(count, n, CONFIDENCE, digits=3)
    assert 0 <= low <= Fraction(count, n) <= high <= 1
    assert not lower_end_reaches(count, n, low + Fraction(1, 1000), CONFIDENCE)
    assert (low, high) == tuple(
        1 - end for end in reversed(clopper_pearson(n - count, n, CONFIDENCE, digits=3))
    )


def test_a_large_sample_is_no_burden_and_close_to_the_normal_limit():
    low, high = clopper_pearson(5_980, 10_000, CONFIDENCE)
    half = 1.96 * math.sqrt(0.598 * 0.402 / 10_000)
    assert float(low) == pytest.approx(0.598 - half, abs=3e-4)
    assert float(high) == pytest.approx(0.598 + half, abs=3e-4)
