"""The remainders that a claim holds fast cover every point of its boxes."""

import pytest
import torch
from laws import ACTIVATION_CASES, normal, seeded, uniform

from lipcert.bounds.claims import remainder
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
