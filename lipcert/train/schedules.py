"""How eps, κ and the learning rate go over a run; ``t`` is the time in epochs, from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LearningRate = Literal["exponential", "cosine"]

# A cosine starts at this share of its height and rises over this share of all epochs.
_FIRST, _RISE = 0.1, 0.02


@dataclass(frozen=True)
class Schedule:
    """``warmup`` epochs with eps 0 and κ 1, then both move over ``ramp`` epochs to their ends.

    The learning rate is constant up to ``E/2 + E/32`` epochs and falls exponentially to its end
    (``exponential``: at E = 800 the published E/2 + 25), or rises quickly and follows half a
    cosine (``cosine``).
    """

    epochs: float
    warmup: float
    ramp: float
    eps: float
    kappa: float
    rate: float
    last_rate: float
    kind: LearningRate

    def progress(self, t: float) -> float:
        """0 up to the end of the warm-up, 1 from the end of the ramp on."""
        if self.ramp <= 0:
            return float(t >= self.warmup)
        return min(1.0, max(0.0, (t - self.warmup) / self.ramp))

    def eps_at(self, t: float) -> float:
        return self.eps * self.progress(t)

    def kappa_at(self, t: float) -> float:
        share = self.progress(t)
        return (1 - share) + self.kappa * share

    def left_at(self, t: float) -> float:
        """How much of the ramp is left, from 1 to 0: the weight of what belongs to its start."""
        return 1 - self.progress(t)

    def rate_at(self, t: float) -> float:
        if self.kind == "cosine":
            share = (1 + math.cos(math.pi * min(1.0, t / self.epochs))) / 2
            share *= min(1.0, max(_FIRST, t / (_RISE * self.epochs)))
            return self.last_rate + (self.rate - self.last_rate) * share
        start = self.epochs * (1 / 2 + 1 / 32)
        share = max(0.0, t - start) / (self.epochs - start)
        return self.rate * math.exp(share * math.log(self.last_rate / self.rate))
