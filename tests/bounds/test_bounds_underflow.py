"""What underflows: bounded where sizes are known, infinite where nothing is."""

import math

import torch
from laws import random_network, seeded

from lipcert.bounds.roundoff import Roundoff
from lipcert.bounds.underflow import underflow
from lipcert.network import NetworkBuilder
from lipcert.network.operators import Dense
from lipcert.rounding import DOUBLE, SINGLE


def test_little_is_lost_in_float64_and_nothing_is_known_of_huge_networks() -> None:
    network = random_network(seeded(0))
    norms = Roundoff.of(network).norms
    assert 0 < underflow(network, norms, DOUBLE) < 1e-15
    assert underflow(network, [norm * 1e200 for norm in norms], DOUBLE) == math.inf


def test_in_float32_it_grows_with_the_norms_and_is_more_than_in_float64() -> None:
    network = random_network(seeded(1))
    norms = Roundoff.of(network).norms
    small = underflow(network, norms, SINGLE)
    assert underflow(network, norms, DOUBLE) < small < 1e-6
    assert underflow(network, [2 * norm for norm in norms], SINGLE) > small
    assert underflow(network, [norm * 1e200 for norm in norms], SINGLE) == math.inf


def test_it_covers_what_the_length_of_tiny_numbers_loses() -> None:
    """Squares of 1e-25 are 0 in float32: a length of 16 of them is short by all it is."""
    builder = NetworkBuilder((1, 16))
    unit = Dense.of(torch.eye(16, dtype=torch.float64), None, (1, 16))
    network = builder.build(builder.operator(unit, 0))
    tiny = torch.full((16,), 1e-25, dtype=torch.float32)
    lost = float(tiny.double().norm()) - float(tiny.square().sum().sqrt())
    assert lost > 0
    assert underflow(network, Roundoff.of(network).norms, SINGLE) >= lost
