"""Upper bounds of norms, by the checker's own coins.

Every map is known by its Gram map ``G = M Mᵀ`` on the side of the sink alone: ``‖M‖² = λ_max(G)``.
Small ones are written down and their eigenvalues taken; of others the largest eigenvalue is bounded
with a stated probability of failing, over coins of the system that no file can know.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

UNIT = 2.0**-53
# What numbers too small for float64 can cost a norm, see ``graph.STEEPEST``.
UNDERFLOW = 2.0**-250
# Where no more neurons count the Gram matrix is written down: coins would take as many products.
SMALL = 128
# How far above the truth to aim where the scale is well met.
EXCESS = 0.01
_VECTORS, _TRIES = 3, 4
_LEAST, _MOST = 1e-200, 1e200

# ``G v`` for the rows of ``v`` ``(B, n)``, by the entries of its parts or by their magnitudes.
Gram = Callable[[Tensor, bool], Tensor]


def gamma(terms: float, unit: float = UNIT) -> float:
    """What so many roundings can change, relative to the sum of magnitudes; infinite where that
    says nothing."""
    product = terms * unit
    return product / (1 - product) if product < 1 else math.inf


class Coins:
    """Unit vectors from the system's own entropy, and how much risk is left for each norm."""

    def __init__(self, risk: float, norms: int) -> None:
        self.each = risk / max(1, norms)
        self.spent = 0.0
        self._random = np.random.default_rng()

    def unit_vectors(self, rows: int, size: int) -> Tensor:
        drawn = torch.from_numpy(self._random.standard_normal((rows, size)))
        unit: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
        return unit


def exact_norm(gram: Gram, mask: Tensor, terms: float) -> Tensor:
    """``‖M‖₂`` from the Gram matrix of the few neurons of each row that ``mask`` ``(B, n)`` marks:
    the others' rows of ``M`` are 0. ``G v`` is computed within ``γ_terms |G| |v|``.

    LAPACK's eigenvalues err by ``p(m) u ‖G‖`` with a modest ``p``; ``16 m`` is charged, of the
    largest row sum of ``|G|``, which is no less than its norm.
    """
    count = int((mask != 0).sum(1).max())
    if count == 0:
        return mask.new_zeros(len(mask))
    # The marked ones first; a row with fewer is filled up with others, which have only zeros.
    chosen = (mask == 0).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    columns = []
    for place in range(count):
        unit = torch.zeros_like(mask).scatter_(1, chosen[:, place : place + 1], 1.0)
        columns.append(gram(unit, False).gather(1, chosen))
    matrix = torch.stack(columns, 2)
    largest_row = gram(torch.ones_like(mask), True).amax(1) * (1 + gamma(terms))
    known = torch.isfinite(matrix).flatten(1).all(1) & torch.isfinite(largest_row)
    safe = torch.where(known[:, None, None], matrix, 0.0)
    largest = torch.linalg.eigvalsh((safe + safe.mT) / 2)[:, -1].clamp(min=0)
    square = largest + (gamma(terms + 16) + 16 * count * UNIT) * largest_row
    return torch.where(known, square.sqrt() * (1 + 8 * UNIT), math.inf)


def norm(
    gram: Gram, mask: Tensor, scale: Tensor, coins: Coins, terms: float, excess: float = EXCESS
) -> Tensor:
    """``‖M‖₂`` from above, ``(B,)``: exactly where few neurons count, else by coins."""
    few = (mask != 0).sum(1) <= SMALL
    if bool(few.all()):
        return exact_norm(gram, mask, terms) + UNDERFLOW
    return randomised_norm(gram, mask.shape[1], scale, coins, terms, excess) + UNDERFLOW


def estimate(gram: Gram, rows: int, size: int, steps: int) -> Tensor:
    """About ``‖M‖²``, from below: the largest Ritz value of a Krylov space, ``(B,)``."""
    places = torch.arange(size, dtype=torch.float64)
    v = torch.cos(1 + 0.7 * places * places).expand(rows, -1)
    v = v / v.norm(dim=1, keepdim=True)
    previous, off = torch.zeros_like(v), v.new_zeros(rows, 1)
    main, beside = [], []
    for _ in range(min(steps, size)):
        w = gram(v, False) - off * previous
        along = (w * v).sum(1, keepdim=True)
        w = w - along * v
        off = w.norm(dim=1, keepdim=True)
        alive = off > 1e-9 * along.abs()
        main.append(along[:, 0])
        beside.append(torch.where(alive, off, 0.0)[:, 0])
        previous, v = v, torch.where(alive, w / torch.where(alive, off, 1.0), 0.0)
        off = torch.where(alive, off, 0.0)
    matrix = torch.diag_embed(torch.stack(main, 1))
    if len(main) > 1:
        side = torch.stack(beside[:-1], 1)
        matrix = matrix + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    values: Tensor = torch.linalg.eigvalsh(matrix.nan_to_num(0.0, 0.0, 0.0))
    return values[:, -1].clamp(min=0)


