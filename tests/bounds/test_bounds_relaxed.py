"""One activation in a box and a ball: no values that lie in both do worse than its relaxation."""

import pytest
import torch
from bounds.test_bounds_dual import Case
from laws import normal, seeded, uniform

from lipcert.bounds.coupled import LayerMultipliers
from lipcert.bounds.relaxed import RelaxedState

POINTS = 100


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("radius", [0.02, 0.5])
def test_no_value_of_box_and_ball_is_below_the_relaxed_minimum(seed: int, radius: float) -> None:
    """With any slopes and multipliers; tried at corners, inside, and along the ball."""
    case, generator = Case(seed), seeded(seed + 7)
    relaxed = RelaxedState(case.network, case.prepared("plain", radius)[1])
    for i in relaxed.activations:
        layer, kind = relaxed.state[i], relaxed.kind(i)
        value, slope = (normal(layer.anchor.shape, generator) for _ in range(2))
        slope = slope * layer.varying
        logs = 4 * normal((len(layer.anchor),), generator)
        passed, gained = relaxed.passed(i, value, slope, LayerMultipliers.of(layer, logs))
        minima = relaxed.minima(i, value, slope, LayerMultipliers.of(layer, logs))
        cost = logs.exp() * layer.radius.square()
        assert gained + cost == pytest.approx(minima.flatten(1).sum(1), rel=1e-9, abs=1e-9)
        for k in range(POINTS):
            share = uniform(layer.anchor.shape, generator)
            share = share.round() if k % 2 else share
            change = (layer.lower + share * (layer.upper - layer.lower) - layer.anchor).mul(
                layer.varying
            )
            length = change.flatten(1).norm(dim=1)
            inside = (layer.radius / length.clamp(min=1e-300)).clamp(max=1)
            change = change * inside.reshape(-1, *(1,) * (change.dim() - 1))
            rise = kind.value(layer.anchor + change) - kind.value(layer.anchor)
            found = (value * rise - passed * change).flatten(1).sum(1)
            assert bool((gained <= found + 1e-9 * (1 + found.abs())).all())


def test_a_larger_multiplier_than_the_ball_s_own_proves_less() -> None:
    """The minimum is concave in the multiplier: ends of a range are no better than its best."""
    case = Case(4)
    relaxed = RelaxedState(case.network, case.prepared("plain", 0.3)[1])
    i = next(iter(relaxed.activations))
    layer = relaxed.state[i]
    value = normal(layer.anchor.shape, seeded(1))
    logs = torch.linspace(-12, 12, 49, dtype=torch.float64)
    gained = torch.stack([
        relaxed.passed(i, value, torch.zeros_like(value),
                       LayerMultipliers.of(layer, log.expand(len(value))))[1]
        for log in logs
    ])  # fmt: skip
    best = gained.amax(0)
    assert bool((gained[0] <= best).all())
    assert bool((gained[-1] < best).all())
