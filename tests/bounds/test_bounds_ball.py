"""Lipschitz constants from the input to every node, and how far single neurons move."""

import pytest
import torch
from attacks import in_ball
from laws import random_network, seeded, uniform

from lipcert.bounds import node_constants
from lipcert.bounds.ball import coordinate_reach
from lipcert.network import segments
from lipcert.norms import SegmentNorms


@pytest.mark.parametrize("seed", range(6))
def test_no_node_moves_further_than_its_constant_says(seed: int) -> None:
    network, generator = random_network(seeded(seed)), seeded(seed + 1)
    norms = {
        (segment.source, segment.sink): SegmentNorms.of(segment).norm.value
        for i in network.activations
        for segment in segments(network, network.nodes[i].inputs[0])
    }
    x = uniform((4, *network.in_shape), generator)
    for known in ({}, norms):
        constants = node_constants(network, known)
        reach = coordinate_reach(network, constants)
        for radius in (0.01, 1.0):
            eps = torch.full((4,), radius, dtype=torch.float64)
            before, after = network.values(x), network.values(in_ball(x, eps, generator))
            for i, constant in enumerate(constants):
                moved = after[i] - before[i]
                assert (moved.flatten(1).norm(dim=1) <= radius * constant + 1e-12).all()
                if reach[i] is not None:
                    assert (moved.abs() <= radius * reach[i] + 1e-12).all()


def test_whole_segments_are_no_worse_than_the_operators_in_them() -> None:
    network = random_network(seeded(3))
    norms = {
        (segment.source, segment.sink): SegmentNorms.of(segment).norm.value
        for i in network.activations
        for segment in segments(network, network.nodes[i].inputs[0])
    }
    plain, whole = node_constants(network, {}), node_constants(network, norms)
    assert plain[0] == whole[0]
    assert all(b <= a * (1 + 1e-9) for a, b in zip(plain, whole, strict=True))
