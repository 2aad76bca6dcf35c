"""Deterministic upper bounds of the spectral norms of explicit matrices.

An eigenvalue routine proposes, a Cholesky factorisation disposes: if floating-point Cholesky of
``s I − G`` runs to its end, then ``λ_max(G) ≤ s + γ_{m+2}/(1 − γ_{m+2}) · tr(s I − G)`` (Rump,
"Verification of positive definiteness", BIT 2006), whatever the eigenvalue routine did.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.norms.scaling import divided, exponents, lifted
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64, FLOAT64_TINY, gamma


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """Upper bounds of the largest eigenvalues of positive semidefinite ``(B, m, m)`` matrices.

    Infinite where an entry is not finite. About ``m² u`` above the truth, relatively.
    """
    gram, size = gram.double(), gram.shape[-1]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    finite = torch.isfinite(gram).flatten(1).all(1)
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    safe = torch.where(finite[:, None, None], gram, eye)
    top = _guess(safe).clamp(min=0)
    # The trace is a bound of its own, for any matrix that no guess passes for.
    bound = OUT64.up(trace, size) + FLOAT64_TINY
    relative = gamma(size + 2) / (1 - gamma(size + 2))
    # Tight first; a guess that does not pass is moved up, for all as one.
    for slack in (8 * size * FLOAT64, 1e-9, 1e-6):
        guess = top * (1 + slack) + FLOAT64_TINY
        rest = guess[:, None, None] * eye - safe
        _, failed = torch.linalg.cholesky_ex(rest)
        shift = relative * rest.diagonal(dim1=-2, dim2=-1).sum(-1).abs()
        # The differences on the diagonal are rounded by ``u`` times the guess.
        proven = OUT64.add(OUT64.up(guess, 1), OUT64.up(shift, size + 2))
        bound = torch.where(failed == 0, torch.minimum(bound, proven), bound)
        # Another look costs a device less than an answer.
        if failed.device.type == "cpu" and not bool(failed.any()):
            break
    return torch.where(finite, bound, torch.inf)


def proven_eigenvalue(gram: Tensor, guess: float) -> float:
    """An upper bound of the largest eigenvalue of one large symmetric matrix, near the ``guess``,
    which may be anything: what Cholesky does not prove is proposed once more a little larger.
    Infinite where nothing up to twice the guess is proven."""
    if not (bool(torch.isfinite(gram).all()) and 0 <= guess < math.inf):
        return math.inf
    size = len(gram)
    relative = gamma(size + 2) / (1 - gamma(size + 2))
    for slack in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0):
        proposed = guess * (1 + slack) + FLOAT64_TINY
        rest = -gram
        rest.diagonal().add_(proposed)
        shift = relative * float(rest.diagonal().abs().sum())
        _, failed = torch.linalg.cholesky_ex(rest)
        if not int(failed):
            # The diagonal of the rest was rounded itself.
            return OUT64.add(OUT64.up(proposed, 1), OUT64.up(shift, size + 2))
    return math.inf


def _guess(gram: Tensor) -> Tensor:
    """The largest eigenvalues, right or not; row sums where the routine gives up."""
    try:
        found: Tensor = torch.linalg.eigvalsh(gram)
    except RuntimeError:  # LinAlgError is one
        return gram.abs().sum(-1).amax(-1)
    return found[:, -1]


def spectral_norm(matrices: Tensor) -> Tensor:
    """Upper bounds of ``‖M‖₂`` for ``(B, m, n)`` matrices, infinite where not finite; in float64.

    ``G = M Mᵀ`` on the smaller side, computed within ``γ ‖M‖_F²`` of the truth.
    """
    matrices = matrices.double()
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    # Scaled to 1, so that no square overflows or underflows.
    largest = matrices.abs().amax((1, 2)) if matrices.numel() else matrices.new_zeros(len(matrices))
    by = exponents(largest)
    unit = divided(matrices, by[:, None, None])
    gram = unit @ unit.mT
    frobenius = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    formed = OUT64.up(frobenius, 1) * gamma(matrices.shape[2] + 8)
    eigenvalue = OUT64.add(largest_eigenvalue(gram), formed)
    # What is lost to underflow in the Gram matrix is less than its smallest rounding error.
    bound = torch.where(largest > 0, lifted(OUT64.root(eigenvalue), by), 0)
    finite = torch.isfinite(matrices).all(2).all(1)
    return torch.where(finite, bound, torch.inf)
