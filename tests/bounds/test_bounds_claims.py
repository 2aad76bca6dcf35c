"""The remainders that a claim holds fast cover every point of its boxes."""

import pytest
import torch
from laws import ACTIVATION_CASES, normal, seeded, uniform

from lipcert.bounds.claims import alone_of, remainder
from lipcert.network.activations import Elementwise

ELEMENTWISE = {
    name: kind
    for name, build in ACTIVATION_CASES.items()
    if isinstance(kind := build(torch.float64, seeded(1)), Elementwise)
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_remainders_hold(name: str) -> None:
    kind, generator = ELEMENTWISE[name], seeded(7)
    shape = (64, 1, 4, 3, 2)
    anchor = 3 * normal(shape, generator)
    lower, upper = anchor - 2 * uniform(shape, generator), anchor + 2 * uniform(shape, generator)
    slope = 0.5 * normal(shape, generator)
    middle, rest = remainder(kind, slope, anchor, lower, upper)
    for share in torch.linspace(0, 1, 41, dtype=torch.float64):
        z = lower + share * (upper - lower)
        error = kind.value(z) - kind.value(anchor) - slope * (z - anchor) - middle
        assert bool((error.abs() <= rest + 1e-12).all())


def test_errors_that_go_alone_are_the_largest_and_no_smaller() -> None:
    rest = uniform((2, 1, 10, 10), seeded(3)) ** 8 * (uniform((2, 1, 10, 10), seeded(4)) > 0.6)
    rest[0, 0, 0, 0], rest[1, 0, 0, 1] = 1e-60, 1.0 + 2.0**-30
    for count in (0, 1, 7, 1000):
        alone = alone_of(rest, count, torch.float32)
        chosen = alone > 0
        assert int(chosen.flatten(1).sum(1).max()) <= count
        assert bool((alone == alone.float().double()).all())
        assert bool((alone >= rest)[chosen].all())
        assert bool((alone <= rest * (1 + 1e-6))[chosen].all())
        for row in range(2):
            others = rest[row][~chosen[row]]
            if count and count < 1000:
                assert float(others.max()) <= float(rest[row][chosen[row]].min())
            elif count:
                # Too small for float32: it goes with the others.
                assert float(others.max()) < 1e-38


def test_where_most_neurons_are_bent_no_error_goes_alone() -> None:
    assert not bool(alone_of(torch.ones(1, 1, 4), 100, torch.float32).any())
