"""States hold every point of their balls, and tighter ones only help."""

from itertools import product

import pytest
from attacks import in_ball
from bounds.test_bounds_dual import RADII, SEEDS, Case
from laws import seeded


@pytest.mark.parametrize("seed", SEEDS)
def test_every_state_holds_every_point(seed: int) -> None:
    """Boxes and balls of all kinds, prepared at the radius and above it."""
    case, generator = Case(seed), seeded(seed + 9)
    for name, radius in product(case.bounds, RADII):
        for above in (1.0, 1.7) if name in ("plain", "refined") else (1.3,):
            prepared, state = case.prepared(name, radius * above)
            if above > 1:
                state = case.bounds[name].state(case.centre, case.eps(radius), prepared)
            for _ in range(6):
                values = case.network.values(in_ball(case.x, case.eps(radius), generator))
                for i, layer in state.items():
                    z = values[case.network.nodes[i].inputs[0] if i else 0]
                    assert (z >= layer.lower - 1e-12).all()
                    assert (z <= layer.upper + 1e-12).all()
                    moved = ((z - layer.anchor) * layer.varying).flatten(1).norm(dim=1)
                    assert (moved <= layer.radius * (1 + 1e-12) + 1e-14).all()
                    change = values[i] - case.centre.values[i]
                    way = (z - layer.anchor).abs() * layer.gain
                    assert (change.abs() <= way * (1 + 1e-9) + 1e-11).all()
