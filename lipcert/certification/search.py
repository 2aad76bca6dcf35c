"""The largest radius that certifies: a search by values, a batch at a time.

A radius counts only if its own bound was positive, so the search need not be trusted and the bound
need not be monotone; the search decides only how near to the best radius it comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# How far each sample's bound is above what it has to exceed, at radii ``(B,)``: certified where
# positive. The second tensor, ``(B,)`` too, tells which samples are asked for.
Slack = Callable[[Tensor, Tensor], Tensor]

# A search that brackets a radius halves its ratio at every second step at least; 40 are for
# slacks that are far from smooth. Every step is one preparation of the bound.
_STEPS = 40
# Bounds fall faster than linearly with the radius; this power fits many.
_POWER = 1.5
_STRIDE_UP, _STRIDE_DOWN = 3.0, 6.0
_GRID_BITS = 12


def largest_radius(
    slack: Slack, start: Tensor, *, clean: Tensor, limit: Tensor, resolution: float,
    steps: int = _STEPS, enough: int = _STEPS,
) -> Tensor:  # fmt: skip
    """The largest radius found whose ``slack`` is positive, ``(B,)``; −1 where there is none.

    ``clean``: the slack at radius 0. From ``start`` the search goes where ``clean − c rᵖ`` through
    the last value vanishes, until it has a radius on either side; then to where the chord of the
    two vanishes, or to the middle where chords make no headway. It ends at the ratio
    ``resolution``, after so many ``steps``, or with the first radius after ``enough`` of them.
    Nothing above ``limit``, ``(B,)``, is tried; all but ``start`` and ``limit`` lies on the grid.
    """
    trial = start.clamp(max=limit)
    low, high = torch.full_like(start, -1), torch.full_like(start, torch.inf)
    low_slack, high_slack = torch.full_like(start, torch.nan), torch.full_like(start, -torch.inf)
    clean, nudge = clean.clamp(min=0), resolution**0.25
    alone = torch.zeros_like(start)
    for step in range(steps):
        done = (high <= low * resolution) | (low >= limit) | (trial < 1e-12 * limit)
        if step >= enough:
            done |= low > 0
        # Between two neighbours on the grid.
        done |= torch.isfinite(high) & (trial <= low)
        if bool(done.all()):
            break
        found = torch.where(done, torch.nan, slack(trial, ~done))
        yes, no = (found > 0) & ~done, ~(found > 0) & ~done
        low_slack, low = torch.where(yes, found, low_slack), torch.where(yes, trial, low)
        high_slack, high = torch.where(no, found, high_slack), torch.where(no, trial, high)
        inside = torch.isfinite(high) & (low > 0)
        # Bounds can plunge: what lies far below 0 says little of where they cross it.
        plunge = (-high_slack).clamp(max=clean)
        share = (low_slack / (low_slack + plunge)).nan_to_num(0.0, 0.0, 0.0)
        chord = low + (high - low) * share.clamp(0, 1)
        # A little beyond it, on the side that was not seen last, to close in from both.
        chord = (chord * torch.where(yes, nudge, 1 / nudge)).clamp(low * nudge, high / nudge)
        middle = (low.clamp(min=0) * high).sqrt()
        between = middle if step % 4 == 3 else chord
        fall = (clean - found).clamp(min=1e-3 * clean).minimum(8 * clean)
        factor = (clean / fall) ** (1 / _POWER)
        factor = torch.where(torch.isfinite(found), factor, 1 / _STRIDE_DOWN)
        # Longer and longer strides, where the first are too short to reach the other side.
        alone = torch.where(inside, 0, alone + 1)
        up = (factor * nudge).clamp(min=resolution).pow(alone).clamp(max=_STRIDE_UP)
        down = (factor / nudge).clamp(max=1 / resolution).pow(alone).clamp(min=1 / _STRIDE_DOWN)
        onward = trial * torch.where(yes, up, down)
        onward = on_grid(torch.where(inside, between, onward)).clamp(max=limit)
        trial = torch.where(done, trial, onward)
    return low


def on_grid(radii: Tensor) -> Tensor:
    """Rounds radii down to a coarse grid, so that noise in slacks does not show in them."""
    mantissa, exponent = torch.frexp(radii)
    return torch.ldexp((mantissa * 2**_GRID_BITS).floor() / 2**_GRID_BITS, exponent)
