"""The largest value of a linear objective over a ball that is cut by a box."""

from __future__ import annotations

import torch
from torch import Tensor

from lipcert.numbers import OUT64, Outward


def ball_box_support(
    objective: Tensor, lower: Tensor, upper: Tensor, radius: Tensor, own: Outward = OUT64
) -> Tensor:
    """An upper bound of ``max c·u`` over ``‖u‖₂ ≤ ρ`` and ``l ≤ u ≤ h`` (``l ≤ 0 ≤ h``).

    ``objective``: ``(B, R, n)`` holds R objectives a sample, ``lower`` and ``upper`` ``(B, n)``,
    ``radius`` ``(B,)``; the result is ``(B, R)``. By weak duality, for every ``λ > 0``,

        max c·u ≤ λρ²/2 + Σ_i max_{l_i ≤ u_i ≤ h_i} (c_i u_i − λ u_i²/2),

    with equality at the multiplier of the optimum. There ``u_i = min(|c_i|/λ, b_i)``, ``b`` the
    wall on the side of ``c_i``: neurons reach their walls in the order of ``b_i/|c_i|``, and a
    sort finds how many do. A multiplier that rounding moved is as sound as any other, and no
    gradient goes through it: at the best one the bound's derivative by it is 0. All terms are 0 or
    more, each of a few roundings and their sum of ``n``.
    """
    rho = radius[:, None, None]
    size = objective.abs()
    # A wall that rounding put on the wrong side of 0 is at 0.
    wall = torch.where(objective > 0, upper[:, None], -lower[:, None]).clamp(min=0)
    dual = _dual(size, wall, rho, _inverse(size, wall, rho))
    corner = (size * wall).sum(-1)
    plain = (rho * size.norm(dim=-1, keepdim=True)).squeeze(-1)
    best = torch.minimum(torch.minimum(dual, plain), corner)
    return own.up(best, objective.shape[-1] + 32)


@torch.no_grad()
def _inverse(size: Tensor, wall: Tensor, rho: Tensor) -> Tensor:
    """``1/λ`` of the best multiplier: ``(B, R, 1)``."""
    ratio = torch.where(size > 0, wall / torch.where(size > 0, size, 1), torch.inf)
    ratio, order = ratio.sort(dim=-1)
    squares = size.gather(-1, order).square()
    walls = wall.gather(-1, order)
    spent = torch.where(ratio < torch.inf, walls.square(), 0).cumsum(-1)
    # With the first k neurons at their walls the others share what is left of ρ².
    left = squares.flip(-1).cumsum(-1).flip(-1) - squares
    room = rho.square() - spent
    scale = (room.clamp(min=0) / torch.where(left > 0, left, 1)).sqrt()
    start = rho / squares.sum(-1, keepdim=True).sqrt().clamp(min=torch.finfo(size.dtype).tiny)
    inverse = torch.cat([start, scale], -1)
    # k neurons at the wall is consistent where 1/λ reaches the k-th wall but not the next.
    reached = torch.nn.functional.pad(ratio, (1, 0), value=0)
    next_wall = torch.nn.functional.pad(ratio, (0, 1), value=torch.inf)
    fits = (inverse >= reached) & (inverse <= next_wall)
    fits[..., 1:] &= room > 0
    chosen = torch.where(fits, inverse, 0).amax(-1, keepdim=True)
    # No objective is so small that this has no end.
    return torch.where(chosen > 0, chosen, start).clamp(max=1 / torch.finfo(size.dtype).tiny)


def _dual(size: Tensor, wall: Tensor, rho: Tensor, inverse: Tensor) -> Tensor:
    """The right-hand side above at ``λ = 1/inverse``; infinite where there is no such λ."""
    known = inverse.squeeze(-1) > 0
    inverse = torch.where(inverse > 0, inverse, 1)
    u = torch.minimum(size * inverse, wall)
    # c u − λu²/2 = u (c − λu/2) with λu ≤ c: no cancellation.
    terms = u * (size - u / (2 * inverse))
    value = rho.squeeze(-1).square() / (2 * inverse.squeeze(-1)) + terms.sum(-1)
    return torch.where(known, value, torch.inf)
