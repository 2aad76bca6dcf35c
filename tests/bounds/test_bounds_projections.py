"""Projections hold as often as they say."""

import math

import pytest
import torch
from laws import seeded
from test_bounds_sketch import Seeded

from lipcert.bounds.projections import Bundle, ProjectionAssurance, Tangents


@pytest.mark.parametrize("count", [48, 192, 1024])
def test_projections_fail_no_more_often_than_they_say(count: int) -> None:
    rows, assurance = 20_000, ProjectionAssurance.of(count, 0.01)
    coins = Seeded(rows, seeded(count))
    square = coins.normals(count, ()).square().mean(1).sqrt()
    ordered = coins.cauchy(count, ()).abs().kthvalue(assurance.rank, 1).values
    low, small = square * assurance.factor < 1, ordered < assurance.divisor
    for failed in (low, small):
        # Three standard deviations of a risk of .01; the bounds are far from vacuous, too.
        assert float(failed.double().mean()) <= 0.01 + 3 * math.sqrt(0.01 / rows)
    assert float((square * assurance.factor).mean()) < 3
    assert float((ordered / assurance.divisor).median()) < 6
    # With less of a factor they do fail more often.
    assert float((square * (assurance.factor * 0.8) < 1).double().mean()) > 0.01
    assert float((ordered < assurance.divisor * 1.4).double().mean()) > 0.01


CPU = torch.device("cpu")


def test_so_few_projections_assure_nothing() -> None:
    for count, risk in ((4, 1e-3), (192, 0.0), (64, 1e-300)):
        with pytest.raises(ValueError, match="assure nothing"):
            ProjectionAssurance.of(count, risk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_statistics_are_those_of_sorting_and_leave_tangents_alone(dtype: torch.dtype) -> None:
    generator = seeded(4)
    several = torch.randn(2, 3 + 50, 7, generator=generator).to(dtype)
    parts = [several[:, some].flatten(0, 1) for some in torch.arange(3, 53).split(20)]
    bundle = Bundle((several[:, :3].flatten(0, 1),), tuple(parts))
    before, ranks = [part.clone() for part in bundle.parts], torch.tensor([20, 51])
    measures = Tangents(2, 3, 50, Seeded(2, generator), dtype, largest=7, device=CPU)
    found = measures.ordered(bundle, ranks)
    assert all(map(torch.equal, bundle.parts, before))
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
