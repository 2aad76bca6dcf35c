"""The largest radius that certifies: a galloping search, a batch at a time.

A radius counts only if its own bound was positive, so the search need not be trusted and the bound
need not be monotone; the search decides only how near to the best radius it comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Accepts = Callable[[Tensor], Tensor]

_STEPS = 40
_LONGEST_STRIDE = 16.0


def largest_radius(
    accepts: Accepts, start: Tensor, *, stride: float, limit: Tensor, resolution: float
) -> Tensor:
    """The largest radius found that ``accepts``, ``(B,)``; −1 where there is none.

    ``accepts`` takes radii ``(B,)`` and answers ``(B,)``. From ``start`` the search goes up while
    it is accepted, or down while it is refused, by a factor that begins with ``stride`` and squares
    itself; then it halves the bracket on a logarithmic scale down to the ratio ``resolution``.
    Nothing above ``limit``, ``(B,)``, is tried.
    """
    trial = start.clamp(max=limit)
    low, high = torch.full_like(start, -1), torch.full_like(start, torch.inf)
    step = torch.full_like(start, stride)
    for _ in range(_STEPS):
        done = (high <= low * resolution) | (low >= limit) | (trial < 1e-12 * limit)
        if bool(done.all()):
            break
        yes = accepts(trial)
        low = torch.where(yes & ~done, torch.maximum(low, trial), low)
        high = torch.where(~yes & ~done, torch.minimum(high, trial), high)
        inside = torch.isfinite(high) & (low > 0)
        middle = (low.clamp(min=0) * high).sqrt()
        onward = torch.where(yes, trial * step, trial / step).clamp(max=limit)
        trial = torch.where(done, trial, torch.where(inside, middle, onward))
        step = step.square().clamp(max=_LONGEST_STRIDE)
    return low
