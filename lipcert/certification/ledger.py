"""Who went through which rung, at what cost, and which rung settled the verdict."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ledger:
    """The account of one batch: ``shares``, by rung, of the seconds that it took, ``(B,)`` each,
    NaN for samples that did not go through it; ``decided_by`` ``(B,)`` the place of the rung that
    settled a sample, −1 while it is open; ``since`` when the last rung was done.

    The time since then is charged to the next rung, in equal shares to the samples that went
    through it. So the shares of all rungs add up to what the batch took.
    """

    decided_by: Tensor
    shares: dict[str, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    @classmethod
    def begun(cls, samples: int) -> Ledger:
        """Begins the account of so many samples now."""
        return cls(torch.full((samples,), -1))

    def passed(self, rung: str, rows: Tensor, decided: Tensor, *, again: bool = False) -> Ledger:
        """``rows`` ``(n,)`` of the batch have been through ``rung``, perhaps once more; those where
        ``decided`` ``(n,)`` have a verdict now, by this rung if they had none before, or
        ``again``."""
        # A copy waits for the device, so that the time of its work is not the next rung's.
        code = rows.new_full(self.decided_by.shape, -1).index_copy_(0, rows, decided.long()).cpu()
        rows = (code >= 0).nonzero().flatten()
        decided = code[rows] > 0
        now = time.perf_counter()
        unknown = torch.full(self.decided_by.shape, math.nan, dtype=torch.float64)
        share = self.shares.get(rung, unknown).clone()
        share[rows] = share[rows].nan_to_num(nan=0.0) + (now - self.since) / max(1, len(rows))
        shares = self.shares | {rung: share}
        new = rows[decided & (again | (self.decided_by[rows] < 0))]
        decided_by = self.decided_by.index_fill(0, new, list(shares).index(rung))
        return Ledger(decided_by, shares, now)

    def seconds(self, row: int) -> dict[str, float]:
        """Says what a sample has cost, by rung and in order, for the rungs that it went through."""
        shares = {rung: float(seconds[row]) for rung, seconds in self.shares.items()}
        return {rung: share for rung, share in shares.items() if not math.isnan(share)}

    def decided(self, row: int) -> str | None:
        """Names the rung that settled a sample's verdict; None while it is open."""
        number = int(self.decided_by[row])
        return list(self.shares)[number] if number >= 0 else None
