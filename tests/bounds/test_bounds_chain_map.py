"""The map of a chain is symmetric, and bounded by its magnitudes."""

import pytest
import torch
from bounds.test_bounds_dual import SEEDS, Case, gram_matrices

from lipcert.bounds.chain_map import ChainMap


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gram_map_is_symmetric_and_bounded_by_its_magnitudes(seed: int) -> None:
    case = Case(seed)
    _, state = case.prepared("plain", 0.3)
    for i, layer in state.items():
        if i == 0:
            continue
        before = {j: other for j, other in state.items() if j < i}
        mapping = ChainMap.of(case.network, case.network.nodes[i].inputs[0], before, layer.varying)
        if mapping.sources == (0,):
            continue
        mapping = mapping.balanced(before)
        gram = gram_matrices(mapping)
        assert torch.allclose(gram, gram.mT, rtol=1e-9, atol=1e-12)
        ones = torch.ones_like(mapping.support)
        absolute = mapping.absolute_gram(ones).flatten(1)
        assert (gram.abs().sum(2) <= absolute * (1 + 1e-9) + 1e-12).all()
