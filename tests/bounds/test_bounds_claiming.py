"""Claims of a tube: exact rows are no shorter than the true ones, with what they are rounded by."""

import pytest
import torch
from attacks import in_ball
from laws import normal, seeded
from torch import Tensor
from tubes import ASSURANCE, COUNT, Case, Seeded, anchors, covered, exact_sum, row_lengths

from lipcert.bounds.claims import Claim, Rows
from lipcert.bounds.sketch import Tube
from lipcert.network import NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense


@pytest.mark.parametrize("seed", range(6))
def test_exact_rows_are_no_shorter_than_the_true_ones(seed: int) -> None:
    """Unit vectors in float32, with what they were rounded by, beside rows in float64."""
    case, radius = Case(seed), 1e-3
    claim, _ = case.proof(radius, ASSURANCE, Rows(exact=True))
    for i, place in claim.places.items():
        sink = case.network.nodes[i].inputs[0]
        length = row_lengths(case, claim, sink)
        assert place.ball is not None
        # But for the rounding of layers before, which is among the errors.
        assert bool((place.ball >= radius * length * (1 - 1e-5)).all())
        assert bool((place.ball <= radius * length * (1 + 1e-3) + 1e-20).all())


def test_what_rows_are_rounded_by_is_charged() -> None:
    """Weights that cancel in real numbers, and leave float32 with a row that is far too short or
    too long: the proven boxes hold all the same."""
    size = 64
    generator = seeded(3)
    first = normal((size, 8), generator) * 1e6
    # The second layer's rows are orthogonal to the columns of the first but for one part in 1e9.
    basis = torch.linalg.qr(torch.cat([first, normal((size, size - 8), generator)], 1)).Q
    second = basis[:, 8:16].mT + 1e-9 * normal((8, size), generator)
    builder = NetworkBuilder((1, 8))
    node = builder.operator(Dense.of(first, 10.0 * torch.ones(size).double(), (1, 8)), 0)
    node = builder.activation(relu(), node)
    node = builder.operator(Dense.of(second, None, (1, size)), node)
    node = builder.activation(relu(), node)
    network = builder.build(
        builder.operator(Dense.of(normal((3, 8), generator), None, (1, 8)), node)
    )
    x = torch.full((1, 1, 8), 0.5).double() * 0
    centre, tube = anchors(network, x), Tube(network, network.to_guess_by())
    eps = torch.tensor([1e-7], dtype=torch.float64)
    claim = tube.claim(centre, eps, ASSURANCE, Seeded(1, seeded(1)), COUNT, None, Rows(exact=True))
    proof = tube.prove(centre, claim, ASSURANCE, Seeded(1, seeded(2)))
    assert bool(proof.held.all())
    case = Case.__new__(Case)
    case.network, case.x, case.seed = network, x, 0
    assert covered(case, claim, proof)
    for k in range(20):
        values = network.values(in_ball(x, eps, seeded(k)))
        for i, layer in proof.state.items():
            z = values[network.nodes[i].inputs[0] if i else 0]
            assert bool(((z >= layer.lower) & (z <= layer.upper)).all()), i


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
