"""Networks whose logits come out of an activation, where whole regions tie."""

from __future__ import annotations

import pytest
import torch
from certification.test_certification_certifier import METHODS, certify, options
from laws import ENDINGS, random_network, seeded, uniform

from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import Activation, Clip, Sigmoid
from lipcert.network.activations.piecewise_linear import relu
from lipcert.network.operators import Dense


def ending_in(*activations: Activation) -> Network:
    """``(x₀, x₁)`` as the logits, through these."""
    builder = NetworkBuilder((1, 2))
    node = builder.operator(Dense.of(torch.eye(2, dtype=torch.float64), None, (1, 2)), 0, "d")
    for activation in activations:
        node = builder.activation(activation, node, "a")
    return builder.build(node)


def steps(low: float, high: float) -> Clip:
    return Clip(torch.tensor(low).double(), torch.tensor(high).double())


@pytest.mark.parametrize(("method", "effort"), METHODS)
def test_a_tie_is_never_certified(method: str, effort: str) -> None:
    """Both logits are 0 in a quadrant, both 1 in another: argmax takes the first, nobody else
    need."""
    given = options("0.01", "0.3", method=method, effort=effort)
    tied = torch.tensor([[[-0.5, -0.9]], [[-0.1, -0.1]]]).double()
    labels = torch.zeros(2, dtype=torch.long)
    for network in (ending_in(relu()), ending_in(relu(), relu()), ending_in(relu(), Sigmoid())):
        for sample in certify(network, tied, labels, given):
            assert not sample.certified
            assert not sample.radius
    for sample in certify(ending_in(steps(0, 1)), 2 - tied, labels, given):
        assert not sample.certified
        assert not sample.radius


@pytest.mark.parametrize(("method", "effort"), METHODS[:3])
def test_a_radius_ends_where_logits_tie(method: str, effort: str) -> None:
    """From (0.25, −1) the first logit reaches 0, a tie, at 0.25; from (0.5, 0.9) both reach 0.7 at
    √0.02 … 0.25: nearer than any other class wins."""
    given = options("0.2", "0.25", "0.26", method=method, effort=effort)
    x = torch.tensor([[[0.25, -1.0]]]).double()
    [sample] = certify(ending_in(relu()), x, torch.zeros(1, dtype=torch.long), given)
    # The product of norms does not see that the second logit stays 0.
    assert (0.17 if method == "global" else 0.2) < sample.radius < 0.25
    assert list(sample.certified) == ([] if method == "global" else ["0.2"])
    x = torch.tensor([[[0.5, 0.9]]]).double()
    [sample] = certify(ending_in(steps(0, 0.7)), x, torch.ones(1, dtype=torch.long), given)
    assert sample.radius < 0.2


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_sample_fails_inside(ending: str) -> None:
    """With branch and bound too, which starts where the logits come out."""
    network = (
        random_network(seeded(2), ending=ending).to(dtype=torch.float32).to(dtype=torch.float64)
    )
    x = uniform((2, *network.in_shape), seeded(3)).float().double()
    labels = network.logits(x).argmax(1)
    for sample in certify(network, x, labels, options("0.1", "0.3", effort="fast")):
        assert sample.verdict != "error"
