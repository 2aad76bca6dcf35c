"""The short linear combinations of one node's values, as numbers side by side (``forms``)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.rounding import Arithmetic

# The number of no term.
NONE = 2**62


@dataclass(frozen=True, eq=False)
class AffineForm:
    """Of all ``n`` values of a node: numbers of terms ``(n, T)``, in increasing order, and their
    coefficients; ``mag`` and ``off`` ``(n,)``; how many roundings are on the longest way through
    it, and how many additions are behind it, on all ways since the last bend; whether anything was
    added up, or bent, not only moved, scaled and compared; the formats of the nodes that it leads
    through, and which of these compare. Nothing is known of a row whose largest value could pass
    ``within / 2``."""

    terms: Tensor
    coefficients: Tensor
    mag: Tensor
    off: Tensor
    depth: float = 0.0
    behind: float = 0.0
    computed: bool = False
    formats: frozenset[Arithmetic | None] = frozenset()
    compared: frozenset[int] = frozenset()
    within: float = math.inf

    @property
    def live(self) -> Tensor:
        return self.terms != NONE

    def rows(self, index: Tensor) -> AffineForm:
        """Of some of the values; nothing where the index is −1."""
        inside, at = index >= 0, index.clamp(min=0)
        return self._with(
            torch.where(inside[:, None], self.terms[at], NONE),
            torch.where(inside[:, None], self.coefficients[at], 0.0),
            torch.where(inside, self.mag[at], 0.0),
            torch.where(inside, self.off[at], 0.0),
        )

    def scaled(self, by: Tensor) -> AffineForm:
        """Times a number each, ``(n,)``; powers of two round nothing."""
        size = by.abs()
        mantissa = torch.frexp(size).mantissa
        rounds = torch.where((mantissa == 0.5) | (size == 0), 0.0, 4.0)
        found = self._with(
            self.terms, self.coefficients * by[:, None], self.mag * size,
            size * (self.off + rounds * self.mag),
        )  # fmt: skip
        return replace(found, depth=self.depth + (2 if bool((rounds > 0).any()) else 0))

    def _with(self, terms: Tensor, coefficients: Tensor, mag: Tensor, off: Tensor) -> AffineForm:
        return replace(self, terms=terms, coefficients=coefficients, mag=mag, off=off)


def stacked(parts: tuple[AffineForm, ...]) -> AffineForm:
    """One after another."""
    width = max(part.terms.shape[1] for part in parts)

    def wide(values: Tensor, fill: int) -> Tensor:
        missing = values.new_full((len(values), width - values.shape[1]), fill)
        return torch.cat([values, missing], 1)

    return AffineForm(
        torch.cat([wide(part.terms, NONE) for part in parts]),
        torch.cat([wide(part.coefficients, 0) for part in parts]),
        torch.cat([part.mag for part in parts]),
        torch.cat([part.off for part in parts]),
        max(part.depth for part in parts),
        max(part.behind for part in parts),
        any(part.computed for part in parts),
        frozenset().union(*(part.formats for part in parts)),
        frozenset().union(*(part.compared for part in parts)),
        min(part.within for part in parts),
    )


def turned(form: AffineForm) -> AffineForm:
    return form.scaled(form.coefficients.new_full((len(form.terms),), -1.0))
