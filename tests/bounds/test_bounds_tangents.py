"""Tangents are put in order, summed and added to as they should be."""

import pytest
import torch
from laws import seeded
from tubes import Seeded

from lipcert.bounds.tangents import Bundle, Tangents

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_statistics_are_those_of_sorting_and_leave_tangents_alone(dtype: torch.dtype) -> None:
    generator = seeded(4)
    several = torch.randn(2, 3 + 50, 7, generator=generator).to(dtype)
    parts = [several[:, some].flatten(0, 1) for some in torch.arange(3, 53).split(20)]
    bundle = Bundle((several[:, :3].flatten(0, 1),), tuple(parts))
    before, ranks = [part.clone() for part in bundle.rows + bundle.cauchy], torch.tensor([20, 51])
    measures = Tangents(2, 3, 50, Seeded(2, generator), dtype, largest=7, device=CPU)
    found = measures.ordered(bundle, ranks)
    assert all(map(torch.equal, (bundle.rows + bundle.cauchy), before))
    ordered = several.double()[:, 3:].abs().sort(dim=1).values
    assert bool((found[0] >= ordered[0, 19]).all())
    assert bool((found[0] <= ordered[0, 19] * (1 + 1e-6)).all())
    # No such rank: nothing is known.
    assert bool(found[1].isinf().all())
    length = several.double()[:, :3].square().mean(1).sqrt()
    torch.testing.assert_close(measures.lengths(bundle), length, rtol=1e-6, atol=0)


def test_unit_vectors_measure_rows_from_above() -> None:
    coins = Seeded(1, seeded(1))
    measures = Tangents(1, 6, 8, coins, torch.float32, largest=2**18, device=CPU, exact=True)
    start = measures.start((1, 6))
    assert len(start.rows) == 2
    matrix = torch.randn(5, 6, generator=seeded(2))
    exact = matrix.double().square().sum(1).sqrt()
    found = measures.lengths(start.map(lambda part: part.flatten(1) @ matrix.mT))[0]
    assert bool((found >= exact).all())
    assert bool((found <= exact * (1 + 1e-5)).all())


def test_columns_add_up_by_where_they_entered() -> None:
    """Of two branches one has errors of its own, the other none of these."""
    tangents = Tangents(2, 3, 8, Seeded(2, seeded(1)), torch.float32, largest=2**20, device=CPU)
    start = tangents.start((1, 5))
    errors = torch.tensor([[[0.0, 2.0, 0.0, 1.0, 0.0]], [[3.0, 0.0, 0.0, 0.0, 0.0]]]).double()
    one = tangents.enter(start, 4, errors, 2)
    both = Bundle.total([one, tangents.enter(start, 6, 2 * errors, 2), one])
    assert torch.equal(tangents.sizes(one), tangents.sizes(one).clamp(min=errors))
    found = tangents.sizes(both)
    assert bool((found >= 4 * errors).all() & (found <= 4 * errors * (1 + 1e-12)).all())
    slope = torch.full((2, 1, 5), -0.5).double()
    halved = tangents.sizes(tangents.through(both, slope, torch.zeros(2, 1, 5).double()))
    assert torch.allclose(halved, found / 2)
