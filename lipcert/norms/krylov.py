"""Norms of matrix-free maps: estimates from below, and a randomised bound from above.

Power iteration and Lanczos converge from below and certify nothing; they only choose the scale
``t`` of the bound, which is right for every ``t``.

**The bound** (``chebyshev_bound``), of a Gram map ``G`` of dimension n by P probes, and its proof.

A probe ``v`` has a component below ``τ`` on the top eigenvector ``u`` with probability at most
``δ = τ sqrt(2n/π)``. Else ``y = ‖T_k(X) v‖ ≥ τ T_k(x)``, where ``X = 2G/t − I`` and
``x = 2λ/t − 1`` is its eigenvalue there; with ``x = cosh θ`` that is ``cosh(kθ) ≤ y/τ``, and
``λ = t/2 · (1 + cosh θ)``. All P probes must fail for the largest of their bounds to fail:
``δ^P``. Where ``x < 1``, and ``θ`` is imaginary, ``λ < t``, and no bound here is below ``t``.

Rounding, step by step. What is computed is ``w_0 = v``, ``w_1 = X w_0 + e_1`` and
``w_j = 2X w_{j−1} − w_{j−2} + e_j``.

1. The recurrence is linear. An error ``e_j`` alone, made at step j and followed by none, is the
   start ``0, e_j`` of the same recurrence, which after k − j more steps is ``U_{k−j}(X) e_j``,
   the Chebyshev polynomial of the second kind: ``1, 2X, 4X² − I, …``; for j = 1 too. So
   ``w_k = T_k(X) v + Σ_{j=1..k} U_{k−j}(X) e_j``.
2. Only the component along ``u`` counts: ``‖w_k‖ ≥ |⟨u, w_k⟩|``, whatever the others are, and
   ``⟨u, U_m(X) e⟩ = U_m(x) ⟨u, e⟩`` as ``X`` is symmetric. No other eigenvalue enters.
3. With ``ε_j ≥ ‖e_j‖`` and ``U_m(cosh θ) = sinh((m+1)θ)/sinh θ``:
   ``‖w_k‖ ≥ τ cosh(kθ) − Σ_j ε_j sinh((k−j+1)θ)/sinh θ``.
4. ``sinh(aθ)/cosh(kθ) ≤ e^{−(k−a)θ}`` for ``a ≤ k``, so that the sum is at most
   ``cosh(kθ) g(θ)`` with ``g(θ) = Σ_j ε_j e^{−(j−1)θ}/sinh θ``, which falls as ``θ`` grows.
5. For any ``θ₀ > 0``, then, ``θ ≤ θ₀`` or ``cosh(kθ) ≤ ‖w_k‖ / (τ − g(θ₀))``.

Step j is made of vectors no longer than ``L_j = max(‖w_{j−2}‖, ‖w_{j−1}‖, ‖w_j‖)``. Its Gram
map errs by ``L_j`` times ``mapping.rounding`` and what underflows; the product with ``4/t``,
itself rounded, by two roundings more, for which there is room in that; the two differences, by
one rounding each of their result and one of the first result again, ``3u L_j`` in all, for
which ``16u`` are charged. (Step 1 has ``2/t`` and one difference.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.norms.weighted import GramMap
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64, FLOAT64_TINY

_SQUARINGS = 16


def power_iteration(mapping: GramMap, start: Tensor, steps: int) -> Tensor:
    """The published estimate of ``‖M‖₂``: ``(B,)``, never above the truth but for rounding.

    ``steps`` applications of the Gram map to ``start``; a start that the map sends to 0 gives 0
    for this one call, and nothing is stored.
    """
    v, square = start, start.new_zeros(start.shape[0])
    for _ in range(steps):
        v = mapping.gram(v)
        square = _length(v)
        v = v / _column(torch.where(square > 0, square, 1), v)
    return square.sqrt()


def stretched(mapping: GramMap, start: Tensor, steps: int) -> Tensor:
    """About the unit vectors that the Gram map stretches most, ``(B, *shape)``, by so many power
    steps; 0 where the map vanishes."""
    v = start
    for _ in range(steps):
        v = mapping.gram(v)
        size = _length(v)
        v = v / _column(torch.where(size > 0, size, 1), v)
    return v


def lanczos(mapping: GramMap, start: Tensor, steps: int) -> Tensor:
    """The largest Ritz value after ``steps``, as an estimate of ``‖M‖₂`` from below: ``(B,)``."""
    steps = min(steps, math.prod(start.shape[1:]))
    previous, v = torch.zeros_like(start), start
    off = start.new_zeros(start.shape[0])
    diagonal, beside = [], []
    for _ in range(steps):
        w = mapping.gram(v).addcmul_(_column(off, v), previous, value=-1)
        along = torch.linalg.vecdot(w.flatten(1), v.flatten(1))
        w = w.addcmul_(_column(along, v), v, value=-1)
        off = _length(w)
        diagonal.append(along)
        beside.append(off)
        # An invariant subspace: what is left is noise, and the next vectors are 0.
        alive = off > 1e-6 * along.abs()
        off = torch.where(alive, off, 0)
        previous, v = v, w / _column(torch.where(alive, off, torch.inf), w)
    main = torch.stack(diagonal, 1)
    side = torch.stack(beside[:-1], 1) if steps > 1 else main[:, :0]
    side = torch.where(side > 1e-6 * main[:, : steps - 1].abs(), side, 0)
    tri = torch.diag_embed(main) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    tri = torch.where(torch.isfinite(tri).flatten(1).all(1)[:, None, None], tri, 0)
    return _largest(tri.double()).sqrt().to(start.dtype)


def _largest(matrices: Tensor) -> Tensor:
    """The largest eigenvalues of positive semidefinite ``(B, m, m)``, about ``2^-18`` from below.

    By squaring: with ``K = 2^16`` and ``P = M^K``, ``‖M P‖_F/‖P‖_F`` is a mean of the eigenvalues
    with weights ``λ^2K``. Libraries of GPUs find small ones one by one, and look at each.
    """
    power = matrices
    for step in range(_SQUARINGS):
        if step % 4 == 0:
            # The largest entry is on the diagonal, and at most the largest eigenvalue.
            most = power.abs().amax((1, 2), keepdim=True)
            power = power / torch.where(most > 0, most, 1)
        power = power @ power
    lengths = [torch.linalg.vector_norm(one, dim=(1, 2)) for one in (matrices @ power, power)]
    return torch.where(lengths[1] > 0, lengths[0] / lengths[1], 0)


def chebyshev_bound(
    mapping: GramMap,
    probes: Tensor,
    scale: Tensor,
    *,
    failure_probability: float,
    degree: int,
    absolute: Tensor,
) -> Tensor:
    """An upper bound of ``‖M‖₂`` that fails with at most this probability: ``(B,)``, float64.

    ``probes``: ``(P·B, *shape)``, for each sample P independent uniform unit vectors on the
    support of the Gram map ``G``, of dimension n. ``scale``: ``t > 0``, near ``‖M‖²``.
    ``absolute``: an upper bound of ``‖ |M| ‖₂``.

    The proof is at the head of this module. The same probes may be asked again with any other scale
    and degree: what can fail is that their component along ``u`` is small, whatever polynomial they
    are given to.
    """
    batch = mapping.batch
    copies = probes.shape[0] // batch
    size = (mapping.support != 0).flatten(1).sum(1).to(torch.float64).repeat(copies)
    t = scale.to(torch.float64).repeat(copies)
    single = failure_probability ** (1 / copies)
    # The probe itself has unit length, and its place on the sphere, only up to rounding.
    tau = single * torch.sqrt(math.pi / (2 * size.clamp(min=1))) - 32 * FLOAT64

    sizes = _chebyshev_lengths(mapping, probes, t, degree)
    y = sizes[-1]
    first = torch.acosh((y / tau.clamp(min=FLOAT64)).clamp(min=1)) / degree
    first = torch.maximum(first, torch.full_like(first, 1 / degree))
    errors = _step_errors(mapping, absolute, sizes, t, size)
    decay = torch.exp(-torch.arange(degree, device=t.device)[:, None] * first)
    # Exponentials and hyperbolic functions are right to a few units.
    kept = tau - OUT64.up((errors * decay).sum(0) / torch.sinh(first), 2 * degree + 16)
    theta = torch.acosh((y / kept).clamp(min=1)) / degree
    # Of at least 1/degree it has a few roundings, of which ``cosh`` makes θ times as many.
    theta = OUT64.up(torch.maximum(first, theta), 16)
    bound = OUT64.root(OUT64.up(t / 2 * (1 + torch.cosh(theta)), 16))
    sound = (kept > 0) & torch.isfinite(y) & torch.isfinite(t) & (t > 1e-200) & (t < 1e200)
    bound = torch.where(sound & torch.isfinite(bound), bound, torch.inf)
    bound = bound.reshape(copies, batch).amax(0)
    return torch.where(size[:batch] == 0, 0, bound)


def _chebyshev_lengths(mapping: GramMap, probes: Tensor, t: Tensor, degree: int) -> Tensor:
    """``‖w_0‖ … ‖w_k‖`` of the recurrence, from above: ``(k + 1, P·B)``."""
    before, now = probes, mapping.gram(probes).mul_(_column(2 / t, probes)).sub_(probes)
    lengths = [_length(before), _length(now)]
    twice = _column(4 / t, now)
    for _ in range(degree - 1):
        following = mapping.gram(now).mul_(twice).sub_(now, alpha=2).sub_(before)
        before, now = now, following
        lengths.append(_length(now))
    return OUT64.up(torch.stack(lengths), math.prod(now.shape[1:]) + 1)


def _step_errors(
    mapping: GramMap, absolute: Tensor, sizes: Tensor, t: Tensor, dimension: Tensor
) -> Tensor:
    """``ε_1 … ε_k``, what each step of the recurrence may round: ``(k, P·B)``."""
    copies = len(t) // mapping.batch
    lost = mapping.underflow.to(torch.float64).repeat(copies)
    per_gram = OUT64.add(mapping.rounding(absolute).repeat(copies), lost)
    # Step j starts from the two vectors before it.
    longest = sizes.unfold(0, 2, 1).amax(2)
    longest = torch.cat([longest[:1], torch.maximum(longest[1:], longest[:-1])])
    per_step = OUT64.add(OUT64.quotient(4 * per_gram, t), 16 * FLOAT64)
    fresh = OUT64.add(OUT64.quotient(4 * lost, t), FLOAT64_TINY * dimension)
    return OUT64.add(OUT64.times(longest, per_step), fresh)


def degree_for(excess: float, failure_probability: float, copies: int, dimension: int) -> int:
    """The polynomial degree at which the bound is about this much above a well-met scale."""
    tau = failure_probability ** (1 / copies) * math.sqrt(math.pi / (2 * max(1, dimension)))
    return max(4, math.ceil(math.log(2 / tau) / math.sqrt(8 * excess)))


def _length(v: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return length


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))
