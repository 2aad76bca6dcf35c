"""What underflow takes from the map of a chain, against the map on numbers that underflow."""

import torch
from bounds.test_bounds_dual import SEEDS, Case

from lipcert.bounds.chain_losses import lost_in_sweeps
from lipcert.bounds.chain_map import ChainMap
from lipcert.network import ancestors


def test_it_covers_what_is_lost_of_tiny_vectors() -> None:
    """``G (s v)`` falls short of ``s G v`` by what underflows, for the smallest ``s``."""
    seen = 0
    for seed in list(SEEDS)[:4]:
        case = Case(seed)
        _, state = case.prepared("plain", 0.3)
        for i, layer in state.items():
            node = case.network.nodes[i].inputs[0] if i else 0
            before = {j: other for j, other in state.items() if j <= node}
            if i == 0 or len(before) < 2:
                continue
            mapping = ChainMap.of(case.network, node, before, layer.varying)
            if mapping.sources == (0,):
                continue
            whole = mapping.gram(torch.ones_like(mapping.support))
            small = mapping.gram(torch.full_like(mapping.support, 2.0**-1060))
            short = (whole * 2.0**-1060 - small).flatten(1).norm(dim=1)
            path, size = ancestors(case.network, node), mapping.support[0].numel()
            lost = lost_in_sweeps(case.network, node, path, 1.0, 1.0, size)
            assert (short <= lost * (1 + size**0.5 * 2.0**-1060)).all()
            assert 0 < lost < 1e-290
            seen += 1
    assert seen
