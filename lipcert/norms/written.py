"""The norm of a segment of moderate size, from its Gram matrix written out.

Structure multiplies and adds up norms, which loses wherever parts cancel or overlap: circular
padding, residual sums, exponential series. Up to some thousand values on one side the Gram matrix
``G = MᵀM`` or ``MMᵀ`` is found column by column, and a Cholesky factorisation proves its largest
eigenvalue as in ``norms.matrix``; no coin is needed, and nothing has to be known of the structure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.norms.krylov import lanczos
from lipcert.norms.matrix import proven_eigenvalue
from lipcert.norms.weighted import GramMap
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64

# 134 MB for the Gram matrix, and about ten seconds on one core; so many columns at a time.
WRITTEN_SIDE = 4096
_COLUMNS = 128
_STEPS = 60


def rough_norm(mapping: GramMap) -> float:
    """About ``‖M‖₂`` of a batch of one, never above it but for rounding."""
    mapping, by = mapping.normalised()
    places = torch.arange(mapping.support[0].numel(), device=mapping.support.device)
    # A start that is the same in every run and has something of every vector.
    start = torch.sin(1.0 + places.to(torch.float64) * math.sqrt(2)) * mapping.support.flatten()
    start = (start / start.norm().clamp(min=1e-300)).reshape(mapping.support.shape)
    return math.ldexp(float(lanczos(mapping, start, _STEPS)[0]), int(by))


def written_norm(mapping: GramMap, absolute: Tensor) -> float:
    """An upper bound of ``‖M‖₂`` of a batch of one; ``absolute`` ``(1,)`` bounds ``‖ |M| ‖₂``.

    Every computed column is off by ``mapping.rounding`` and what underflows at most, all of them
    together by ``√n`` times that in the Frobenius norm.
    """
    mapping, by = mapping.normalised()
    absolute = absolute * 2.0 ** -float(by)
    size = mapping.support[0].numel()
    unit = torch.eye(size, dtype=torch.float64, device=mapping.support.device)
    gram = torch.cat(
        [
            mapping.gram(part.reshape(-1, *mapping.support.shape[1:])).flatten(1)
            for part in torch.split(unit, _COLUMNS)
        ]
    )
    gram = (gram + gram.mT) / 2
    each = float(OUT64.add(mapping.rounding(absolute), 2 * mapping.underflow))
    off = OUT64.add(
        OUT64.up(each * math.sqrt(size), 2),
        # The mean with the transpose is rounded.
        2 * FLOAT64 * float(OUT64.length(gram[None])),
    )
    top = OUT64.add(proven_eigenvalue(gram, rough_norm(mapping) ** 2), off)
    return math.ldexp(OUT64.up(math.sqrt(top), 1), int(by)) if top < math.inf else math.inf
