"""Objectives carried back: what they say of the output, and how far their coefficients are off."""

import pytest
import torch
from laws import normal, random_network, seeded, uniform

from lipcert.bounds.reverse import RigorousSweep, carry_back, length
from lipcert.network import Network


def slopes_of(network: Network, x: torch.Tensor) -> dict[int, torch.Tensor]:
    """Of activations, by the derivative at ``x``: the network is linear with them."""
    values = network.values(x)
    return {
        i: network.nodes[i].kind.derivative(values[network.nodes[i].inputs[0]])
        for i in network.activations
    }


def elementwise(seed: int) -> Network:
    """A random network whose activations have a derivative of each value."""
    tried = (random_network(seeded(seed + 100 * k)) for k in range(50))
    return next(
        network
        for network in tried
        if network.activations
        and all(hasattr(network.nodes[i].kind, "derivative") for i in network.activations)
    )


@pytest.mark.parametrize("seed", range(4))
def test_coefficients_are_the_gradient_of_the_linearised_network(seed: int) -> None:
    network, generator = elementwise(seed), seeded(seed + 1)
    x = uniform((1, *network.in_shape), generator)
    slopes = slopes_of(network, x)
    wanted = normal((5, *network.nodes[-1].shape), generator)

    def relax(i: int, value: torch.Tensor) -> torch.Tensor:
        return value * slopes[i]

    found = carry_back(network, network.output, wanted, relax)
    assert found is not None
    many = x.expand(5, *x.shape[1:]).clone().requires_grad_(True)
    total = (network.values(many)[-1] * wanted).sum()
    (gradient,) = torch.autograd.grad(total, many)
    assert torch.allclose(found, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_error_that_is_stated_covers_that_of_float32(seed: int) -> None:
    network, generator = elementwise(seed), seeded(seed + 2)
    single = network.to(dtype=torch.float32)
    slopes = slopes_of(single.exact, uniform((1, *network.in_shape), generator))
    wanted = normal((5, *network.nodes[-1].shape), generator).float()

    def relax(
        i: int, value: torch.Tensor, error: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Slopes of 0 and 1 round nothing, others once.
        passed = value * slopes[i].to(value.dtype)
        return passed, error + 2.0**-22 * length(value)

    found, error = RigorousSweep(single)(network.output, wanted, relax)
    truth = carry_back(
        single.exact, network.output, wanted.double(), lambda i, value: value * slopes[i]
    )
    off = (found.double() - truth).flatten(1).norm(dim=1)
    assert (off <= error).all()
    # Not by far more than what magnitudes can make of 24 bits.
    assert (error <= 1e-3 * (1 + length(truth))).all()


def test_lengths_are_rounded_up() -> None:
    values = normal((50, 7), seeded(0)).float()
    exact = values.double().norm(dim=1)
    assert (length(values) >= exact).all()
    assert torch.allclose(length(values), exact, rtol=1e-12)
