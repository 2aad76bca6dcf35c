"""Lower bounds of linear forms of a sink over the ball: one pass backwards, weak duality.

With ``A`` the row at a bent function's result, any slopes ``c`` and any ``λ ≥ 0``,

    A·Δσ = (A∘c)·Δz + Σ A_k e_k(d_k),     e_k(d) = σ(z_k + d) − σ(z_k) − c_k d,
    Σ A_k e_k ≥ Σ_k min over the box of (A_k e_k(d) + λ d²) − λ ball²,

over the neurons that vary, the others' slopes being 0. On each piece of the box ``e_k`` is within a
band of a line, so the minimum is that of a parabola on an interval. The row goes on as ``A∘c``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.audit.proofs.graph import add
from lipcert.audit.proofs.norms import UNIT, gamma
from lipcert.audit.proofs.state import Layer, State

# Slopes of no more than this size.
STEEPEST = 7.0
_PIXEL_STEPS = 5
# What numbers too small for float64 can cost a form.
_TINY = 1e-60


@dataclass(frozen=True, eq=False)
class Cuts:
    """Halves of boxes: of form ``form`` the neuron ``neuron`` of the function at value ``bend``
    keeps the side above ``place``, or below; ``(C,)`` each, places in terms of ``z``."""

    form: Tensor
    bend: Tensor
    neuron: Tensor
    place: Tensor
    above: Tensor


@dataclass(frozen=True, eq=False)
class Forms:
    """F forms ``rows · Δ(sink)`` with the samples that they are of, their slopes and multipliers by
    the value of each function before the sink, ``(F, n)`` and ``(F,)``, and cuts of some boxes.
    ``falling``: slopes in place of the others where a coefficient is negative."""

    sink: int
    sample: Tensor
    rows: Tensor
    slopes: Mapping[int, Tensor]
    multipliers: Mapping[int, Tensor]
    falling: Mapping[int, Tensor] | None = None
    cuts: Cuts | None = None

    def slope(self, value: int, row: Tensor) -> Tensor:
        slope = self.slopes[value]
        return slope if self.falling is None else torch.where(row < 0, self.falling[value], slope)


def bound(state: State, forms: Forms, *, pixel_domain: bool) -> Tensor:
    """What each form is at least over the ball, ``(F,)``; NaN where nothing is known."""
    graph, sample = state.graph, forms.sample
    sink = state.sinks[forms.sink]
    segments = graph.segments[forms.sink]
    total = _spent(forms.rows, (sink.drift + sink.loss)[sample])
    total, pending = -total, segments.back(forms.rows)
    for value in reversed(graph.bends):
        row = pending.pop(value, None)
        if row is None:
            continue
        layer = state.layers[value]
        least, row = relaxed(layer, value, row, forms.slope(value, row), forms)
        cost = layer.sink.drift + layer.sink.loss
        total = total + least - _spent(row, cost[sample])
        for source, down in graph.before(value).back(row).items():
            if source in pending:
                reach = state.sources[source].reach[sample]
                total = total - 4 * UNIT * _spent(pending[source].abs() + down.abs(), reach)
            add(pending, source, down)
    if 0 in pending:
        total = total + _at_pixels(state, pending[0], sample, pixel_domain=pixel_domain)
    return total - gamma(64 * (len(graph.bends) + 2)) * total.abs() - _TINY


def relaxed(
    layer: Layer, value: int, row: Tensor, slope: Tensor, forms: Forms
) -> tuple[Tensor, Tensor]:
    """What a function adds to the bounds, ``(F,)``, and the rows on its other side."""
    mask, multiplier = layer.mask[forms.sample], forms.multipliers[value]
    slope = slope * mask
    least = minima(layer, value, row, slope, forms).sum(1)
    reach = (layer.sink.reach * layer.mask).square().sum(1)
    ball, n = layer.ball.square(), row.shape[1]
    cost = ball * (1 + 8 * UNIT) + gamma(4 * n + 64) * (ball + reach)
    doubt = (layer.doubt * layer.mask)[forms.sample]
    return least - multiplier * cost[forms.sample] - _spent(row, doubt), row * slope


def minima(layer: Layer, value: int, row: Tensor, slope: Tensor, forms: Forms) -> Tensor:
    """``min over the box of A e(d) + λ d²`` for each neuron that varies, ``(F, n)``, but for
    rounding."""
    sample, multiplier = forms.sample, forms.multipliers[value][:, None]
    begins, ends = layer.pieces.begins[sample], layer.pieces.ends[sample]
    if forms.cuts is not None:
        begins, ends = _cut(layer, value, begins, ends, forms.cuts, sample)
    slopes, offsets = layer.pieces.slopes[sample], layer.pieces.offsets[sample]
    best: Tensor | None = None
    for piece in range(begins.shape[1]):
        low, high = begins[:, piece], ends[:, piece]
        tilt = row * (slopes[:, piece] - slope)
        place = torch.minimum(torch.maximum(tilt / (-2 * multiplier), low), high)
        found = (tilt + multiplier * place) * place + row * offsets[:, piece]
        found = found - row.abs() * layer.pieces.band[sample, piece]
        found = torch.where(low <= high, found, math.inf)
        best = found if best is None else torch.minimum(best, found)
    assert best is not None
    # Of an empty box anything is true.
    best = torch.where(best == math.inf, 0.0, best)
    return torch.where(layer.mask[sample] != 0, best, 0.0)


def _cut(
    layer: Layer, value: int, begins: Tensor, ends: Tensor, cuts: Cuts, sample: Tensor
) -> tuple[Tensor, Tensor]:
    """The pieces within the halves. A place is a number of ``z``: its two halves overlap by what
    its distance from the sample's value rounds."""
    mine = cuts.bend == value
    form, neuron, above = cuts.form[mine], cuts.neuron[mine], cuts.above[mine]
    at = layer.sink.value[sample[form], neuron]
    slack = 4 * UNIT * (cuts.place[mine].abs() + at.abs())
    place = cuts.place[mine] - at
    low = torch.where(above, place - slack, -math.inf)
    high = torch.where(above, math.inf, place + slack)
    least = torch.full_like(begins[:, 0], -math.inf)
    most = torch.full_like(begins[:, 0], math.inf)
    where = form * begins.shape[2] + neuron
    least = least.flatten().scatter_reduce(0, where, low, "amax").reshape(least.shape)
    most = most.flatten().scatter_reduce(0, where, high, "amin").reshape(most.shape)
    return torch.maximum(begins, least[:, None]), torch.minimum(ends, most[:, None])


