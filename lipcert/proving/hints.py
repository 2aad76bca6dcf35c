"""What a proof consists of before it is packed: forms, and hints for norms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.audit.proofs.dual import Forms
from lipcert.audit.proofs.format import SLOPE_LEAST, SLOPE_STEP
from lipcert.audit.proofs.replay import Network

# The slopes that a byte holds.
SLOPES = SLOPE_LEAST, SLOPE_LEAST + 255 / SLOPE_STEP


@dataclass(frozen=True, eq=False)
class Found:
    """A form of a proof, see ``format.expected``: ``slopes`` by function where they are stored."""

    bend: int
    place: int
    sign: int
    rule: int
    multiplier: tuple[float, ...]
    slopes: dict[int, Tensor] | None = None
    cuts: tuple[tuple[int, float, bool], ...] = ()


@dataclass(eq=False)
class Proof:
    """Of one sample: hints for norms, ``(n,)`` each, the forms, and the masks of all functions,
    by value, that say whose slopes are stored."""

    edge_scale: Tensor
    chain_scale: Tensor
    chain_weight: Tensor
    forms: list[Found] = field(default_factory=list)
    masks: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Choice:
    """Slopes ``(F, n)`` and multipliers ``(F,)`` of F forms, by function."""

    slopes: dict[int, Tensor]
    multipliers: dict[int, Tensor]

    def rows(self, rows: Tensor) -> Choice:
        """Some of the forms."""
        return Choice(
            {v: slope[rows] for v, slope in self.slopes.items()},
            {v: multiplier[rows] for v, multiplier in self.multipliers.items()},
        )

    def found(self, network: Network, row: int, place: int, rule: int) -> Found:
        """One of them as a margin's, whose slopes are stored."""
        own = {v: slope[row] for v, slope in self.slopes.items()}
        return Found(-1, place, 1, rule, listed(network, self.multipliers, row), own)


def listed(network: Network, multipliers: dict[int, Tensor], row: int) -> tuple[float, ...]:
    """One form's, for all functions in order; 0 where none counts."""
    return tuple(
        float(multipliers[v][row]) if v in multipliers else 0.0 for v in network.graph.bends
    )


def single(values: Tensor) -> Tensor:
    """As float32 has them."""
    return values.float().double()


def stored(slope: Tensor) -> Tensor:
    """Rounded to what one byte holds."""
    return ((slope - SLOPE_LEAST) * SLOPE_STEP).round().clamp(0, 255) / SLOPE_STEP + SLOPE_LEAST


def known(values: Tensor) -> Tensor:
    """What is proven: nothing where no number says so."""
    return values.nan_to_num(-math.inf, -math.inf, -math.inf)


def multipliers_of(forms: Forms) -> dict[int, Tensor]:
    return dict(forms.multipliers)


def margin_rows(labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every sample and every class beside its label: which they are, and the forms' rows."""
    sample = torch.arange(len(labels)).repeat_interleave(classes)
    other = torch.arange(classes).repeat(len(labels))
    keep = other != labels[sample]
    sample, other = sample[keep], other[keep]
    rows = torch.zeros(len(sample), classes, dtype=torch.float64)
    rows.scatter_(1, labels[sample][:, None], 1.0).scatter_(1, other[:, None], -1.0)
    return sample, other, rows
