"""Certificates of deep random networks, attacked; the benchmark runs as many as are asked for."""

import pytest
import torch
from deep import DeepGrower, attacked, deep_network, tube_radii
from laws import seeded, uniform

from lipcert.network import NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options


@pytest.mark.parametrize("seed", range(6))
def test_no_attack_breaks_a_deep_certificate(seed: int) -> None:
    assert attacked(seed, samples=2).broken == 0


def test_an_attack_far_outside_breaks_certificates() -> None:
    """So the attack is none that finds nothing."""
    found = [attacked(seed, samples=2, shrink=1e-3) for seed in range(2)]
    assert sum(one.broken for one in found) > 0
    assert sum(one.certificates for one in found) > 0


def test_norms_that_nothing_goes_along_cost_no_margin() -> None:
    """Layers of norms above a thousand, along a neuron that is never active: an error of a backward
    pass that is carried through them by norms is as large as the margin times 1e20."""
    builder, node, steep = NetworkBuilder((1, 2)), 0, 1e3
    weight = torch.tensor([[1.0, steep], [0.0, steep]], dtype=torch.float64)
    for layer in range(12):
        first = torch.tensor([[1.0, 0.0], [0.0, steep]], dtype=torch.float64)
        bias = torch.tensor([0.0, -1.0 if layer else -steep], dtype=torch.float64)
        operator = Dense.of(weight if layer else first, bias, (1, 2))
        node = builder.activation(relu(), builder.operator(operator, node))
    both = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    network = builder.build(builder.operator(Dense.of(both, None, (1, 2)), node))
    x = torch.tensor([[[0.5, 0.25]]], dtype=torch.float64)
    options = Options(eps=(Epsilon.parse("1e-5"),), effort="fast", deployed="real", seed=3)
    radius = float(tube_radii(network, x, torch.tensor([0]), options))
    # The largest that is true is 0.5.
    assert 0.01 < radius <= 0.5


def test_a_network_of_concatenations_gets_a_radius() -> None:
    generator = seeded(5)
    grower = DeepGrower(generator, hostile=False)
    node = grower.bent(grower.normalised(grower.convolution(0, 4)))
    for _ in range(6):
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
