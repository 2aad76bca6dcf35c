"""Which values of a node are sorted ones, by the coefficients of their forms.

With ``s = ±1``, or ``b`` for nothing,

    α (a + s b) + γ |a − s b| = (α + γ) max(a, s b) + (α − γ) min(a, s b).

A pair of which a node has the larger or the smaller one is worth a comparison as it is. What is
mixed of both, ``|a − b|`` alone or ``relu(a)``, is none: only where a node has two values of a pair
that are no multiple of each other, as their sum and their distance, it has what sorting gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.loading.affine_form import NONE, AffineForm
from lipcert.loading.forms import DEEPEST, HIGHER_ORDERS, MAGNITUDES, Forms
from lipcert.network.activations import MaxMin
from lipcert.rounding import Arithmetic

# How much may be rounded and how large a value may be on the way, in the larger value of a pair.
MOST_ROUNDED, MOST = 64.0, 8.0


@dataclass(frozen=True, eq=False)
class Sorted:
    """A node whose values are sorted ones: of each the ``first`` and the ``second`` of its pair,
    −1 for none, whose sign is turned by ``sign``; how often it has the ``larger`` and the
    ``smaller`` of both. Where it is of no ``pair`` it has the first. Nothing is known of what could
    pass ``within / 2``."""

    first: Tensor
    second: Tensor
    sign: Tensor
    larger: Tensor
    smaller: Tensor
    pair: Tensor
    spelling: float
    additions: float
    format: Arithmetic | None
    within: float


def sorted_values(forms: Forms, i: int) -> Sorted | None:
    """None unless every value of the node is a sorted one, of more than one comparison."""
    form = forms.of(i)
    if len(form.formats) != 1 or form.terms.shape[1] > 3 or form.depth > DEEPEST:
        return None
    if not form.computed and len(form.compared) < 2 and not _repeats(forms, form.compared):
        # One comparison, moved and scaled, is as it should be.
        return None
    rows = PairedRows.of(form, forms)
    if rows is None or not bool(rows.pair.any()):
        return None
    weight = torch.maximum(rows.larger.abs(), rows.smaller.abs())
    spelling = _apart(rows, form.off / weight, form.off)
    # A value alone is taken as it is.
    if spelling is None or bool((form.off[~rows.pair] > 0).any()):
        return None
    spelling *= HIGHER_ORDERS
    if not spelling <= MOST_ROUNDED or not float((form.mag / weight).max()) <= MOST:
        return None
    return Sorted(
        rows.key[:, 0], torch.where(rows.key[:, 1] == NONE, -1, rows.key[:, 1]),
        torch.where(rows.key[:, 2] == 0, 1, -rows.key[:, 2]), rows.larger, rows.smaller,
        rows.pair, spelling, form.behind, next(iter(form.formats)), form.within,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class PairedRows:
    """Of every value its pair ``(a, b, r)`` of ``|a + r b|``, and what it has of both."""

    key: Tensor
    larger: Tensor
    smaller: Tensor
    pair: Tensor

    @classmethod
    def of(cls, form: AffineForm, forms: Forms) -> PairedRows | None:
        size = form.live & (form.terms >= MAGNITUDES)
        has, plain = size.any(1), form.live & ~size
        if bool((size.sum(1) > 1).any()) or not bool(form.live.any(1).all()):
            return None
        known = torch.tensor(list(forms.pairs) or [(0, NONE, 0.0)], dtype=torch.float64)
        number = torch.where(size, form.terms - MAGNITUDES, 0).sum(1)
        # Of a value without a magnitude the pair is that of its own terms.
        wide = torch.nn.functional.pad(form.terms, (0, 1), value=NONE)
        first, second = (torch.nn.functional.pad(form.coefficients, (0, 1))).T[:2]
        own = torch.stack([wide[:, 0].double(), wide[:, 1].double(), -second / first], 1)
        own[:, 2] = torch.where(wide[:, 1] == NONE, 0.0, own[:, 2])
        key = torch.where(has[:, None], known[number], own)
        places = key[:, :2].long()
        at = [plain & (form.terms == places[:, k : k + 1]) for k in (0, 1)]
        alpha, beta = (torch.where(here, form.coefficients, 0.0).sum(1) for here in at)
        gamma = torch.where(size, form.coefficients, 0.0).sum(1)
        larger, smaller = alpha + gamma, alpha - gamma
        pair = _among(key, key[has])
        fits = bool((plain == (at[0] | at[1])).all())
        fits &= bool((key[:, 2].abs() == torch.where(places[:, 1] == NONE, 0.0, 1.0))[pair].all())
        fits &= bool((beta == -key[:, 2] * alpha)[pair].all())
        # What is computed here is exactly what it stands for.
        fits &= bool(((larger - alpha == gamma) & (alpha - smaller == gamma)).all())
        fits &= bool((pair | (places[:, 1] == NONE)).all())
        if not fits:
            return None
        numbers = torch.cat([places, key[:, 2:].long()], 1)
        return cls(numbers, larger, torch.where(pair, smaller, 0.0), pair)


def _among(keys: Tensor, some: Tensor) -> Tensor:
    """Which rows are among some others."""
    _, back = torch.unique(torch.cat([some, keys]), dim=0, return_inverse=True)
    return torch.isin(back[len(some) :], back[: len(some)])


def _apart(rows: PairedRows, alone: Tensor, off: Tensor) -> float | None:
    """How far the larger and the smaller of a pair have to be off for every value to be off as it
    is: with ``(p, q)`` and ``(p', q')`` of both by Cramer's rule. None where values are mixed, and
    not of two kinds."""
    pair, most = rows.pair, float(alone.max())
    _, back = torch.unique(rows.key[pair], dim=0, return_inverse=True)
    larger, smaller, off = rows.larger[pair], rows.smaller[pair], off[pair]
    mixed = ((larger != 0) & (smaller != 0)) | (rows.key[pair, 2] == 0)
    if not bool(mixed.any()):
        return most
    kinds, kind = torch.unique(
        torch.stack([back.double(), larger, smaller], 1), dim=0, return_inverse=True
    )
    error = torch.zeros(len(kinds), dtype=torch.float64)
    error = error.scatter_reduce(0, kind, off, "amax")
    asked = torch.isin(kinds[:, 0].long(), back[mixed])
    kinds, error = kinds[asked], error[asked]
    _, count = torch.unique_consecutive(kinds[:, 0], return_counts=True)
    if not bool((count == 2).all()):
        return None
    (p, q), (r, s) = kinds[0::2, 1:].T, kinds[1::2, 1:].T
    one, other, det = error[0::2], error[1::2], (p * s - q * r).abs()
    if not bool((det > 0).all()):
        return None
    far = torch.maximum(s.abs() * one + q.abs() * other, r.abs() * one + p.abs() * other) / det
    return max(most, float(far.max()))


def _repeats(forms: Forms, compared: frozenset[int]) -> bool:
    """Whether a comparison compares the same two values several times, as of a value with itself,
    moved."""
    for i in compared:
        form = forms.of(i)
        sizes = form.terms[form.live & (form.terms >= MAGNITUDES)]
        if forms.is_transparent(i) and 2 * len(set(sizes.tolist())) < len(form.terms):
            return isinstance(forms.network.nodes[i].kind, MaxMin)
    return False
