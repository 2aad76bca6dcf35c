"""What all bounds of one face have in common."""

from itertools import pairwise

import pytest
import torch
from attacks import margins, smallest_margins
from bounds.test_bounds_lipschitz import RADII, SEEDS, Case

from lipcert.bounds import GlobalBound, LocalBallBound, LocalBound


@pytest.mark.parametrize("seed", SEEDS)
def test_no_attack_goes_below_a_bound(seed: int) -> None:
    case = Case(seed)
    for radius in RADII:
        found = smallest_margins(case.network, case.x, case.labels, case.eps(radius), steps=15)
        for kind in (LocalBound, GlobalBound, LocalBallBound):
            for prepared in (radius, 2 * radius):
                lower = case.margins(kind, radius, prepared)
                assert (lower <= found + 1e-11 * (1 + found.abs())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_fall_with_the_radius_and_start_at_the_margin(seed: int) -> None:
    case = Case(seed)
    clean = margins(case.network, case.x, case.labels)
    clean = torch.where(clean.isinf(), 0, clean)
    for kind in (LocalBound, GlobalBound, LocalBallBound):
        values = [case.margins(kind, radius, radius) for radius in RADII]
        assert (values[0] <= clean).all()
        assert (values[0] >= clean - 1e-9 * (1 + clean.abs())).all()
        for before, after in pairwise(values):
            assert (after <= before + 1e-9 * (1 + before.abs())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_norms_of_a_larger_ball_only_loosen(seed: int) -> None:
    case = Case(seed)
    own = case.margins(LocalBound, 0.1, 0.1)
    assert (case.margins(LocalBound, 0.1, 0.5) <= own + 1e-9 * (1 + own.abs())).all()
