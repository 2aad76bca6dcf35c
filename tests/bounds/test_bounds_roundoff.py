"""What is known of a network before its roundings are looked for: norms that none of its maps
exceed, and what the arithmetic of the analysis adds."""

import pytest
import torch
from laws import random_network, seeded, uniform

from lipcert.bounds.roundoff import Roundoff
from lipcert.rounding import DOUBLE, SINGLE


@pytest.mark.parametrize("seed", range(4))
def test_no_vector_grows_by_more_than_the_norms(seed: int) -> None:
    network, generator = random_network(seeded(seed)), seeded(seed + 9)
    tools = Roundoff.of(network)
    for i, operator in network.operators.items():
        v = uniform((50, *operator.in_shape), generator)
        length, size = v.flatten(1).norm(dim=1), operator.apply(v).flatten(1)
        assert bool((size.norm(dim=1) <= tools.norms[i] * length * (1 + 1e-12)).all())
        rows = tools.rows[i]
        assert rows is not None
        assert bool((size.abs() <= rows.flatten() * length[:, None] * (1 + 1e-12)).all())
    for i in network.activations:
        assert tools.norms[i] >= 0


def test_only_an_analysis_in_a_narrower_type_is_charged() -> None:
    network = random_network(seeded(3))
    wide, narrow = Roundoff.of(network), Roundoff.of(network, SINGLE)
    assert wide.analysis == DOUBLE
    assert wide.unit == 0
    assert narrow.unit == SINGLE.unit
    # Squares of float32 underflow at 1e-38, those of float64 at 1e-308.
    assert 0 < wide.underflow < narrow.underflow < 1e-10
    assert torch.isfinite(torch.tensor(narrow.norms)).all()
