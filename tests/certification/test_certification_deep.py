"""Certificates of deep random networks, attacked; the benchmark runs as many as are asked for."""

import pytest
import torch
from deep import DeepGrower, attacked, deep_network, tube_radii
from laws import seeded, uniform

from lipcert.options import Epsilon, Options


@pytest.mark.parametrize("seed", range(6))
def test_no_attack_breaks_a_deep_certificate(seed: int) -> None:
    assert attacked(seed, samples=2).broken == 0


def test_an_attack_far_outside_breaks_certificates() -> None:
    """So the attack is none that finds nothing."""
    found = [attacked(seed, samples=2, shrink=1e-3) for seed in range(2)]
    assert sum(one.broken for one in found) > 0
    assert sum(one.certificates for one in found) > 0


def test_a_network_of_concatenations_gets_a_radius() -> None:
    """Its norms multiply to so much that no error of a backward pass may be carried to the input
    by them: the float64 of the analysis would be as nothing."""
    generator = seeded(5)
    grower = DeepGrower(generator, hostile=False)
    node = grower.bent(grower.normalised(grower.convolution(0, 4)))
    for _ in range(14):
        node = grower.dense(node)
    network = grower.head(grower.bent(grower.normalised(node)), 4)
    x = uniform((2, *network.in_shape), seeded(6)).float().double()
    options = Options(eps=(Epsilon.parse("1e-5"),), effort="fast", deployed="float32", seed=3)
    radii = tube_radii(network, x, network.logits(x).argmax(1), options)
    assert bool((radii > 1e-6).all())


def test_hostile_networks_are_deep_and_finite() -> None:
    for seed in range(20):
        network = deep_network(seeded(seed))
        assert len(network.activations) >= 8
        logits = network.logits(uniform((2, *network.in_shape), seeded(seed)))
        assert bool(torch.isfinite(logits).all())
