"""Tangents that measure norms of rows: how they start, pass and take on errors.

See ``lipcert.bounds.sketch`` for what they are used for, and ``lipcert.bounds.projections`` for
what random ones assure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.bounds.projections import RandomNumbers
from lipcert.chunks import at_once
from lipcert.network.joints import Derivative
from lipcert.numbers import OUT64, outward_of
from lipcert.rounding import SINGLE

# How many numbers of tangents go together, or are put in order at once, and what rounding to
# float32 makes up for.
_NEAR, _NARROWER = 2**20, 1 + 2.0**-22
# More than all squares that underflow.
_UNDERFLOW = 2.0**-1000


@dataclass(frozen=True, eq=False)
class Bundle:
    """Tangents at one node, some in each tensor, ``(B · t, *shape)``: those that measure ``rows``,
    and ``cauchy`` ones. Tensors that caches hold take less time, and their memory is used again.
    ``columns``: errors that go by themselves, by where they entered; elsewhere they are 0."""

    rows: tuple[Tensor, ...]
    cauchy: tuple[Tensor, ...]
    columns: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Bundle:
        columns = {key: change(part) for key, part in self.columns.items()}
        return Bundle(tuple(map(change, self.rows)), tuple(map(change, self.cauchy)), columns)

    @classmethod
    def total(cls, bundles: Sequence[Bundle]) -> Bundle:
        def add(*parts: Tensor) -> Tensor:
            found = parts[0] + parts[1] if len(parts) > 1 else parts[0]
            for part in parts[2:]:
                found = found.add_(part)
            return found

        rows = map(add, *(bundle.rows for bundle in bundles))
        cauchy = map(add, *(bundle.cauchy for bundle in bundles))
        keys = sorted({key for bundle in bundles for key in bundle.columns})
        columns = {
            key: add(*(bundle.columns[key] for bundle in bundles if key in bundle.columns))
            for key in keys
        }
        return cls(tuple(rows), tuple(cauchy), columns)


class Tangents:
    """What all passes do with tangents of a batch of samples: of each first ``rows`` of them, which
    measure the 2-norms of rows, then ``count`` Cauchy ones, which measure 1-norms.

    The first are normal, or, where ``exact``, one unit vector for each value of the input: then
    what arrives at a neuron is its row. ``largest``: how many values a node has at most. How many
    are drawn together depends on the ``device`` alone, so that a sample's coins are the same
    whatever others there are. ``twice``: as many Cauchy ones again, which measure what columns
    would.
    """

    def __init__(
        self, batch: int, rows: int, count: int, coins: RandomNumbers, dtype: torch.dtype, *,
        largest: int, device: torch.device, exact: bool = False, twice: bool = False,
    ) -> None:  # fmt: skip
        self.batch, self.rows, self.count, self.twice = batch, rows, count, twice
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
                rows.append(_channels_last(units.reshape(-1, *shape)))
            else:
                normals = self.coins.normals(some, shape).to(self.dtype)
                rows.append(_channels_last(normals.flatten(0, 1)))
        cauchy = [
            torch.zeros(self.batch * some, *shape, dtype=self.dtype, device=device)
            for some in self._counts()
        ]
        return Bundle(tuple(rows), tuple(cauchy))

    def _counts(self) -> list[int]:
        """How many Cauchy tangents are in each tensor."""
        counts = [min(self.step, self.count - k) for k in range(0, self.count, self.step)]
        return 2 * counts if self.twice else counts

    def _again(self, part: int) -> bool:
        """Whether a tensor of Cauchy tangents is one of those that measure what columns would."""
        return self.twice and 2 * part >= len(self._counts())

    def lengths(self, tangents: Bundle) -> Tensor:
        """``(B, *shape)`` in float64: of normal tangents the root mean square; of exact ones the
        length, no less than that of what was computed."""
        shape = tangents.rows[0].shape[1:]
        total = torch.zeros(self.batch, *shape, dtype=torch.float64, device=tangents.rows[0].device)
        for part in tangents.rows:
            total += self._over(part, lambda each: each.square().sum(1))
        if self.exact:
            own = outward_of(self.dtype)
            total = own.up(total + self.rows * own.tiny, 2 * (self.rows + 8))
        else:
            total = total / self.rows + _UNDERFLOW
        return total.sqrt()

    def ordered(self, tangents: Bundle, ranks: Tensor, *, again: bool = False) -> Tensor:
        """Of the absolute Cauchy tangents, or of those that are there ``again``, the order
        statistic of these ``ranks``, ``(B,)``, or a little more: ``(B, *shape)`` in float64."""
        shape = tangents.cauchy[0].shape[1:]
        size = math.prod(shape)
        parts = [
            part.reshape(self.batch, -1, size)
            for k, part in enumerate(tangents.cauchy)
            if self._again(k) == again
        ]
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
        for k, parts in enumerate(zip(*(b.cauchy for b in bundles), strict=True)):
            out = past(*parts)
            if not self._again(k):
                self._enter(out.flatten(2), half)
            cauchy.append(out.flatten(0, 1))
        columns = {}
        for key in sorted({key for bundle in bundles for key in bundle.columns}):
            like = next(b.columns[key] for b in bundles if key in b.columns)
            none = [like.new_zeros(1).expand(len(like), *b.cauchy[0].shape[1:]) for b in bundles]
            known = [b.columns.get(key, zero) for b, zero in zip(bundles, none, strict=True)]
            columns[key] = past(*known).flatten(0, 1)
        return Bundle(tuple(rows), tuple(cauchy), columns)

    def sizes(self, tangents: Bundle) -> Tensor | float:
        """The sum of all columns in absolute value, rounded up: ``(B, *shape)`` in float64."""
        total: Tensor | float = 0.0
        for part in tangents.columns.values():
            found = self._over(part, lambda each: each.abs().sum(1, dtype=torch.float64))
            total = OUT64.up(total + found, len(part) + 2)
        return total

    def _over(self, part: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``reduce`` makes of ``(B, t, …)`` along its dimension 1, the others in the order in
        which they lie in memory: ``(B, *shape)``."""
        if part.dim() == 5 and not part.is_contiguous():
            channels = part.permute(0, 1, 3, 4, 2)
            found = reduce(channels.reshape(self.batch, -1, *channels.shape[1:]))
            return found.permute(0, 1, 4, 2, 3)
        return reduce(part.reshape(self.batch, -1, *part.shape[1:]))

    def enter(self, tangents: Bundle, place: int, errors: Tensor, count: int) -> Bundle:
        """A column of its own for every error other than 0, at most ``count`` a sample; ``errors``:
        ``(B, *shape)``, numbers of the tangents' type."""
        flat = errors.flatten(1).to(self.dtype)
        values, places = flat.topk(count, dim=1)
        columns = dict(tangents.columns)
        for first in range(0, count, self.step):
            some = slice(first, first + self.step)
            fresh = flat.new_zeros(self.batch, len(values[0, some]), flat.shape[1])
            fresh.scatter_(2, places[:, some, None], values[:, some, None])
            columns[place, first] = _channels_last(fresh.reshape(-1, *errors.shape[1:]))
        return Bundle(tangents.rows, tangents.cauchy, columns)

    def through(
        self, tangents: Bundle, slope: Tensor, half: Tensor, again: Tensor | None = None
    ) -> Bundle:
        """Past an activation, with a fresh error at every neuron; and one of the size ``again`` in
        those Cauchy tangents that measure what columns would."""
        slope = slope[:, None].to(self.dtype)

        def past(part: Tensor) -> Tensor:
            return part.reshape(self.batch, -1, *part.shape[1:]) * slope

        rows = [past(part).flatten(0, 1) for part in tangents.rows]
        columns = {key: past(part).flatten(0, 1) for key, part in tangents.columns.items()}
        cauchy = []
        for k, part in enumerate(tangents.cauchy):
            out, error = past(part), again if self._again(k) else half
            if error is not None:
                self._enter(out.flatten(2), error)
            cauchy.append(out.flatten(0, 1))
        return Bundle(tuple(rows), tuple(cauchy), columns)

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


def _channels_last(tangents: Tensor) -> Tensor:
    """Of images in float32 on a CPU the same with channels side by side, in which convolutions take
    half to four fifths of the time; what follows keeps to it. Sums are in another order, which the
    charge for float32 covers as any."""
    if tangents.dim() != 5 or tangents.dtype != torch.float32 or tangents.device.type != "cpu":
        return tangents
    images = tangents.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return images.reshape(tangents.shape)


def _smallest(sizes: Tensor, rank: int) -> Tensor:
    """The ``rank``-th smallest of each row: ``(n, M)`` to ``(n,)``; the rows may be reordered."""
    if sizes.device.type != "cpu":
        return sizes.kthvalue(rank, dim=1).values
    rows = sizes.contiguous().numpy()
    rows.partition(rank - 1, axis=1)
    return torch.from_numpy(rows[:, rank - 1])
