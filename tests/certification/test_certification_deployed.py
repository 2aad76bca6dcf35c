"""What float32 adds to the margins: never less than what it does, in any order of the sums."""

import pytest
import torch
from attacks import in_ball
from laws import random_network, seeded, uniform

from lipcert.bounds import rounding_errors
from lipcert.certification.deployed import SOFTMAX_TIE, Deployment
from lipcert.network import Network, simplify
from lipcert.rounding import SINGLE


def margins(network: Network, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = network.logits(x).double()
    return logits.gather(1, labels[:, None]) - logits


@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_float32_margins_stay_within_the_pair_errors(seed: int, simplified: bool) -> None:
    network = random_network(seeded(seed))
    network = simplify(network) if simplified else network
    single = network.to(dtype=torch.float32)
    exact = single.to(dtype=torch.float64)
    x = uniform((4, *exact.in_shape), seeded(seed + 1)).float().double()
    labels = exact.logits(x).argmax(1)
    deployment = Deployment.of(exact, covered=True, softmax=False)
    centre, generator = deployment.centre(x), seeded(seed)
    for radius in (1e-6, 0.2):
        eps = torch.full((4,), radius, dtype=torch.float64)
        allowed = deployment.pair_errors(centre, labels, eps)
        for _ in range(20):
            point = in_ball(x, eps * 0.999, generator).float()
            gap = margins(single, point, labels) - margins(exact, point.double(), labels)
            assert (gap.abs() <= allowed).all()
        # Never more than what both logits can err by themselves.
        boxes = deployment.propagation.boxes(centre, eps)
        each = rounding_errors(exact, boxes, SINGLE)[-1].flatten(1)
        assert (allowed <= (each.gather(1, labels[:, None]) + each) * (1 + 1e-6)).all()


def test_a_stripped_softmax_and_real_arithmetic() -> None:
    network = random_network(seeded(3))
    x = uniform((2, *network.in_shape), seeded(4))
    labels, eps = network.logits(x).argmax(1), torch.full((2,), 0.1, dtype=torch.float64)
    found = {
        (covered, softmax): Deployment.of(network, covered=covered, softmax=softmax)
        for covered in (True, False)
        for softmax in (True, False)
    }
    errors = {
        key: deployment.pair_errors(deployment.centre(x), labels, eps)
        for key, deployment in found.items()
    }
    assert (errors[True, True] >= errors[True, False] + 2 * SOFTMAX_TIE).all()
    assert (errors[False, False] > 0).all()
    assert (errors[False, False] < 1e-7 * errors[True, False]).all()


def test_overflow_is_an_infinite_error() -> None:
    network = random_network(seeded(5))
    x = uniform((2, *network.in_shape), seeded(6)) * 1e38
    deployment = Deployment.of(network, covered=True, softmax=False)
    labels, eps = torch.zeros(2, dtype=torch.int64), torch.full((2,), 1e38, dtype=torch.float64)
    errors = deployment.pair_errors(deployment.centre(x), labels, eps)
    assert not (errors < 1e30).all()
