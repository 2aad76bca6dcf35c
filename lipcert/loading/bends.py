"""Bends of one value, however a file writes them: ``|a|`` as ``2 relu(a) − a``,
``relu(a) + relu(−a)`` or ``max(a, −a)``, and leaky ReLU likewise.

By its form every value is ``p a`` where ``a ≥ 0`` and ``q a`` elsewhere: ``p PReLU(a)`` of slope
``q / p``. By norms the parts of such a sum add up; the bend costs the larger of ``|p|`` and
``|q|``. What the file's own way rounds is charged in front of it, where it is worth at least
``min(|p|, |q|)``: so a value that is 0 on one side, as of ReLU, stays as it is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.loading.affine_form import NONE
from lipcert.loading.forms import DEEPEST, HIGHER_ORDERS, Forms
from lipcert.loading.sorted_values import MOST, MOST_ROUNDED, PairedRows
from lipcert.network.nodes import Sum
from lipcert.rounding import Arithmetic


@dataclass(frozen=True, eq=False)
class Bent:
    """A node whose values are ``scale · PReLU`` of ``slope`` of others by their numbers ``atoms``;
    ``spelling`` as of ``MaxMin``, in the magnitude of the value itself."""

    atoms: Tensor
    scale: Tensor
    slope: Tensor
    spelling: float
    format: Arithmetic | None


def bent(forms: Forms, i: int) -> Bent | None:
    """None unless every value of the node is one that bends at 0, put together of several."""
    form = forms.of(i)
    if not isinstance(forms.network.nodes[i].kind, Sum) and not form.compared:
        return None
    if len(form.formats) != 1 or form.terms.shape[1] > 2 or form.depth > DEEPEST:
        return None
    rows = PairedRows.of(form, forms) if form.within == torch.inf else None
    if rows is None or not bool((rows.pair & (rows.key[:, 1] == NONE)).all()):
        return None
    sides = torch.stack([rows.larger.abs(), rows.smaller.abs()])
    if not bool((sides > 0).all()):
        return None
    slope = rows.smaller / rows.larger
    # Exactly: by a power of two, and so that their product is what it was.
    exact = (torch.frexp(slope.abs()).mantissa == 0.5) & (slope * rows.larger == rows.smaller)
    spelling = HIGHER_ORDERS * float((form.off / sides.amin(0)).max())
    fits = spelling <= MOST_ROUNDED and float((form.mag / sides.amax(0)).max()) <= MOST
    if not bool(exact.all()) or not fits:
        return None
    return Bent(rows.key[:, 0], rows.larger, slope, spelling, next(iter(form.formats)))
