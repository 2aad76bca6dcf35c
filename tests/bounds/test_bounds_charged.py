"""The proving pass of the dual: it charges at least what it rounds, and what the state drifts."""

from dataclasses import replace

import pytest
import torch
from bounds.test_bounds_dual import Case
from laws import random_network, seeded

from lipcert.bounds.dual import DualBound
from lipcert.bounds.state import select


@pytest.mark.parametrize("seed", range(6))
def test_a_pass_in_float32_stays_below_the_same_in_float64(seed: int) -> None:
    single = random_network(seeded(seed)).to(dtype=torch.float32)
    case = Case(seed, network=single.to(dtype=torch.float64))
    narrow = DualBound(case.network.to(dtype=torch.float32))
    wide = DualBound(narrow.network.to(dtype=torch.float64))
    objectives, _ = case.objectives()
    objectives = objectives.to(torch.float32).to(torch.float64)
    _, state = case.prepared("narrow", 0.3)
    for radius in (0.3, 1e-12):
        # In a ball that is next to nothing all that counts is charged at the activations.
        own = select(state, objectives.rows)
        own[0] = replace(own[0], radius=torch.full_like(own[0].radius, radius))
        found = case.dual.start(own, objectives)
        real = wide.change(own, objectives, found)
        proven = narrow.certified(own, objectives, found)
        # What float64 rounds is next to nothing beside what float32 does.
        assert (proven <= real + 1e-13 * real.abs()).all()
        assert (proven < real).any()
        size = real.abs() + objectives.coefficients.flatten(1).norm(dim=1)
        assert (proven >= real - 1e-2 * size).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_state_that_drifts_further_proves_less(seed: int) -> None:
    case = Case(seed)
    objectives, _ = case.objectives()
    _, state = case.prepared("narrow", 0.1)
    own = select(state, objectives.rows)
    found = case.dual.start(own, objectives)
    still = case.dual.certified(own, objectives, found)
    drifting = {
        i: replace(layer, drift=torch.full_like(layer.anchor, 1e-3), drift_length=None)
        if i
        else layer
        for i, layer in own.items()
    }
    lost = still - case.dual.certified(drifting, objectives, found)
    assert (lost >= 0).all()
    assert lost.max() > 0
    assert lost.isfinite().all()
