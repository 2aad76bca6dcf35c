"""The Clopper–Pearson interval of a share, in whole numbers: no end is ever on the wrong side.

For X ~ Binomial(n, p) and k successes seen, the lower end at confidence 1 − α is the p with
P(X ≥ k | p) = α/2, and the upper end is 1 minus the lower end of the n − k failures (Clopper and
Pearson, Biometrika 26, 1934). It covers the true share with probability at least 1 − α where the
samples are drawn at random.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb

_BITS = 256


def lower_end_reaches(count: int, n: int, share: Fraction, confidence: Fraction) -> bool:
    """Whether the lower end of the interval of ``count`` out of ``n`` is at least ``share``.

    That is P(X ≥ count | share) ≤ (1 − confidence) / 2. The tail is summed in whole numbers rounded
    up, with a relative excess below n · 2^-250, so that a yes is certain.
    """
    if share <= 0:
        return True
    if count == 0 or share >= 1:
        return False
    a, b = share.numerator, share.denominator
    # Σ_{i ≥ count} P(X = i) / P(X = count), in units of 2^-_BITS.
    term = total = 1 << _BITS
    for i in range(count, n):
        term = -(-term * (n - i) * a // ((i + 1) * (b - a)))
        total += term
    weight: int = comb(n, count) * a**count * (b - a) ** (n - count) * total
    tail = (1 - confidence) / 2
    return bool(weight * tail.denominator <= (tail.numerator << _BITS) * b**n)


def clopper_pearson(
    count: int, n: int, confidence: Fraction, *, digits: int = 4
) -> tuple[Fraction, Fraction]:
    """The interval of ``count`` out of ``n``, rounded outwards to ``digits`` decimals."""
    return (
        _lower_end(count, n, confidence, 10**digits),
        1 - _lower_end(n - count, n, confidence, 10**digits),
    )


def _lower_end(count: int, n: int, confidence: Fraction, grid: int) -> Fraction:
    """The largest multiple of 1 / ``grid`` that the lower end reaches."""
    reached, beyond = 0, count * grid // n + 1
    while beyond - reached > 1:
        middle = (reached + beyond) // 2
        if lower_end_reaches(count, n, Fraction(middle, grid), confidence):
            reached = middle
        else:
            beyond = middle
    return Fraction(reached, grid)
