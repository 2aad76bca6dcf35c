"""Who went through which rung of a cascade, at what cost, and which rung settled the verdict."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor


class Ledger:
    """The account of one batch of ``samples`` samples.

    A clock runs: ``passed`` charges the seconds since the last call to a rung, in equal shares to
    the samples that went through it. So the shares of all rungs add up to what the batch took.
    """

    def __init__(self, samples: int) -> None:
        self._seconds: dict[str, Tensor] = {}
        self._decided = torch.full((samples,), -1)
        self._since = time.perf_counter()

    def passed(self, rung: str, rows: Tensor, decided: Tensor, *, again: bool = False) -> None:
        """``rows`` ``(n,)`` of the batch have been through ``rung``, perhaps once more; those where
        ``decided`` ``(n,)`` have a verdict now, by this rung if they had none before, or
        ``again``."""
        # Copies wait for the device, so that the time of its work is not the next rung's.
        rows, decided = rows.cpu(), decided.cpu()
        now = time.perf_counter()
        unknown = torch.full(self._decided.shape, math.nan, dtype=torch.float64)
        seconds = self._seconds.setdefault(rung, unknown)
        share = (now - self._since) / max(1, len(rows))
        seconds[rows] = seconds[rows].nan_to_num(nan=0.0) + share
        new = rows[decided & (again | (self._decided[rows] < 0))]
        self._decided[new] = list(self._seconds).index(rung)
        self._since = now

    def seconds(self, row: int) -> dict[str, float]:
        """By rung, in order, what a sample has cost; only rungs that it went through."""
        shares = {rung: float(seconds[row]) for rung, seconds in self._seconds.items()}
        return {rung: share for rung, share in shares.items() if not math.isnan(share)}

    def decided(self, row: int) -> str | None:
        """The rung that settled a sample's verdict; None while it is open."""
        number = int(self._decided[row])
        return list(self._seconds)[number] if number >= 0 else None
