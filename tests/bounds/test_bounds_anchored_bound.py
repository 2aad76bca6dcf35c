"""The anchored bound as one of the bounds: below every attack, never above the clean margin."""

import pytest
import torch
from attacks import smallest_margins
from bounds.test_bounds_dual import SEEDS, Case
from bounds.test_bounds_lipschitz import deterministic

from lipcert.bounds.anchored_bound import state_margins


@pytest.mark.parametrize("seed", list(SEEDS)[:4])
def test_margins_hold_and_fall_with_the_radius(seed: int) -> None:
    case = Case(seed)
    bound = case.bounds["chains"]
    facts = bound.prepare(case.centre, case.eps(0.2), deterministic)
    clean = case.centre.logits.gather(1, case.labels[:, None]) - case.centre.logits
    before = clean
    for radius in (0.0, 0.01, 0.05, 0.2):
        eps = case.eps(radius)
        margins = bound.margins(case.centre, case.labels, eps, facts)
        assert (margins <= before + 1e-11 * (1 + before.abs())).all()
        found = smallest_margins(case.network, case.x, case.labels, eps, steps=10)
        assert (margins <= found + 1e-11 * (1 + found.abs())).all()
        state = bound.state(case.centre, eps, facts)
        again = state_margins(bound.layers, case.centre, case.labels, state)
        assert torch.equal(margins, again)
        before = margins
    assert torch.allclose(
        bound.margins(case.centre, case.labels, case.eps(0.0), facts), clean, rtol=1e-9, atol=1e-11
    )
