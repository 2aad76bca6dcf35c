"""Stable projections: how random tangents measure the norms of all rows of a linear map at once,
and what they assure.

See ``lipcert.bounds.sketch`` for what they are used for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipcert.chunks import at_once
from lipcert.network.joints import Derivative
from lipcert.rounding import SINGLE, arithmetic_of, gamma

# The share of a measured scale that the pass's own rounding may make of it, and how many times its
# scale a Cauchy and a normal number may be before it is given up.
ALPHA, LARGEST, LARGEST_NORMAL = 2.0**-8, 2.0**22, 16.0
# By how many standard deviations what two passes find may differ.
_DEVIATIONS = 1.5
# How many numbers of tangents go together, or are put in order at once, and what rounding to
# float32 makes up for.
_NEAR, _NARROWER = 2**20, 1 + 2.0**-22
# What logarithms and roots are rounded by is far less than this beyond 1.
_RIGHT = 1.000000001
# More than all squares that underflow.
_UNDERFLOW = 2.0**-1000


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


@dataclass(frozen=True, eq=False)
class Bundle:
    """Tangents at one node, some in each tensor, ``(B · t, *shape)``: those that measure ``rows``,
    and ``cauchy`` ones. Tensors that caches hold take less time, and their memory is used again."""

    rows: tuple[Tensor, ...]
    cauchy: tuple[Tensor, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> Bundle:
        return Bundle(tuple(map(change, self.rows)), tuple(map(change, self.cauchy)))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.rows + self.cauchy

    @classmethod
    def total(cls, bundles: Sequence[Bundle]) -> Bundle:
        def add(*parts: Tensor) -> Tensor:
            found = parts[0] + parts[1] if len(parts) > 1 else parts[0]
            for part in parts[2:]:
                found = found.add_(part)
            return found

        rows = map(add, *(bundle.rows for bundle in bundles))
        return cls(tuple(rows), tuple(map(add, *(bundle.cauchy for bundle in bundles))))


class Tangents:
    """What all passes do with tangents of a batch of samples: of each first ``rows`` of them, which
    measure the 2-norms of rows, then ``count`` Cauchy ones, which measure 1-norms.

    The first are normal, or, where ``exact``, one unit vector for each value of the input: then
    what arrives at a neuron is its row. ``largest``: how many values a node has at most. How many
    are drawn together depends on the ``device`` alone, so that a sample's coins are the same
    whatever others there are.
    """

    def __init__(
        self, batch: int, rows: int, count: int, coins: RandomNumbers, dtype: torch.dtype, *,
        largest: int, device: torch.device, exact: bool = False,
    ) -> None:  # fmt: skip
        self.batch, self.rows, self.count = batch, rows, count
        self.coins, self.dtype, self.exact = coins, dtype, exact
        self.device, self.step = device, at_once(_NEAR, device, each=largest)

    def start(self, shape: tuple[int, ...]) -> Bundle:
        rows, size, device = [], math.prod(shape), self.device
        for first in range(0, self.rows, self.step):
            some = min(self.step, self.rows - first)
            if self.exact:
                units = torch.zeros(self.batch, some, size, dtype=self.dtype, device=device)
                place = torch.arange(some, device=device)
                units[:, place, first + place] = 1.0
                rows.append(units.reshape(-1, *shape))
            else:
                rows.append(self.coins.normals(some, shape).to(self.dtype).flatten(0, 1))
        cauchy = [
            torch.zeros(self.batch * some, *shape, dtype=self.dtype, device=device)
            for some in self._counts()
        ]
        return Bundle(tuple(rows), tuple(cauchy))

    def _counts(self) -> list[int]:
        """How many Cauchy tangents are in each tensor."""
        return [min(self.step, self.count - k) for k in range(0, self.count, self.step)]

    def lengths(self, tangents: Bundle) -> Tensor:
        """``(B, *shape)`` in float64: of normal tangents the root mean square; of exact ones the
        length, no less than that of what was computed."""
        shape = tangents.rows[0].shape[1:]
        total = torch.zeros(
            self.batch, math.prod(shape), dtype=torch.float64, device=tangents.rows[0].device
        )
        for part in tangents.rows:
            total += part.reshape(self.batch, -1, math.prod(shape)).square().sum(1)
        if self.exact:
            unit = arithmetic_of(self.dtype)
            lost = self.rows * unit.tiny
            total = (total + lost) * (1 + 2 * gamma(self.rows + 8, unit.unit))
        else:
            total = total / self.rows + _UNDERFLOW
        return total.sqrt().reshape(-1, *shape)

    def ordered(self, tangents: Bundle, ranks: Tensor) -> Tensor:
        """Of the absolute Cauchy tangents the order statistic of these ``ranks``, ``(B,)``, or a
        little more: ``(B, *shape)`` in float64."""
        shape = tangents.cauchy[0].shape[1:]
        size = math.prod(shape)
        parts = [part.reshape(self.batch, -1, size) for part in tangents.cauchy]
        found = torch.full(
            (self.batch, size), math.inf, dtype=torch.float64, device=parts[0].device
        )
        # Neurons one beside the other, some at a time.
        step = at_once(_NEAR, self.device, each=self.count)
        for row, rank in enumerate(ranks.tolist()):
            for first in range(0, size if rank <= self.count else 0, step):
                last = min(first + step, size)
                # Rounding to float32 keeps the order.
                sizes = [part[row, :, first:last].abs().float().mT for part in parts]
                value = _smallest(torch.cat(sizes, 1), rank).double()
                found[row, first:last] = value * _NARROWER + SINGLE.tiny
        return found.reshape(-1, *shape)

    def joined(self, bundles: list[Bundle], line: Derivative, half: Tensor) -> Bundle:
        """Past a joint, with a fresh error at every value of its output."""
        kept = line.map(lambda t: t.to(self.dtype))

        def past(*parts: Tensor) -> Tensor:
            split = [part.reshape(self.batch, -1, *part.shape[1:]) for part in parts]
            return kept.apply(split)

        rows = [
            past(*parts).flatten(0, 1) for parts in zip(*(b.rows for b in bundles), strict=True)
        ]
        cauchy = []
        for parts in zip(*(b.cauchy for b in bundles), strict=True):
            out = past(*parts)
            self._enter(out.flatten(2), half)
            cauchy.append(out.flatten(0, 1))
        return Bundle(tuple(rows), tuple(cauchy))

    def through(self, tangents: Bundle, slope: Tensor, half: Tensor) -> Bundle:
        """Past an activation, with a fresh error at every neuron."""
        slope = slope[:, None].to(self.dtype)

        def past(part: Tensor) -> Tensor:
            return part.reshape(self.batch, -1, *part.shape[1:]) * slope

        rows = [past(part).flatten(0, 1) for part in tangents.rows]
        cauchy = []
        for part in tangents.cauchy:
            out = past(part)
            self._enter(out.flatten(2), half)
            cauchy.append(out.flatten(0, 1))
        return Bundle(tuple(rows), tuple(cauchy))

    def _enter(self, out: Tensor, half: Tensor) -> None:
        """Adds a fresh Cauchy error of each size to tangents ``(B, t, n)``, a view; none where
        there is no error, as behind a neuron that is constant."""
        half = half.flatten(1)
        places = (half != 0).any(0).nonzero().flatten()
        if not len(places):
            return
        half = half[:, places]
        if self.batch == 1:
            fresh = self.coins.cauchy(out.shape[1], (len(places),))
        else:
            # What a sample is given depends on no other.
            fresh = self.coins.cauchy_of(out.shape[1], half != 0)
        half = half.to(fresh.dtype)
        fresh = fresh.mul_(half[:, None]).to(self.dtype)
        # Indices only where they save enough.
        if len(places) == out.shape[2]:
            out.add_(fresh)
        else:
            out.index_add_(2, places, fresh)


def _smallest(sizes: Tensor, rank: int) -> Tensor:
    """The ``rank``-th smallest of each row: ``(n, M)`` to ``(n,)``; the rows may be reordered."""
    if sizes.device.type != "cpu":
        return sizes.kthvalue(rank, dim=1).values
    rows = sizes.contiguous().numpy()
    rows.partition(rank - 1, axis=1)
    return torch.from_numpy(rows[:, rank - 1])
