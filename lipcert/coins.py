"""Where the coins of a run come from, and what that is worth.

A randomised norm holds against a model that was made before its coins were drawn. So they come from
fresh entropy of the system, mixed with the digests of what is certified; they are recorded, so that
a run can go on, and be repeated. With a seed that somebody chose, the assurance holds only against
models that were made without knowledge of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lipcert.errors import UsageError

BITS = 128

FRESH = "over coins from fresh entropy of the system, for every model"
CHOSEN = "over coins from a given seed: only for models that were made without knowledge of it"


@dataclass(frozen=True)
class Coins:
    """``seed``: 128 bits, from the ``system`` or given as a ``seed``."""

    source: Literal["system", "seed"]
    seed: int

    @classmethod
    def of(cls, seed: int | None) -> Coins:
        """Of this seed, fresh where it is None."""
        return cls("system", secrets.randbits(BITS)) if seed is None else cls("seed", seed)

    def key(self, **digests: object) -> int:
        """128 bits from the seed and the digests of what is certified, for ``unit_vectors``."""
        mixed = json.dumps({"seed": hex(self.seed), **digests}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(mixed.encode()).digest()[: BITS // 8], "big")

    def to_json(self) -> dict[str, str]:
        return {"source": self.source, "seed": hex(self.seed)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Coins:
        """Raises ``ValueError`` and its like for what ``to_json`` does not write."""
        if record["source"] not in ("system", "seed"):
            raise ValueError(f"unknown source of coins: {record['source']}")
        return cls(record["source"], parse_seed(record["seed"]))

    @property
    def assurance(self) -> str:
        return FRESH if self.source == "system" else CHOSEN


def parse_seed(text: str) -> int:
    """``7`` or ``0x1f``, below 2^128. Raises ``UsageError``."""
    match = re.fullmatch(r"([0-9]{1,39})|0x([0-9a-fA-F]{1,32})", text.strip())
    seed = -1 if match is None else int(match[1]) if match[1] else int(match[2], 16)
    if not 0 <= seed < 2**BITS:
        raise UsageError(
            f"--seed {text!r}: give a whole number from 0 to 2^{BITS} − 1, such as 7 or 0x1f"
        )
    return seed
