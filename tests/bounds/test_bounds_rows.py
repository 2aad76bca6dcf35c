"""Chains of narrow layers, from rows in float32, against float64."""

import pytest
from bounds.test_bounds_dual import exact_norm
from bounds.test_bounds_single import SEEDS, Case

from lipcert.bounds.chain import chain_sources
from lipcert.bounds.chain_map import ChainMap
from lipcert.bounds.reverse import RigorousSweep
from lipcert.bounds.rows import explicit_chain


@pytest.mark.parametrize("seed", SEEDS)
def test_chains_are_no_shorter_than_float64_has_them(seed: int) -> None:
    case = Case(seed)
    for radius in (0.02, 0.5):
        state = dict(case.states(radius))["plain"]
        for i, layer in state.items():
            node = case.network.nodes[i].inputs[0] if i else 0
            before = {j: other for j, other in state.items() if j <= node}
            if len(before) < 2 or not chain_sources(case.network, node):
                continue
            chain = explicit_chain(RigorousSweep(case.network), node, before, layer.varying)
            mapping = ChainMap.of(case.network, node, before, layer.varying)
            exact = exact_norm(None, mapping.over(case.network.exact).weighted(chain.weights), 0)
            assert (chain.norm >= exact * (1 - 1e-12)).all()
            # Coefficients in float32 err by a share of the values that cancel in them.
            assert (chain.norm <= exact * 1.001 + 1e-8).all()
