"""Chains of narrow nodes, from their rows: Gram matrices in place of matrix-free maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
from lipcert.bounds.state import State, select, to_dtype
from lipcert.chunks import at_once, slices
from lipcert.network.activations import Elementwise
from lipcert.norms import largest_eigenvalue
from lipcert.numbers import OUT64
from lipcert.rounding import FLOAT64_TINY, gamma

# Entries of row matrices at once that a processor's caches hold well.
_CACHED = 2**25
# The least weight of a drift among the others.
_LEAST = 1e-18


def explicit_chain(sweep: RigorousSweep, node: int, state: State, mask: Tensor) -> Chain:
    """The chain of a narrow node, from its rows: Gram matrices in place of matrix-free maps.

    ``P_i`` is computed within ``E_i`` and its Gram matrix, in float64, within ``γ ‖P_i‖_F²``, hence
    ``‖[√x_i P_i]‖ ≤ (λ_max(Σ x_i P_i P_iᵀ) + Σ x_i γ ‖P_i‖_F²)^½ + (Σ x_i ‖E_i‖_F²)^½``. The blocks
    of drifts, whose balls are small, are one to this, with weights among themselves ``d / ‖D‖_F``.
    """
    sources, dtype = chain_sources(sweep.network, node), sweep.network.anchor.dtype
    sizes = [math.prod(sweep.network.nodes[i].shape) for i in sources]
    chunk = at_once(_CACHED, mask.device, each=mask[0].numel() * sum(sizes))
    radii, drifts = radii_of(sources, state).tensor_split([len(sources)], 1)
    parts = []
    for some in slices(max(1, len(mask)), chunk):
        own = to_dtype(select({i: state[i] for i in sources[1:]}, some), dtype)
        parts.append(_grams(sweep, node, sources, own, mask[some].to(dtype), drifts[some]))
    grams, squares, errors, shares = (torch.cat(part) for part in zip(*parts, strict=True))
    # The drifts' one block has a ball of its own.
    radii = torch.cat([radii, (drifts.square() / shares).sum(1, keepdim=True).sqrt()], 1)
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
    slack = gamma(max(sizes) + 8) + gamma(2 * len(sources) + 4)
    # Squares that underflow: less than this of an eigenvalue, and of the sum of errors.
    lost = FLOAT64_TINY * gram.shape[-1] * (2 * len(sources) + 2) * (max(sizes) + 2)
    times, add = OUT64.times, OUT64.add
    formed = times(OUT64.sum(times(weights, squares)), slack)
    top = add(largest_eigenvalue(gram), formed, lost)
    off = add(OUT64.sum(times(weights, errors)), lost)
    # Errors and Frobenius norms are sums of squares themselves.
    norm = OUT64.up(add(OUT64.root(top), OUT64.root(off)), max(sizes) + gram.shape[-1] + 24)
    return Chain(sources, torch.cat([weights[:, :-1], weights[:, -1:] * shares], 1), norm)


# Rows with an upper bound of the Euclidean error of each, by the node that they have come to.
_Rows = dict[int, tuple[Tensor, Tensor]]


def _grams(
    sweep: RigorousSweep, node: int, sources: tuple[int, ...], state: State, mask: Tensor,
    drifts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``P_i P_iᵀ`` ``(B, S + 1, m, m)``, the last of them ``Σ y_i D_i D_iᵀ``; ``‖P_i‖_F²`` and
    ``‖E_i‖_F²`` ``(B, S + 1)`` of the same; and the ``y``, ``(B, S − 1)``.

    Only the rows of neurons that vary are swept.
    """
    batch, size = len(mask), mask[0].numel()
    rows, neurons = mask.flatten(1).nonzero().unbind(1)
    objectives = mask.new_zeros(len(rows), size).scatter_(1, neurons[:, None], 1.0)

    def matrix(block: Tensor) -> Tensor:
        whole = objectives.new_zeros(batch, size, max(1, block.numel() // max(1, len(block))))
        whole[rows, neurons] = block.flatten(1) if len(block) else 0
        return whole.double()

    def summed(error: Tensor) -> Tensor:
        return error.new_zeros(batch).index_add(0, rows, error.square())

    seen, along = _swept(sweep, node, sources, state, rows, objectives)
    blocks, errors = [matrix(seen[i][0]) for i in sources], [summed(seen[i][1]) for i in sources]
    grams = [block @ block.mT for block in blocks]
    squares = [block.square().sum((1, 2)) for block in blocks]
    drift, square, error = grams[0] * 0, squares[0] * 0, errors[0] * 0
    shares = []
    for k, i in enumerate(sources[1:]):
        block = matrix(along[i][0])
        whole = block.square().sum((1, 2))
        # Any share will do where nothing is known.
        share = (drifts[:, k] / safe(whole.sqrt())).nan_to_num(1.0, 1.0).clamp(min=_LEAST)
        drift = drift + share[:, None, None] * (block @ block.mT)
        square, error = square + share * whole, error + share * summed(along[i][1])
        shares.append(share)
    return (
        torch.stack([*grams, drift], 1),
        torch.stack([*squares, square], 1),
        torch.stack([*errors, error], 1),
        torch.stack(shares, 1),
    )


def _swept(
    sweep: RigorousSweep, node: int, sources: tuple[int, ...], state: State, rows: Tensor,
    objectives: Tensor,
) -> tuple[_Rows, _Rows]:  # fmt: skip
    """The rows at every source, times half the range of its slopes, the input's as they are; and
    at every activation among them, times the middle of its slopes, as they go on. ``rows`` says of
    which sample each of the objectives is."""
    network, unit = sweep.network, sweep.network.outward.unit
    ranges = {}
    for i in sources[1:]:
        kind = network.nodes[i].kind
        assert isinstance(kind, Elementwise)
        ranges[i] = middle_and_half(kind, state[i], network.outward)
    seen: _Rows = {}
    along: _Rows = {}

    def relax(i: int, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        middle, half = (side[rows] for side in ranges[i])
        ranged, passed = value * half, value * middle
        widest, steepest = half.flatten(1).amax(1), middle.flatten(1).abs().amax(1)
        # A product is rounded, and so are errors; twice that is charged.
        seen[i] = ranged, OUT64.add(OUT64.times(error, widest), 2 * unit * length(ranged))
        along[i] = passed, OUT64.add(OUT64.times(error, steepest), 2 * unit * length(passed))
        return along[i]

    reached = sweep(node, objectives.reshape(-1, *network.nodes[node].shape), relax)
    assert reached is not None
    seen[0] = reached
    return seen, along