def randomised_norm(
    gram: Gram, size: int, scale: Tensor, coins: Coins, terms: float, excess: float = EXCESS
) -> Tensor:
    """``‖M‖₂`` from above, ``(B,)``, each failing with probability ``coins.each`` at most.

    ``scale``: any ``t > 0`` that does not depend on the coins, best a little above ``‖M‖²``.
    ``terms``: ``G v`` is computed within ``γ_terms |G| |v|``.

    For ``v`` uniform on the sphere of dimension n, its component on the top eigenvector is below
    ``τ`` with probability at most ``δ = τ √(2n/π)``. Else ``y = ‖T_k(2G/t − I) v‖`` is at least
    ``τ cosh(kθ)``, with ``2λ/t − 1 = cosh θ``, so that ``λ ≤ t/2 (1 + cosh(arccosh(y/τ)/k))``.

    Rounding: what step j of ``T_{j+1} = 2X T_j − T_{j−1}`` adds, ``e_j``, arrives at step k times
    ``U_{k−j} = sinh((k−j+1)θ)/sinh θ``, which is at most ``cosh(kθ) e^{−(j−1)θ}/sinh θ``. With
    ``g(θ) = Σ_j e_j e^{−(j−1)θ}/sinh θ``, which falls, and any ``θ0``: either ``θ ≤ θ0``, or
    ``cosh(kθ) ≤ y/(τ − g(θ0))``.

    Three independent vectors must all fail for the largest bound to fail, each at ``∛δ``: one
    alone would have to tell a component of about ``δ/√n`` from rounding.
    """
    coins.spent += len(scale) * coins.each
    absolute = _absolute(gram, scale.new_ones(len(scale), size), terms)
    delta = coins.each ** (1 / _VECTORS)
    bounds = [
        _by_one_vector(gram, size, scale, coins, delta, terms, absolute, excess)
        for _ in range(_VECTORS)
    ]
    return torch.stack(bounds).amax(0)


def _absolute(gram: Gram, q: Tensor, terms: float) -> Tensor:
    """``‖ |G| ‖₂``, at most ``max_k (|G| q)_k / q_k`` for any ``q > 0`` as ``|G|`` is symmetric."""
    best = torch.full((len(q),), math.inf, dtype=torch.float64)
    for _ in range(_TRIES):
        rows = gram(q, True)
        best = torch.minimum(best, (rows / q).amax(1).nan_to_num(math.inf, math.inf))
        q = (rows / rows.amax(1, keepdim=True).clamp(min=1e-300)).clamp(min=1e-3)
    return best * (1 + gamma(terms + 8))


def _by_one_vector(
    gram: Gram, size: int, scale: Tensor, coins: Coins, delta: float, terms: float,
    absolute: Tensor, excess: float,
) -> Tensor:  # fmt: skip
    rows = len(scale)
    tau = delta * math.sqrt(math.pi / (2 * size)) - 64 * UNIT
    degree = max(4, math.ceil(math.log(2 / max(tau, 1e-300)) / math.sqrt(8 * excess)))
    t = scale.to(torch.float64)
    column = t[:, None]
    before = coins.unit_vectors(rows, size)
    now = gram(before, False) * (2 / column) - before
    lengths, errors = [before.norm(dim=1), now.norm(dim=1)], []
    per_gram = gamma(terms + 8) * absolute
    errors.append(4 / t * per_gram * lengths[0] + 16 * UNIT * (lengths[1] + 3 * lengths[0]))
    for _ in range(degree - 1):
        following = gram(now, False) * (4 / column) - 2 * now - before
        before, now = now, following
        lengths.append(now.norm(dim=1))
        made = 16 * UNIT * (lengths[-1] + 4 * lengths[-2] + lengths[-3])
        errors.append(4 / t * per_gram * lengths[-2] + made)
    slack = 1 + gamma(2 * size + 64)
    y = lengths[-1] * slack
    first = torch.acosh((y / max(tau, UNIT)).clamp(min=1)).clamp(min=1.0) / degree
    decay = torch.exp(-torch.arange(degree)[:, None] * first)
    spoiled = (torch.stack(errors) * decay).sum(0) * slack * (1 + gamma(degree)) / torch.sinh(first)
    kept = tau - spoiled
    theta = torch.maximum(first, torch.acosh((y / kept).clamp(min=1)) / degree)
    bound = (t / 2 * (1 + torch.cosh(theta))).sqrt() * (1 + 32 * UNIT)
    sound = (kept > 0) & torch.isfinite(y) & (t > _LEAST) & (t < _MOST) & torch.isfinite(bound)
    return torch.where(sound, bound, math.inf)
