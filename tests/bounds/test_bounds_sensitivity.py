"""Errors of pairs of logits, carried backwards: what is common to both cancels."""

import torch
from bounds.test_bounds_accumulated import over
from laws import normal, seeded, uniform

from lipcert.bounds.sensitivity import Coefficients, pair_rounding
from lipcert.network import NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense


def test_two_rows_that_are_nearly_the_same_err_nearly_alike() -> None:
    """A logit errs by what comes before it; the difference of two like logits hardly does."""
    generator = seeded(0)
    builder = NetworkBuilder((1, 12))
    node = builder.operator(Dense.of(normal((10, 12), generator), None, (1, 12)), 0)
    row = normal((1, 10), generator)
    last = torch.cat([row, row + 1e-6, normal((1, 10), generator)])
    node = builder.operator(Dense.of(last, None, (1, 10)), builder.activation(relu(), node))
    network = builder.build(node)
    x = uniform((1, 1, 12), generator)
    tools, found = over(network, x, 0.01, "float32")
    rows, labels = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    alike, apart = pair_rounding(tools, found, rows, labels, torch.tensor([1, 2])).tolist()
    assert 0 < alike < apart
    single = found.total[-1].flatten().tolist()
    assert apart <= (single[0] + single[2]) * 1.01


def test_sums_of_coefficients_hold_the_sums_of_what_they_hold() -> None:
    generator = seeded(1)
    one, two = (
        Coefficients(normal((3, 4), generator), uniform((3, 4), generator), torch.ones(3).double())
        for _ in range(2)
    )
    both = one + two
    for _ in range(50):
        points = [c.middle + c.radius * (2 * uniform((3, 4), generator) - 1) for c in (one, two)]
        assert ((points[0] + points[1] - both.middle).abs() <= both.radius).all()
    assert (both.length >= 2).all()
    assert (both.largest >= both.middle.abs()).all()
