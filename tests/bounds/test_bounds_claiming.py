"""Claims of a tube: exact rows are no shorter than the true ones, with what they are rounded by."""

import math

import pytest
import torch
from attacks import in_ball
from laws import normal, seeded
from torch import Tensor
from tubes import ASSURANCE, COUNT, Case, Seeded, anchors, covered

from lipcert.bounds.claims import Claim, Rows
from lipcert.bounds.reverse import carry_back
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


def row_lengths(case: Case, claim: Claim, sink: int) -> Tensor:
    network, batch = case.network, len(case.x)
    size, shape = math.prod(network.nodes[sink].shape), network.nodes[sink].shape
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    unit = unit.repeat(batch, *(1,) * len(shape))
    rows = torch.arange(batch).repeat_interleave(size)
    rest = carry_back(network, sink, unit, lambda i, v: v * claim.places[i].slope[rows])
    if rest is None:
        return torch.zeros(batch, *shape, dtype=torch.float64)
    return rest.flatten(1).norm(dim=1).reshape(batch, *shape)


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
