"""Chains of narrow nodes, from their rows: Gram matrices in place of matrix-free maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.bounds.anchored import State, select, to_dtype
from lipcert.bounds.chain import (
    BALANCING,
    Chain,
    balance,
    chain_sources,
    euclidean,
    middle_and_half,
    radii_of,
    safe,
)
from lipcert.bounds.reverse import RigorousSweep, length
from lipcert.network.activations import Elementwise
from lipcert.norms import largest_eigenvalue
from lipcert.rounding import FLOAT64, gamma

_CHUNK = 2**25
# The least weight of a drift's block, and of one beside the heaviest.
_LEAST = 1e-12


def explicit_chain(sweep: RigorousSweep, node: int, state: State, mask: Tensor) -> Chain:
    """The chain of a narrow node, from its rows: Gram matrices in place of matrix-free maps.

    ``P_i`` is computed within ``E_i`` and its Gram matrix, in float64, within ``γ ‖P_i‖_F²``, hence
    ``‖[√x_i P_i]‖ ≤ (λ_max(Σ x_i P_i P_iᵀ) + Σ x_i γ ‖P_i‖_F²)^½ + (Σ x_i ‖E_i‖_F²)^½``. The blocks of
    drifts, whose balls are small, take their Frobenius norms ``F``; beside a row of norm N they cost
    least with weights ``x ~ d / F``.
    """
    sources, dtype = chain_sources(sweep.network, node), sweep.network.anchor.dtype
    sizes = [math.prod(sweep.network.nodes[i].shape) for i in sources]
    chunk = max(1, _CHUNK // (mask[0].numel() * sum(sizes)))
    parts = []
    for some in torch.split(torch.arange(len(mask), device=mask.device), chunk):
        own = to_dtype(select({i: state[i] for i in sources[1:]}, some), dtype)
        parts.append(_grams(sweep, node, sources, own, mask[some].to(dtype)))
    grams, squares, errors, passed = (torch.cat(part) for part in zip(*parts, strict=True))
    radii, drifts = radii_of(sources, state).tensor_split([len(sources)], 1)
    weights = torch.ones_like(squares)
    u = torch.cos(1.0 + torch.arange(grams.shape[-1]).to(grams)).expand(len(mask), -1)
    for step in range(BALANCING):
        gram = (weights[:, :, None, None] * grams).sum(1)
        for _ in range(8):
            u = torch.einsum("bij,bj->bi", gram, u)
            u = u / safe(euclidean(u))[:, None]
        seen = torch.einsum("bi,bsij,bj->bs", u, grams, u).clamp(min=0).sqrt()
        weights = balance(weights, radii, seen, first=step == 0)
    gram = (weights[:, :, None, None] * grams).sum(1)
    slack = gamma(max(sizes) + 8) + gamma(len(sources) + 4)
    top = largest_eigenvalue(gram) + slack * (weights * squares).sum(1)
    norm = top.sqrt() + (weights * errors).sum(1).sqrt()
    share = (norm / safe((radii.square() / weights).sum(1).sqrt()))[:, None]
    heaviest = weights.amax(1, keepdim=True)
    others = (share * drifts / safe(passed.sqrt())).nan_to_num(1.0).clamp(_LEAST, 1.0 / _LEAST)
    others = others.maximum(_LEAST * heaviest)
    norm = (norm.square() + (others * passed).sum(1)).sqrt() * (1 + gamma(4 * len(sources) + 32))
    return Chain(sources, torch.cat([weights, others], 1), norm)


def _grams(
    sweep: RigorousSweep, node: int, sources: tuple[int, ...], state: State, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``P_i P_iᵀ`` ``(B, S, m, m)``, ``‖P_i‖_F²`` and ``‖E_i‖_F²`` ``(B, S)``, and ``‖D_i‖_F²``
    ``(B, S − 1)``, rounded up.

    Only the rows of neurons that vary are swept.
    """
    network, batch, size = sweep.network, len(mask), mask[0].numel()
    unit = network.arithmetic.unit
    rows, neurons = mask.flatten(1).nonzero().unbind(1)
    forms = mask.new_zeros(len(rows), size).scatter_(1, neurons[:, None], 1.0)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    along: dict[int, Tensor] = {}
    ranges = {}
    for i in sources[1:]:
        kind = network.nodes[i].kind
        assert isinstance(kind, Elementwise)
        ranges[i] = middle_and_half(kind, state[i], network.arithmetic)

    def cross(i: int, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        middle, half = (side[rows] for side in ranges[i])
        ranged, passed = value * half, value * middle
        widest, steepest = half.flatten(1).amax(1), middle.flatten(1).abs().amax(1)
        seen[i] = ranged, error * widest + 4 * unit * length(ranged)
        size = length(passed)
        error = error * steepest + 4 * unit * size
        along[i] = (size + error).square() * (1 + 16 * FLOAT64)
        return passed, error

    reached = sweep(node, forms.reshape(-1, *network.nodes[node].shape), cross)
    assert reached is not None
    seen[0] = reached
    grams, squares, errors = [], [], []
    for i in sources:
        block, error = seen[i]
        matrix = error.new_zeros(batch, size, block[0].numel() if len(block) else 1)
        matrix[rows, neurons] = block.flatten(1).to(matrix.dtype) if len(block) else 0
        grams.append(matrix @ matrix.mT)
        squares.append(matrix.square().sum((1, 2)))
        errors.append(error.new_zeros(batch).index_add(0, rows, error.square()))
    passed = [errors[0].new_zeros(batch).index_add(0, rows, along[i]) for i in sources[1:]]
    return tuple(torch.stack(part, 1) for part in (grams, squares, errors, passed))  # type: ignore[return-value]
