"""The proofs of a file, sample by sample: proven, or why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.deployed import Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.proofs.format import Array, read
from lipcert.audit.proofs.graph import Graph
from lipcert.audit.proofs.norms import Coins
from lipcert.audit.proofs.replay import FormSource, Hints, Network, Replay

# What all norms of a check may fail with, together.
RISK = 1e-9
_AT_ONCE = 16


@dataclass(frozen=True)
class Claim:
    """No change within ``eps`` of the pixels ``(n,)`` alters the class ``label``."""

    pixels: Array
    label: int
    eps: float


@dataclass(frozen=True)
class Outcome:
    """``margin``: what every margin exceeds, as deployed; proven where that is positive."""

    margin: float
    reason: str

    @property
    def proven(self) -> bool:
        return self.margin > 0


class Checker:
    """Replays a file of proofs. Raises ``NotRead`` where the network is beyond it, and
    ``CannotCertify`` where the file is damaged."""

    def __init__(
        self, reading: Interpreter, front: Preprocessing, path: Path, samples: int,
        arithmetic: Arithmetic, *, pixel_domain: bool, softmax: bool,
    ) -> None:  # fmt: skip
        self.network = Network(Graph(reading, front))
        self.arrays = read(path, self.network.sizes, samples)
        own = (self.arrays.edge_scale > 0).sum() + (self.arrays.chain_scale > 0).sum()
        self.coins = Coins(RISK, self.network.sizes.edges + int(own))
        made = partial(Replay, pixel_domain=pixel_domain, softmax=softmax)
        # Only where there is a proof: the norms of a deep network take long.
        self.replay = cache(partial(made, self.network, arithmetic, self.coins))
        self._row = {int(index): row for row, index in enumerate(self.arrays.index)}

    @torch.no_grad()
    def __call__(self, claims: Mapping[int, Claim]) -> dict[int, Outcome]:
        """Of claims by sample."""
        found, wanted = {}, []
        for index, claim in claims.items():
            kept = self.arrays.eps[self._row[index]] if index in self._row else None
            if kept is None:
                found[index] = Outcome(-math.inf, "there is no proof of it")
            elif not claim.eps <= kept:
                found[index] = Outcome(-math.inf, f"its proof is for {kept:.9g} only")
            else:
                wanted.append(index)
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            margins = self._margins([claims[index] for index in some], some)
            for index, margin in zip(some, margins, strict=True):
                short = "a margin has no proof" if margin == -math.inf else f"margins {margin:.4g}"
                reason = f"margins above {margin:.4g}" if margin > 0 else short
                found[index] = Outcome(margin, reason)
        return found

    def _margins(self, claims: list[Claim], indices: list[int]) -> list[float]:
        rows = np.array([self._row[index] for index in indices])
        x = torch.from_numpy(np.stack([claim.pixels for claim in claims]).astype(np.float64))
        eps = torch.tensor([claim.eps for claim in claims], dtype=torch.float64)
        source, replay = FormSource(self.network, self.arrays, rows), self.replay()
        state = replay.state(x, eps, Hints.of(self.arrays, rows), source.of_box)
        labels = torch.tensor([claim.label for claim in claims])
        return [float(m) for m in replay.margins(state, labels, source).amin(1)]
