"""Slopes and multipliers of forms: where to start, and how they are improved."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.audit.proofs.dual import Forms, bound, relaxed
from lipcert.audit.proofs.format import CHORD, TANGENT
from lipcert.audit.proofs.graph import add
from lipcert.audit.proofs.replay import chord_slopes
from lipcert.audit.proofs.state import State
from lipcert.bounds.ascent import StepSize, ascend
from lipcert.proving.hints import SLOPES, Choice, known, single, stored

# Multipliers that are tried first, times ‖A‖ / ball.
_SHARES = (0.3, 0.03, 0.003, 1e-4, 1e-7)
_SLOPE_RATE, _MULTIPLIER_RATE = 0.05, 0.1


@torch.no_grad()
def started(
    state: State, sink: int, sample: Tensor, rows: Tensor, *, pixel_domain: bool
) -> tuple[Forms, Tensor, Tensor]:
    """Of slopes at the sample and of chords the better, with multipliers chosen layer by layer;
    what they prove, and which it was."""
    found = [_walked(state, sink, sample, rows, chord=chord) for chord in (False, True)]
    first, second = (known(bound(state, forms, pixel_domain=pixel_domain)) for forms in found)
    chord = second > first
    rules = torch.where(chord, CHORD, TANGENT)
    column, chords = chord[:, None], found[1].falling
    assert chords is not None
    forms = Forms(
        sink, sample, rows, found[0].slopes,
        {v: torch.where(chord, found[1].multipliers[v], m)
         for v, m in found[0].multipliers.items()},
        {v: torch.where(column, chords[v], s) for v, s in found[0].slopes.items()},
    )  # fmt: skip
    return forms, torch.maximum(first, second), rules


def _walked(state: State, sink: int, sample: Tensor, rows: Tensor, *, chord: bool) -> Forms:
    """Slopes by one rule, and for each function the multiplier that gives most there."""
    graph = state.graph
    slopes = {v: layer.pieces.tangent[sample] for v, layer in state.layers.items()}
    falling = {v: chord_slopes(state, v)[sample] for v in state.layers}
    zero = torch.zeros(len(rows), dtype=torch.float64)
    multipliers = dict.fromkeys(state.layers, zero + 1e-30)
    forms = Forms(sink, sample, rows, slopes, multipliers, falling if chord else None)
    pending = graph.segments[sink].back(rows)
    for value in reversed(graph.bends):
        row = pending.pop(value, None)
        if row is None:
            continue
        layer = state.layers[value]
        ball = layer.ball[sample].clamp(min=1e-30)
        base = (row * layer.mask[sample]).norm(dim=1).clamp(min=1e-20) / ball
        best, kept = torch.full_like(zero, -math.inf), base
        slope, down = forms.slope(value, row), row
        for share in _SHARES:
            multipliers[value] = single(share * base)
            least, down = relaxed(layer, value, row, slope, forms)
            better = least > best
            best = torch.where(better, least, best)
            kept = torch.where(better, multipliers[value], kept)
        multipliers[value] = kept
        for source, part in graph.before(value).back(down).items():
            add(pending, source, part)
    return forms


def resolved(state: State, forms: Forms, rows: Tensor) -> Choice:
    """Slopes and multipliers of some forms as plain numbers."""
    slopes, graph = {}, state.graph
    pending = graph.segments[forms.sink].back(forms.rows[rows])
    for value in reversed(graph.bends):
        row = pending.pop(value, None)
        slope = forms.slopes[value][rows]
        if row is not None:
            assert forms.falling is not None
            slope = torch.where(row < 0, forms.falling[value][rows], slope)
            slope = slope * state.layers[value].mask[forms.sample[rows]]
            for source, part in graph.before(value).back(row * slope).items():
                add(pending, source, part)
        slopes[value] = slope.clamp(*SLOPES)
    return Choice(slopes, {v: m[rows] for v, m in forms.multipliers.items()})


def ascended(
    state: State, forms: Forms, start: Choice, steps: int, *, pixel_domain: bool
) -> tuple[Tensor, Choice]:
    """Gradient ascent: what slopes of one byte and multipliers in float32 prove, and these."""
    before = [v for v in state.graph.bends if v in start.slopes]

    def value_of(numbers: list[Tensor]) -> Tensor:
        slopes = dict(zip(before, numbers[: len(before)], strict=True))
        powers = {v: n.exp() for v, n in zip(before, numbers[len(before) :], strict=True)}
        now = replace(forms, slopes=slopes, multipliers=powers, falling=None)
        return bound(state, now, pixel_domain=pixel_domain)

    logs = [start.multipliers[v].clamp(min=1e-30).log() for v in before]
    kinds = StepSize(_SLOPE_RATE, SLOPES), StepSize(_MULTIPLIER_RATE)
    step_sizes = [kind for kind in kinds for _ in before]
    numbers = [*(start.slopes[v] for v in before), *logs]
    if before:
        _, kept = ascend(value_of, numbers, step_sizes, steps)
        numbers = [number.detach() for number in kept]
    choice = Choice(
        {v: stored(n) for v, n in zip(before, numbers[: len(before)], strict=True)},
        {v: single(n.exp()) for v, n in zip(before, numbers[len(before) :], strict=True)},
    )
    with torch.no_grad():
        last = replace(forms, slopes=choice.slopes, multipliers=choice.multipliers, falling=None)
        return known(bound(state, last, pixel_domain=pixel_domain)), choice
