"""Chains are never shorter than what moves."""

import pytest
import torch
from attacks import in_ball
from bounds.test_bounds_dual import SEEDS, Case, exact_norm
from laws import seeded

from lipcert.bounds.chain import radii_of
from lipcert.bounds.chain_map import ChainMap
from lipcert.bounds.reverse import RigorousSweep
from lipcert.bounds.rows import explicit_chain
from lipcert.norms import schur_bound


@pytest.mark.parametrize("seed", SEEDS)
def test_chains_are_never_shorter_than_what_moves(seed: int) -> None:
    """By rows and matrix-free: against points of the ball, each other, and the sum of norms."""
    case, generator = Case(seed), seeded(seed + 5)
    eps = case.eps(0.2)
    _, state = case.prepared("plain", 0.2)
    for i, layer in state.items():
        if i == 0:
            continue
        node = case.network.nodes[i].inputs[0]
        # An activation can read another one, which is a source then.
        before = {j: other for j, other in state.items() if j <= node}
        mapping = ChainMap.of(case.network, node, before, layer.varying)
        if mapping.sources == (0,):
            continue
        chain = explicit_chain(RigorousSweep(case.network), node, before, layer.varying)
        assert chain.sources == mapping.sources
        again = exact_norm(None, mapping.weighted(chain.weights), 0)
        assert (chain.norm >= again * (1 - 1e-9)).all()
        assert (chain.norm <= again * (1 + 1e-6) + 1e-9).all()
        assert (schur_bound(mapping.weighted(chain.weights)) >= again * (1 - 1e-9)).all()

        radii = radii_of(chain.sources, before)
        single = [
            exact_norm(
                None, mapping.weighted(torch.eye(len(radii[0])).double()[k].expand_as(radii)), 0
            )
            for k in range(len(radii[0]))
        ]
        sizes = torch.stack(single, 1)
        summed = (sizes * radii).sum(1)
        largest = (sizes * radii).amax(1)
        for weights in (chain.weights, mapping.balanced(before).weights):
            found = exact_norm(None, mapping.weighted(weights), 0)
            moved = found * (radii.square() / weights).sum(1).sqrt()
            assert (moved >= largest * (1 - 1e-9)).all()
            # Balanced weights come near the best ones, which are never worse than the sum.
            assert (moved <= 1.05 * summed + 1e-12).all()
        lengths = chain.length(before)
        for _ in range(20):
            values = case.network.values(in_ball(case.x, eps, generator))
            moved = ((values[node] - layer.anchor) * layer.varying).flatten(1).norm(dim=1)
            assert (moved <= lengths * (1 + 1e-12) + 1e-13).all()