def _at_pixels(state: State, row: Tensor, sample: Tensor, *, pixel_domain: bool) -> Tensor:
    """``min row · Δx`` over the ball, or over ball ∩ box with a multiplier near the best one."""
    eps, n = state.eps[sample], row.shape[1]
    size: Tensor = row.norm(dim=1)
    slack = gamma(2 * n + 64)
    if not pixel_domain:
        return -eps * size * (1 + slack)
    source = state.sources[0]
    low, high = source.low[sample], source.high[sample]
    with torch.no_grad():
        wanted = size / (2 * eps).clamp(min=1e-300)
        for _ in range(_PIXEL_STEPS):
            multiplier = wanted.clamp(min=1e-30)[:, None]
            place = torch.minimum(torch.maximum(row / (-2 * multiplier), low), high)
            length: Tensor = place.norm(dim=1)
            wanted = multiplier[:, 0] * length / eps.clamp(min=1e-300)
    terms = row * place + multiplier * place.square()
    spent = multiplier[:, 0] * eps.square()
    sizes = (row * place).abs().sum(1) + multiplier[:, 0] * place.square().sum(1) + spent
    return terms.sum(1) - spent - slack * sizes


def _spent(rows: Tensor, each: Tensor) -> Tensor:
    """``|rows| · each``, rounded up."""
    return (rows.abs() * each).sum(1) * (1 + gamma(rows.shape[1] + 16))
