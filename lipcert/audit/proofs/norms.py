"""Upper bounds of norms, by the checker's own coins.

Every map is known by its Gram map ``G = M Mᵀ`` on the side of the sink alone: ``‖M‖² = λ_max(G)``,
which is bounded with a stated probability of failing, over coins of the system that no file can
know.
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
# How far above the truth to aim where the scale is well met.
EXCESS = 0.005
_VECTORS, _TRIES = 5, 4
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


def near(gram: Gram, size: int, steps: int = 60) -> Tensor:
    """About ``‖M‖²``, ``(1,)``, from below: ``‖G v‖`` of a unit vector after so many steps of the
    power method."""
    places = torch.arange(size, dtype=torch.float64)
    v = torch.cos(1 + 0.7 * places * places)[None]
    for _ in range(steps):
        v = gram(v / v.norm().clamp(min=1e-300), False)
    return torch.as_tensor(v.norm(dim=1))


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

    Five independent vectors must all fail for the largest bound to fail, each with the fifth root
    of the probability: one alone would have to tell a component of ``δ/√n`` from rounding.
    """
    coins.spent += len(scale) * coins.each
    absolute = _absolute(gram, scale.new_ones(len(scale), size), terms)
    delta = coins.each ** (1 / _VECTORS)
    bounds = [
        _by_one_vector(gram, size, scale, coins, delta, terms, absolute, excess)
        for _ in range(_VECTORS)
    ]
    return torch.stack(bounds).amax(0) + UNDERFLOW


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
