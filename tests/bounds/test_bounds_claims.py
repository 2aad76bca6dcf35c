"""Claims: what goes through the claimed slopes exactly is exact, and covers what it stands for."""

import pytest
from test_bounds_sketch import ASSURANCE, Case, covered, exact_sum, row_lengths
from torch import Tensor

from lipcert.bounds.claimed import Claim, Rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("columns", [3, 40, 4000])
def test_columns_cover_the_errors_that_go_alone(seed: int, columns: int) -> None:
    """With columns the proven boxes hold as before, the exact parts are no less than in float64,
    and claims are no wider for them."""
    case, radius = Case(seed), 0.02
    plain, _ = case.proof(radius, ASSURANCE, Rows(exact=True))
    claim, proof = case.proof(radius, ASSURANCE, Rows(exact=True, columns=columns))
    alone = sum(int((place.alone > 0).flatten(1).sum(1).max()) for place in claim.places.values())
    assert alone <= columns
    assert covered(case, claim, proof)
    for i, place in claim.places.items():
        sink = case.network.nodes[i].inputs[0]
        length = radius * row_lengths(case, claim, sink) + column_sizes(case, claim, sink)
        assert place.ball is not None
        assert bool((place.ball >= length * (1 - 1e-5)).all())
        assert bool((place.ball <= length * (1 + 1e-3) + 1e-20).all())
        if columns == 4000:
            # Neuron by neuron chance has a say, in the mean it has none.
            assert float(place.width.mean()) <= 1.02 * float(plain.places[i].width.mean())


def column_sizes(case: Case, claim: Claim, sink: int) -> Tensor:
    """What the errors that go alone come to at each neuron, in float64."""
    return exact_sum(case, claim, sink, lambda place: place.alone)
