"""Projections hold as often as they say."""

import math

import pytest
from laws import seeded
from tubes import Seeded

from lipcert.bounds.projections import ProjectionAssurance


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


def test_so_few_projections_assure_nothing() -> None:
    for count, risk in ((4, 1e-3), (192, 0.0), (64, 1e-300)):
        with pytest.raises(ValueError, match="assure nothing"):
            ProjectionAssurance.of(count, risk)
