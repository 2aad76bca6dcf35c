"""Stable projections: how random tangents measure the norms of all rows of a linear map at once,
and what they assure.

See ``lipcert.bounds.sketch`` for what they are used for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipcert.chunks import at_once
from lipcert.network.joints import Derivative

# The share of a measured scale that the pass's own rounding may make of it, and how many times its
# scale a Cauchy and a normal number may be before it is given up.
ALPHA, LARGEST, LARGEST_NORMAL = 2.0**-8, 2.0**22, 16.0
# By how many standard deviations what two passes find may differ.
_DEVIATIONS = 2.5
# How many numbers of tangents pass a joint at once.
_CACHED = 2**19
# What logarithms and roots are rounded by is far less than this beyond 1.
_RIGHT = 1.000000001
# More than all squares that underflow.
_UNDERFLOW = 2.0**-1000


class RandomNumbers(Protocol):
    """Independent random numbers for the samples of a batch, ``(B, count, *shape)`` in float64;
    never the same twice."""

    def normals(self, count: int, shape: tuple[int, ...]) -> Tensor: ...

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor: ...


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


class Tangents:
    """What both passes do with tangents: ``M`` normal ones, then ``M`` Cauchy ones a sample."""

    def __init__(self, batch: int, count: int, coins: RandomNumbers, dtype: torch.dtype) -> None:
        self.batch, self.count, self.coins, self.dtype = batch, count, coins, dtype

    def start(self, shape: tuple[int, ...]) -> Tensor:
        normals = self.coins.normals(self.count, shape).to(self.dtype)
        return torch.cat([normals, torch.zeros_like(normals)], 1).flatten(0, 1)

    def split(self, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, M, n)`` each."""
        both = tangents.reshape(self.batch, 2 * self.count, -1)
        return both[:, : self.count], both[:, self.count :]

    def scales(self, tangents: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        """The root mean square of the normal ones, and of the Cauchy ones the order statistic of
        these ``ranks``, ``(B,)``: ``(B, *shape)`` in float64."""
        normals, cauchy = self.split(tangents)
        mean = normals.square().sum(1).double() / self.count + _UNDERFLOW
        # Neurons one beside the other: a selection in each row.
        sizes = cauchy.abs().mT.contiguous()
        nothing = sizes.new_full((sizes.shape[1],), math.inf)
        kept = [
            part.kthvalue(rank, dim=1).values if rank <= self.count else nothing
            for part, rank in zip(sizes, ranks.tolist(), strict=True)
        ]
        middle = torch.stack(kept).double()
        shape = tangents.shape[1:]
        return mean.sqrt().reshape(-1, *shape), middle.reshape(-1, *shape)

    def joined(self, parts: list[Tensor], line: Derivative, half: Tensor) -> Tensor:
        """Past a joint, with a fresh error at every value of its output."""
        kept = line.map(lambda t: t.to(self.dtype))
        both = [part.reshape(self.batch, 2 * self.count, *part.shape[1:]) for part in parts]
        out = both[0].new_empty(self.batch, 2 * self.count, *half.shape[1:])
        # Some at a time: what lies between need not leave the cache.
        sizes = [math.prod(part.shape[2:]) for part in (*both, out)]
        step = at_once(_CACHED, out.device, each=self.batch * max(sizes))
        for first in range(0, 2 * self.count, step):
            out[:, first : first + step] = kept.apply([p[:, first : first + step] for p in both])
        fresh = self.coins.cauchy(self.count, half.shape[1:])
        out[:, self.count :].add_(fresh.mul_(half[:, None]).to(self.dtype))
        return out.flatten(0, 1)

    def through(self, tangents: Tensor, slope: Tensor, half: Tensor) -> Tensor:
        """Past an activation, with a fresh error at every neuron."""
        shape = tangents.shape
        normals, cauchy = self.split(tangents)
        slope, half = slope.flatten(1)[:, None].to(self.dtype), half.flatten(1)[:, None]
        out = torch.empty_like(tangents.reshape(self.batch, 2 * self.count, -1))
        torch.mul(normals, slope, out=out[:, : self.count])
        fresh = self.coins.cauchy(self.count, shape[1:]).flatten(2)
        torch.mul(cauchy, slope, out=out[:, self.count :])
        out[:, self.count :].add_(fresh.mul_(half).to(self.dtype))
        return out.reshape(shape)
