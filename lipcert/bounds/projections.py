"""Stable projections: how random tangents measure the norms of all rows of a linear map at once,
and what they assure.

See ``lipcert.bounds.sketch`` for what they are used for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

# The share of a measured scale that the pass's own rounding may make of it, and how many times its
# scale a Cauchy and a normal number may be before it is given up.
ALPHA, LARGEST, LARGEST_NORMAL = 2.0**-8, 2.0**22, 16.0
# By how many standard deviations what two passes find may differ.
_DEVIATIONS = 1.5
# What logarithms and roots are rounded by is far less than this beyond 1.
_RIGHT = 1.000000001


class RandomNumbers(Protocol):
    """Independent random numbers for the samples of a batch, ``(B, count, *shape)``, in float64
    where anything is proven by them; never the same twice."""

    def normals(self, count: int, shape: tuple[int, ...]) -> Tensor: ...

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor: ...

    def cauchy_of(self, count: int, own: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ProjectionAssurance:
    """What M projections assure, each but for a probability of ``risk``.

    A root mean square of M normals is below ``√t`` of the norm with probability at most
    ``(t e^{1−t})^{M/2}``: the norm is at most ``factor`` times it, ``factor = 1/√t``.
    The ``rank``-th smallest of M absolute Cauchy numbers is below ``divisor`` times the scale with
    probability at most ``exp(−M KL(rank/M ‖ (2/π) atan divisor))``.
    """

    count: int
    factor: float
    rank: int
    divisor: float

    def room(self, count: int) -> tuple[float, float]:
        """How much larger what M projections find may be than what ``count`` others have found, by
        a few standard deviations: of root mean squares, and of order statistics."""
        together = math.sqrt(1 / self.count + 1 / count)
        q = self.rank / self.count
        at = math.tan(math.pi / 2 * q)
        single = math.sqrt(q * (1 - q)) * math.pi / 2 * (1 + at * at) / at
        return 1 + _DEVIATIONS * together / math.sqrt(2), 1 + _DEVIATIONS * together * single

    @classmethod
    def of(cls, count: int, risk: float) -> ProjectionAssurance:
        """Raises ``ValueError`` where so few projections assure nothing."""
        nothing = ValueError(f"{count} projections assure nothing at a risk of {risk:g}")
        if count < 8 or risk <= 0:
            raise nothing
        log = math.log(risk)
        low, high = 0.0, 1.0
        for _ in range(80):
            t = (low + high) / 2
            small = count / 2 * (math.log(t) + 1 - t) <= log if t > 0 else True
            low, high = (t, high) if small else (low, t)
        best = max(
            ((_divisor(rank, count, log), rank) for rank in range(count // 4, count)),
            key=lambda found: found[0] / math.tan(math.pi / 2 * found[1] / count),
        )
        # The pass's own rounding takes a share of the divisor (``ALPHA``): most must be left.
        if low < 1e-6 or best[0] < 4 * ALPHA:
            raise nothing
        # Both bisections end on the safe side, but for what logarithms are rounded by.
        factor, divisor = (_RIGHT / math.sqrt(low), best[0] / _RIGHT)
        return cls(count, factor, best[1], divisor)


def _divisor(rank: int, count: int, log: float) -> float:
    q, low, high = rank / count, 0.0, rank / count
    for _ in range(80):
        p = (low + high) / 2
        distance = (
            math.inf if p <= 0 else q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        )
        low, high = (p, high) if -count * distance <= log else (low, p)
    return math.tan(low * math.pi / 2)
