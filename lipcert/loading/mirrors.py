"""Reflections of pairs of values by one side of a line, as comparisons in a rotated frame.

With a unit vector ``n`` let ``h(z) = z`` where ``n·z ≤ 0``, else ``z − 2 n (n·z)``. With the
rotation ``R`` that takes ``n`` to ``(1, −1)/√2``, ``h(z) = Rᵀ (min, max)(R z)``.

``z − 2 n relu(n·z)`` and ``z − n (n·z + |n·z|)`` are this too, written without a choice: every
value of such a node is ``α a + β b + γ |a + r b|``, which is linear on either side of the line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.loading.forms import DEEPEST, HIGHER_ORDERS, MAGNITUDES, Forms
from lipcert.rounding import SINGLE, Arithmetic, coarsest

# How far constants may be from those of a reflection; what float64 makes of the model's own.
NEAR, _OWN = 1e-5, 1e-13
# How large a value may be on the way, in the larger one of a pair: 8 of the larger rotated one.
_MOST = 5.6
# So near the half turn needs no rotation.
_STRAIGHT = 2.0**-20


@dataclass(frozen=True, eq=False)
class Mirror:
    """``R = ((p, −q), (q, p))`` of ``n`` pairs, ``(n,)`` each; ``off``: by how much a file's own
    function differs from the reflection, in the larger value of a pair; ``straight``: R is 1."""

    p: Tensor
    q: Tensor
    off: Tensor
    straight: bool

    def spelling(self, rounded: Tensor, own: Arithmetic) -> float:
        """The ``MaxMin.spelling`` of a comparison in the rotated frame, where either value is
        ``rounded`` by so much, in units of the larger of its pair.

        That is at most ``√2`` times the larger one of the rotated pair; and to what is behind a
        rotation back, errors in front of it may be worth less by ``√2`` than errors behind it.
        """
        return 2 * HIGHER_ORDERS * float((rounded + self.off / own.unit).max())


def mirror_of(by: Tensor, turned: Tensor, kept: Tensor | None = None) -> Mirror | None:
    """The reflections by the directions ``by`` ``(n, 2)`` that are the linear maps ``turned``
    ``(n, 2, 2)`` on the positive side, and ``kept`` on the other, by default 1; None where they
    are none."""
    length = by.square().sum(1).sqrt()
    if not bool((length > 0).all()):
        return None
    normal = by / length[:, None]
    p, q = (normal[:, 0] - normal[:, 1]) / math.sqrt(2), -normal.sum(1) / math.sqrt(2)
    straight = bool((q.abs() <= _STRAIGHT).all()) and bool((p > 0).all())
    if straight:
        p, q = torch.ones_like(p), torch.zeros_like(q)
    # The model's own vector, Rᵀ (1, −1)/√2.
    model = torch.stack([p - q, -q - p], 1) / math.sqrt(2)
    one = torch.eye(2, dtype=torch.float64)
    mirror = one - 2 * model[:, :, None] * model[:, None, :]
    off = (turned - mirror).abs().sum(2).amax(1)
    if kept is not None:
        off = off + (kept - one).abs().sum(2).amax(1)
    off = off + 4 * (normal - model).abs().sum(1) + _OWN
    return Mirror(p, q, off, straight) if bool((off <= NEAR).all()) else None


@dataclass(frozen=True, eq=False)
class Mirrored:
    """A node whose values are reflected pairs: ``pairs`` ``(n, 2)``, the numbers of their values,
    and where each value of a pair stands in the node, ``places`` ``(n, 2)``."""

    pairs: Tensor
    places: Tensor
    mirror: Mirror
    spelling: float
    additions: float
    format: Arithmetic


def mirrored(forms: Forms, i: int) -> Mirrored | None:
    """None unless every value of the node is one of a reflected pair, both of which it has."""
    form = forms.of(i)
    # Comparisons, in a rotated frame too, are as they should be.
    if (
        form.within < math.inf
        or form.compared
        or not form.computed
        or form.terms.shape[1] not in (2, 3)
    ):
        return None
    if len(form.formats) != 1 or form.depth > DEEPEST or float(form.mag.max()) > _MOST:
        return None
    size = (form.terms >= MAGNITUDES) & form.live
    if not bool((size.sum(1) == 1).all()) or len(form.terms) % 2:
        return None
    number = torch.where(size, form.terms, 0).sum(1)
    known = torch.tensor(list(forms.pairs), dtype=torch.float64)[number - MAGNITUDES]
    pair, ratio = known[:, :2].long(), known[:, 2]
    # By the value of the pair that is no other's multiple on the side where nothing is turned.
    at = [form.live & (form.terms == pair[:, k : k + 1]) for k in (0, 1)]
    if not bool((size | at[0] | at[1] | ~form.live).all()):
        return None
    alone = [torch.where(here, form.coefficients, 0.0).sum(1) for here in at]
    gamma = torch.where(size, form.coefficients, 0.0).sum(1)
    kink = torch.stack([gamma, gamma * ratio], 1)
    above, below = torch.stack(alone, 1) + kink, torch.stack(alone, 1) - kink
    order = torch.argsort(number, stable=True)
    first, second = order[0::2], order[1::2]
    if not torch.equal(number[first], number[second]) or len(set(number.tolist())) != len(first):
        return None
    for sign, turned, kept in ((1.0, above, below), (-1.0, below, above)):
        # The first of a pair is the one that stays itself.
        swapped = kept[first, 0].abs() < 0.5
        one, two = torch.where(swapped, second, first), torch.where(swapped, first, second)
        by = sign * torch.stack([torch.ones_like(ratio), ratio], 1)[one]
        mirror = mirror_of(
            by, torch.stack([turned[one], turned[two]], 1), torch.stack([kept[one], kept[two]], 1)
        )
        if mirror is None:
            continue
        own = coarsest(SINGLE, next(iter(form.formats)))
        assert own is not None
        spelling = mirror.spelling(torch.maximum(form.off[one], form.off[two]), own)
        if not math.isfinite(spelling):
            return None
        places = torch.stack([one, two], 1)
        return Mirrored(pair[one], places, mirror, spelling, form.behind, own)
    return None
