"""The terms of the dual: what the input and drifts are worth, against points of the ball."""

from dataclasses import replace

import pytest
import torch
from attacks import in_ball
from laws import normal, seeded, uniform

from lipcert.bounds.state import Layer
from lipcert.bounds.terms import against, drift_worth, least_at_input
from lipcert.numbers import OUT64


def ball(radius: float, generator: torch.Generator, rows: int = 6) -> Layer:
    """Around images, whose box is met with [0, 1]."""
    x = uniform((rows, 2, 3), generator)
    ones = torch.ones_like(x)
    eps = torch.full((rows,), radius, dtype=torch.float64)
    lower, upper = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
    return Layer(x, lower, upper, eps, ones, ones)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("radius", [1e-3, 0.2, 2.0])
def test_no_point_of_the_ball_goes_below(images: bool, radius: float) -> None:
    generator = seeded(0)
    layer, objective = ball(radius, generator), normal((6, 2, 3), generator)
    least, sizes = least_at_input(objective, layer, images=images)
    assert (sizes >= -least - 1e-12).all()
    for _ in range(300):
        point = in_ball(layer.anchor, layer.radius, generator)
        point = point.clamp(0, 1) if images else point
        change = ((point - layer.anchor) * objective).flatten(1).sum(1)
        assert (change >= least - 1e-12 * (1 + sizes)).all()
    # Over images alone it is never less than over all points, and far out it is that of the box.
    whole, _ = least_at_input(objective, layer, images=False)
    assert (least >= whole - 1e-12 * (1 + sizes)).all()
    if images and radius == 2.0:
        corner = torch.where(objective > 0, layer.lower, layer.upper)
        exact = ((corner - layer.anchor) * objective).flatten(1).sum(1)
        assert torch.allclose(least, exact, rtol=0.2)


def test_drifts_are_worth_what_they_can_be_at_most() -> None:
    generator = seeded(1)
    layer, objective = ball(0.1, generator), normal((6, 2, 3), generator)
    drift = uniform((6, 2, 3), generator)
    found = drift_worth(objective, replace(layer, drift=drift), OUT64)
    exact = (objective.abs() * drift).flatten(1).sum(1)
    assert (found >= exact).all()
    assert torch.allclose(found, exact, rtol=1e-12)
    # A shorter length of all together counts, where it is known.
    short = torch.full((6,), 1e-3, dtype=torch.float64)
    less = drift_worth(objective, replace(layer, drift=drift, drift_length=short), OUT64)
    together = objective.flatten(1).norm(dim=1) * short
    assert torch.allclose(less, torch.minimum(exact, together), rtol=1e-12)


def test_one_number_a_row_meets_values_of_any_shape() -> None:
    assert against(torch.arange(3), torch.zeros(3, 2, 4)).shape == (3, 1, 1)
