"""The budget of a run: it issues every coin and every failure probability, and nothing else does.

Each randomised bound fails with a small probability over its own coins, and a run with no more than
the sum of these, whatever they have to do with each other (the union bound). So that the sum is
known before the first coin is drawn, a run says beforehand what it may use: an ``Account`` for each
kind of bound, with its part of the run's probability. It is shared out evenly: half of it among the
norms that all samples share, and half among the samples (all of it where there is only one of
these), of each sample among its preparations, and of each of these among all that can fail in it.
Each shard of a run finds the shared norms for itself, with coins or an arithmetic of its own, and
has its part of their half. A preparation counts as spent when it is begun. What is beyond an
account, or asks for the same coin again, raises ``InternalError``.

A coin is a pure function of the run's key, the number of its sample, and its own number, which
tells account, preparation, draw and place; so it does not depend on the company of a batch, on the
process, or on the time. A sample's preparations are counted for itself. Guesses, which assure
nothing, have the account 0 to themselves: they may ask for the same again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import InternalError
from lipcert.norms.coins import cauchy_numbers, normal_numbers, rough_cauchy, unit_vectors

# How many vectors prove one norm; one more chooses the scale of its bound.
PROBES = 3
# How far each part of a coin's number counts: together less than 2^63.
_ACCOUNTS, _PREPARATIONS, _DRAWS, _PLACES = 2**8, 2**20, 2**24, PROBES + 1
# The stream of what all samples share.
_SHARED = -1
# Shares are rounded down by so much that no sum of them, as it is rounded, exceeds the whole.
_DOWN = 1 - 2.0**-40


@dataclass(frozen=True)
class Account:
    """What one kind of bound may use: of each sample ``preparations``, each of so many ``draws``
    (norms or sets of projections) in which ``events`` can fail, each with the probability
    ``single``; and once ``shared_draws`` for all samples, each with the probability ``shared``."""

    number: int
    preparations: int
    draws: int
    events: int
    single: float
    shared_draws: int
    shared: float

    @property
    def preparation(self) -> float:
        """The failure probability of one preparation of one sample."""
        return self.single * self.events


class Budget:
    """Of one run over at most so many ``samples``, over all ``shards``.

    ``key``: the 128 bits that all its coins follow from. ``probability``: with which the run may
    fail; at 0 there are no coins but for guesses.
    """

    def __init__(
        self, key: int, *, probability: float, samples: int, shards: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.key, self.probability, self.samples, self.device = key, probability, samples, device
        self.shards = shards
        self.accounts: list[Account] = []
        self._granted = 0.0
        self._shared: set[int] = set()
        self._known: set[int] = set()

    def account(
        self, part: float, *, preparations: int, draws: int, events: int | None = None,
        shared_draws: int = 0,
    ) -> Account:  # fmt: skip
        """A new account with this part, from 0 to 1, of the run's failure probability; ``events``
        are as many as the ``draws``, unless given."""
        number, events = len(self.accounts) + 1, draws if events is None else events
        _within(number, _ACCOUNTS, "accounts")
        _within(preparations, _PREPARATIONS, "preparations of an account")
        if part < 0 or self._granted + part > 1:
            raise InternalError("the accounts of a run ask for more than its failure probability")
        self._granted += part
        whole = self.probability * part * _DOWN
        each = self.samples * preparations * events
        whole = whole / 2 if shared_draws and each else whole
        account = Account(
            number, preparations, draws, events, whole / each if each else 0.0,
            shared_draws, whole / (self.shards * shared_draws) if shared_draws else 0.0,
        )  # fmt: skip
        self.accounts.append(account)
        return account

    def shared(self, account: Account) -> Preparation:
        """For what all samples share: once for each account."""
        if account.number in self._shared:
            raise InternalError("the coins of what all samples share were issued before")
        self._shared.add(account.number)
        streams = torch.full((1,), _SHARED, device=self.device)
        return Preparation(
            self.key, account.number, streams, torch.zeros_like(streams),
            draws=account.shared_draws, probability=account.shared,
        )  # fmt: skip

    @property
    def spent_shared(self) -> float:
        """The failure probability of what all samples share."""
        issued = (account for account in self.accounts if account.number in self._shared)
        return math.fsum(account.shared * account.shared_draws for account in issued)

    def open(self, streams: Tensor) -> Allowance:
        """For the samples of these numbers, ``(B,)``. To open them again is to begin them again:
        their coins are the same, and what was found before is to be thrown away."""
        numbers = streams.tolist()
        if min(numbers, default=0) < 0 or len(set(numbers)) < len(numbers):
            raise InternalError("the numbers of samples are negative, or one comes twice")
        self._known.update(numbers)
        if len(self._known) > self.samples:
            raise InternalError(f"more samples than the {self.samples} that the run was begun for")
        device = streams.device
        used = torch.zeros(len(self.accounts), len(numbers), dtype=torch.int64, device=device)
        return Allowance(self, streams, used, torch.arange(len(numbers), device=device))

    @property
    def guesses(self) -> Guesses:
        """For estimates of what all samples share."""
        return Guesses(self.key, torch.full((1,), _SHARED, device=self.device))

    @property
    def seed(self) -> int:
        """For a generator of random points, where no bound follows from them: 63 bits."""
        return self.key % 2**63


class Allowance:
    """What the samples of a batch may still use; some of them, by ``select``, share it."""

    def __init__(self, budget: Budget, streams: Tensor, used: Tensor, rows: Tensor) -> None:
        self._budget, self._streams, self._used, self._rows = budget, streams, used, rows

    def select(self, rows: Tensor) -> Allowance:
        """Of some of the samples."""
        return Allowance(self._budget, self._streams, self._used, self._rows[rows])

    @property
    def streams(self) -> Tensor:
        """The numbers of the samples: ``(B,)``."""
        return self._streams[self._rows]

    def preparation(self, account: Account) -> Preparation:
        """The next one of each of the samples."""
        place, rows = account.number - 1, self._rows
        numbers = self._used[place, rows]
        if bool((numbers >= account.preparations).any()):
            raise InternalError(f"more than the {account.preparations} preparations of a sample")
        if len(set(rows.tolist())) < len(rows):
            raise InternalError("a sample is prepared twice at once")
        self._used[place, rows] = numbers + 1
        return Preparation(
            self._budget.key, account.number, self.streams, numbers, draws=account.draws,
            probability=account.single,
        )  # fmt: skip

    @property
    def guesses(self) -> Guesses:
        return Guesses(self._budget.key, self.streams)

    @property
    def spent(self) -> Tensor:
        """The failure probability of all that was issued to each of the samples: ``(B,)``."""
        spent = torch.zeros(len(self._rows), dtype=torch.float64, device=self._rows.device)
        for account, used in zip(self._budget.accounts, self._used[:, self._rows], strict=True):
            spent = spent + used.double() * account.preparation
        return spent


class Projections(ABC):
    """Independent random numbers for each of B samples, in float64; every draw is a new one."""

    def __init__(self, key: int, streams: Tensor) -> None:
        self.key, self.streams = key, streams

    @abstractmethod
    def _next(self) -> Tensor:
        """The number of the next coin."""

    def normals(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """``(B, count, *shape)``, normal."""
        size = count * math.prod(shape)
        found = normal_numbers(self.key, self.streams, self._next(), size)
        return found.reshape(-1, count, *shape)

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """``(B, count, *shape)``, Cauchy."""
        size = count * math.prod(shape)
        found = cauchy_numbers(self.key, self.streams, self._next(), size)
        return found.reshape(-1, count, *shape)

    def cauchy_of(self, count: int, own: Tensor) -> Tensor:
        """Cauchy at each sample's ``own`` places, ``(B, n)``, of which it has those that it would
        be given alone, and 0 elsewhere: ``(B, count, n)``."""
        each = torch.arange(count, device=own.device)[:, None] * own.sum(1)[:, None, None]
        places = (each + (own.cumsum(1) - 1)[:, None]).flatten(1)
        size = places.shape[1]
        found = cauchy_numbers(self.key, self.streams, self._next(), size, places)
        return torch.where(own[:, None], found.reshape(-1, count, own.shape[1]), 0)


class Preparation(Projections):
    """The coins of one preparation of each of B samples, each issued once; ``probability``: with
    which each event may fail."""

    def __init__(
        self, key: int, account: int, streams: Tensor, numbers: Tensor, *, draws: int,
        probability: float,
    ) -> None:  # fmt: skip
        super().__init__(key, streams)
        self.draws, self.probability = draws, probability
        self._account, self._numbers = account, numbers
        self._taken: set[int] = set()

    @property
    def guesses(self) -> Guesses:
        return Guesses(self.key, self.streams)

    def norm(self, number: int) -> NormCoins:
        """Those of its norm of this number, whatever was drawn before."""
        self._take(number)

        def coin(place: int) -> Tensor:
            return _number(self._account, self._numbers, number, place)

        return NormCoins(
            self.key, self.streams, coin(0), [coin(1 + p) for p in range(PROBES)], self.probability
        )

    def give_back(self, number: int) -> None:
        """The coins of a norm that was not found after all, as where memory ran out: what they have
        shown is forgotten, so they may be asked for once more."""
        self._taken.discard(number)

    def _next(self) -> Tensor:
        number = len(self._taken)
        self._take(number)
        return _number(self._account, self._numbers, number, 0)

    def _take(self, number: int) -> None:
        if self.probability <= 0:
            raise InternalError("coins were asked for where nothing may fail")
        if number in self._taken:
            raise InternalError(f"the coins of draw {number} of a preparation were issued before")
        if len(self._taken) >= self.draws:
            raise InternalError(f"more than the {self.draws} draws of a preparation")
        self._taken.add(number)


class NormCoins:
    """Those of one norm of each of B samples, which may fail with ``probability``."""

    def __init__(
        self, key: int, streams: Tensor, start: Tensor, probes: list[Tensor], probability: float
    ) -> None:  # fmt: skip
        self.probability = probability
        self._key, self._streams, self._start, self._probes = key, streams, start, probes

    def start(self, like: Tensor) -> Tensor:
        """A unit vector on the support of ``like``, ``(B, *shape)``, that proves nothing."""
        return unit_vectors(self._key, self._streams, self._start, like)

    def probes(self, like: Tensor) -> Tensor:
        """``(PROBES · B, *shape)``: unit vectors that nothing has depended on; given out once."""
        if not self._probes:
            raise InternalError("the probes of a norm were issued before")
        probes, self._probes = self._probes, []
        return torch.cat([unit_vectors(self._key, self._streams, probe, like) for probe in probes])


class Guesses:
    """Coins of B samples for guesses and estimates, which assure nothing: any number of them."""

    def __init__(self, key: int, streams: Tensor) -> None:
        self.key, self.streams = key, streams

    def start(self, like: Tensor, number: int = 0) -> Tensor:
        """A unit vector on the support of ``like``, ``(B, *shape)``."""
        number_ = _number(0, torch.zeros_like(self.streams), number, 0)
        return unit_vectors(self.key, self.streams, number_, like)

    def projections(self, number: int) -> Projections:
        """A series of draws, the same for the same number."""
        return _GuessedProjections(self.key, self.streams, number)


class _GuessedProjections(Projections):
    def __init__(self, key: int, streams: Tensor, series: int) -> None:
        super().__init__(key, streams)
        _within(series, _PREPARATIONS - 1, "series of guesses")
        # Series 0 is that of ``Guesses.start``.
        self._series, self._drawn = torch.full_like(streams, series + 1), 0

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """``(B, count, *shape)`` in float32, from a generator that is fast and assures nothing."""
        numbers, size = self._next(), count * math.prod(shape)
        seeds = torch.stack([self.streams, numbers], 1).tolist()
        parts = [rough_cauchy(self.key, one, size) for one in seeds]
        return torch.stack(parts).to(self.streams.device).reshape(-1, count, *shape)

    def cauchy_of(self, count: int, own: Tensor) -> Tensor:
        numbers, found = self._next(), torch.zeros(len(own), count, own.shape[1])
        seeds = torch.stack([self.streams, numbers], 1).tolist()
        for part, one, mask in zip(found, seeds, own.cpu(), strict=True):
            places = mask.nonzero().flatten()
            drawn = rough_cauchy(self.key, one, count * len(places))
            part.index_copy_(1, places, drawn.reshape(count, -1))
        return found.to(self.streams.device)

    def _next(self) -> Tensor:
        self._drawn += 1
        return _number(0, self._series, self._drawn - 1, 0)


def _number(account: int, preparation: Tensor, draw: int, place: int) -> Tensor:
    """The number of a coin, one for each combination and less than 2^63: ``(B,)``."""
    _within(draw, _DRAWS, "draws")
    return ((account * _PREPARATIONS + preparation) * _DRAWS + draw) * _PLACES + place


def _within(number: int, limit: int, what: str) -> None:
    if not 0 <= number < limit:
        raise InternalError(f"{number} {what}: there are coins for fewer than {limit}")
