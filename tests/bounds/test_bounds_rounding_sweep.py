"""Roundings node by node: more in a larger ball and a coarser format, none that is not charged."""

import pytest
from bounds.test_bounds_accumulated import over
from laws import random_network, seeded, uniform


@pytest.mark.parametrize("seed", range(3))
def test_errors_grow_with_the_ball_and_with_the_unit(seed: int) -> None:
    network = random_network(seeded(seed))
    x = uniform((2, *network.in_shape), seeded(seed + 1))
    small, large = (over(network, x, radius, "float32")[1] for radius in (0.01, 0.1))
    coarse = over(network, x, 0.01, "bfloat16")[1]
    for fine, wide, rough in zip(small.total, large.total, coarse.total, strict=True):
        assert (fine <= wide * (1 + 1e-9)).all()
        assert (fine <= rough * (1 + 1e-9)).all()
    assert float(coarse.total[-1].mean()) > 1000 * float(small.total[-1].mean()) > 0


def test_what_a_node_adds_is_part_of_how_far_it_is_off() -> None:
    network = random_network(seeded(5))
    x = uniform((2, *network.in_shape), seeded(6))
    _, found = over(network, x, 0.05, "float32")
    for fresh, total in zip(found.fresh, found.total, strict=True):
        assert (fresh >= 0).all()
        assert (fresh <= total * (1 + 1e-12)).all()
