"""The support function of ball ∩ box, against points of it and against its dual."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import normal, seeded, uniform

from lipcert.bounds import ball_box_support
from lipcert.numbers import EXACT


def problem(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    objective = normal((4, 3, n), generator)
    objective[:, :, ::3] = 0
    lower, upper = -uniform((4, n), generator), uniform((4, n), generator)
    upper[:, 1::4] = 0
    lower[1], upper[1] = -1e6, 1e6
    radius = uniform((4,), generator) * 2
    return objective, lower, upper, radius


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_no_feasible_point_passes_it(seed: int, n: int) -> None:
    objective, lower, upper, radius = problem(seed, n)
    bound = ball_box_support(objective, lower, upper, radius)
    points = normal((200, 4, n), seeded(seed + 1))
    # Along the objective itself too, where the optimum is when no wall is met.
    points = torch.cat([points, objective.transpose(0, 1), objective.transpose(0, 1).sign()])
    for scale in (0.1, 1.0, 10.0):
        inside = torch.minimum(torch.maximum(points * scale, lower), upper)
        norm = inside.norm(dim=2, keepdim=True)
        inside = inside * (radius[:, None] / norm.clamp(min=1e-300)).clamp(max=1)
        assert (
            torch.einsum("brn,pbn->pbr", objective, inside) <= bound * (1 + 1e-12) + 1e-300
        ).all()


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_it_is_the_optimum_of_the_dual(seed: int, n: int) -> None:
    objective, lower, upper, radius = problem(seed, n)
    bound = ball_box_support(objective, lower, upper, radius)
    best = torch.full_like(bound, torch.inf)
    for power in torch.linspace(-8, 8, 600, dtype=torch.float64):
        multiplier = 10**power
        u = torch.minimum(torch.maximum(objective / multiplier, lower[:, None]), upper[:, None])
        value = (objective * u - multiplier * u.square() / 2).sum(2) + multiplier * radius[
            :, None
        ].square() / 2
        best = torch.minimum(best, value)
    assert (bound <= best * (1 + 1e-9)).all()
    assert (bound >= best * (1 - 2e-2) - 1e-7).all()


def test_a_radius_of_zero_and_an_empty_form_give_zero() -> None:
    objective, lower, upper, _ = problem(1, 6)
    assert not ball_box_support(objective, lower, upper, torch.zeros(4, dtype=torch.float64)).any()
    assert not ball_box_support(
        objective * 0, lower, upper, torch.ones(4, dtype=torch.float64)
    ).any()


def test_what_is_not_a_number_stays_unbounded() -> None:
    objective, lower, upper, radius = problem(2, 6)
    objective[0, 0, 1] = torch.nan
    radius[1] = torch.inf
    bound = ball_box_support(objective, lower, upper, radius)
    assert not (bound[0, 0] < torch.inf)
    assert (bound[2:] < torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_objective_of_nothing_takes_nothing_however_large_the_ball(dtype: torch.dtype) -> None:
    """And has a gradient, as a class has against itself."""
    objective = torch.zeros(2, 3, 4, dtype=dtype)
    objective[0, 0] = 1.0
    objective.requires_grad_(True)
    wall = torch.full((2, 4), 2.0, dtype=dtype)
    for radius in (1e-3, 1.0, 50.0, 1e6):
        found = ball_box_support(
            objective, -wall, wall, torch.full((2,), radius, dtype=dtype), EXACT
        )
        assert not found[1].any()
        assert not found[0, 1:].any()
        assert 0 < float(found[0, 0].detach()) <= 8 * (1 + 1e-6)
        (slope,) = torch.autograd.grad(found[0, 0] + 0 * found.sum(), objective)
        assert bool(slope.isfinite().all())
