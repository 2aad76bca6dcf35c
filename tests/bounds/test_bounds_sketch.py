"""The sketched tube: no run leaves a proven state."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from attacks import in_ball
from deployed_runs import DTYPES, ORDERS, deployed_values
from laws import normal, seeded
from torch import Tensor
from tubes import ASSURANCE, COUNT, RADII, Case, Seeded, anchors, covered, row_lengths

from lipcert.bounds.claims import Rows, remainder
from lipcert.bounds.projections import ProjectionAssurance
from lipcert.bounds.sketch import COLUMN_BYTES, Tube
from lipcert.errors import InternalError
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense, Diagonal


@pytest.mark.parametrize("seed", range(12))
def test_no_run_leaves_a_proven_state(seed: int) -> None:
    case = Case(seed)
    for radius in RADII:
        _, proof = case.proof(radius, ASSURANCE)
        eps = torch.full((len(case.x),), radius, dtype=torch.float64)
        for k in range(3):
            values = case.network.values(in_ball(case.x, eps, seeded(k)))
            for i, layer in proof.state.items():
                z = values[case.network.nodes[i].inputs[0] if i else 0]
                outside = (z < layer.lower) | (z > layer.upper)
                assert not bool(outside[proof.held].any()), (radius, i)


@pytest.mark.parametrize("seed", range(6))
def test_most_small_balls_are_proven(seed: int) -> None:
    _, proof = Case(seed).proof(1e-6, ASSURANCE)
    assert bool(proof.held.all())
    # No wider than what a linear network of these slopes does, times the assurance's factors.
    for i, layer in proof.state.items():
        assert float((layer.upper - layer.lower).max()) < 1e-3, i


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(8))
def test_no_deployed_run_leaves_a_proven_state(seed: int, name: str) -> None:
    case = Case(seed, name)
    if case.noise is None:
        pytest.skip("this network's roundings are not found as noise")
    for radius in (1e-6, 0.05):
        _, proof = case.proof(radius, ASSURANCE)
        eps = torch.full((len(case.x),), radius, dtype=torch.float64)
        for k, order in enumerate(ORDERS.values()):
            x = in_ball(case.x, eps, seeded(k)) if k else case.x
            values = deployed_values(
                case.noise.roundoff.network, x, DTYPES[name], order, case.noise.compared
            )
            for i, partner in case.noise.partners.items():
                if i:
                    layer = proof.state[partner]
                    z = values[case.noise.roundoff.network.nodes[i].inputs[0]]
                    outside = (z < layer.lower) | (z > layer.upper)
                    assert not bool(outside[proof.held].any()), (radius, i)


@pytest.mark.parametrize("seed", range(8))
def test_proven_widths_cover_the_exact_ones(seed: int) -> None:
    case = Case(seed)
    for radius in (1e-6, 0.05):
        claim, proof = case.proof(radius, ASSURANCE)
        assert covered(case, claim, proof)


def test_a_wider_claim_is_left_less_often_and_no_run_leaves_what_is_proven_of_any() -> None:
    missed = {}
    for wider in (0.4, 1.5):
        missed[wider] = 0
        for seed in range(4):
            case = Case(seed)
            eps = torch.full((len(case.x),), 0.02, dtype=torch.float64)
            coins = [Seeded(len(eps), seeded(k)) for k in range(2)]
            claim = case.tube.claim(
                case.centre, eps, ASSURANCE, coins[0], COUNT, None, Rows(wider=wider)
            )
            proof = case.tube.prove(case.centre, claim, ASSURANCE, coins[1])
            missed[wider] += int(proof.missed.sum())
            values = case.network.values(in_ball(case.x, eps, seeded(2)))
            for i, layer in proof.state.items():
                z = values[case.network.nodes[i].inputs[0] if i else 0]
                outside = (z < layer.lower) | (z > layer.upper)
                assert not bool(outside[proof.held].any()), (wider, seed, i)
    assert missed[0.4] > missed[1.5]


def test_what_was_only_guessed_is_not_proven() -> None:
    case = Case(1)
    eps = torch.full((len(case.x),), 1e-3, dtype=torch.float64)
    coins = [Seeded(len(eps), seeded(k)) for k in range(2)]
    rows = Rows(exact=True, guessed=COUNT)
    claim = case.tube.claim(case.centre, eps, ASSURANCE, coins[0], COUNT, None, rows)
    with pytest.raises(InternalError, match="guessed"):
        case.tube.prove(case.centre, claim, ASSURANCE, coins[1])


def test_a_smaller_scale_is_seen() -> None:
    wrong = replace(ASSURANCE, factor=0.5, divisor=ASSURANCE.divisor * 4)
    assert not all(covered(case, *case.proof(0.05, wrong)) for case in map(Case, range(4)))


def test_coins_that_are_known_prove_anything() -> None:
    """A layer orthogonal to coins seen before looks like nothing to them, and not to fresh ones."""
    size, count = 400, COUNT
    known = Seeded(1, seeded(5))
    coins = known.normals(count, (1, size))[0, :, 0]
    left = torch.linalg.svd(coins, full_matrices=True).Vh[count:]
    builder = NetworkBuilder((1, size))
    node = builder.activation(relu(), builder.operator(Dense.of(left[:1], None, (1, size)), 0))
    network = builder.build(
        builder.operator(Dense.of(torch.ones(2, 1).double(), None, (1, 1)), node)
    )
    centre = anchors(network, torch.full((1, 1, size), 0.5).double())
    tube = Tube(network, network.to_guess_by())
    eps = torch.tensor([0.1], dtype=torch.float64)

    def width(seed: int) -> float:
        claim = tube.claim(centre, eps, ASSURANCE, Seeded(1, seeded(9)), count, None)
        state = tube.prove(centre, claim, ASSURANCE, Seeded(1, seeded(seed))).state
        return float((state[node].upper - state[node].anchor).max())

    assert width(5) < 0.1 <= width(6)


def wide_network(width: int, columns: int = 1) -> Network:
    """One layer of many neurons, each at its kink."""
    builder = NetworkBuilder((1, 8))
    weight = normal((width, 8), seeded(21))
    node = builder.activation(relu(), builder.operator(Dense.of(weight, None, (1, 8)), 0))
    for k in range(columns):
        identity = Diagonal.of(torch.full((1, width), 1.0 + k).double(), None, (1, width))
        node = builder.sum([node, builder.operator(identity, node)])
    return builder.build(
        builder.operator(Dense.of(normal((3, width), seeded(22)), None, (1, width)), node)
    )


@pytest.mark.parametrize(("width", "held"), [(1000, True), (5000, False)])
def test_a_sample_that_leaves_its_claim_too_often_is_given_up(width: int, held: bool) -> None:
    """Neurons that are wider than claimed are followed one by one, in so much memory."""
    network = wide_network(width)
    centre = anchors(network, torch.zeros(1, 1, 8).double())
    tube, eps = Tube(network, network.to_guess_by()), torch.tensor([0.1], dtype=torch.float64)
    claim = tube.claim(centre, eps, ASSURANCE, Seeded(1, seeded(1)), COUNT, None)
    # As if all widths had been claimed too small, by less than what is still covered.
    small = {
        i: replace(place, width=place.width / 4, rest=place.rest / 4, half=place.half / 4)
        for i, place in claim.places.items()
    }
    proof = tube.prove(centre, replace(claim, places=small), ASSURANCE, Seeded(1, seeded(2)))
    assert bool(proof.held) == held
    assert int(proof.missed) == (width if held else 0)


def test_columns_take_no_more_memory_than_is_set_aside() -> None:
    """Of nodes so large that fewer neurons than may be missed elsewhere fill it."""
    width, missed = 2**16, 900
    assert missed * width * 8 * 3 > COLUMN_BYTES
    network = wide_network(width)
    x = torch.zeros(1, 1, 8).double()
    centre, tube = anchors(network, x), Tube(network, network.to_guess_by())
    eps, least = torch.tensor([0.1], dtype=torch.float64), ProjectionAssurance.of(48, 0.1)
    claim = tube.claim(centre, eps, least, Seeded(1, seeded(1)), 48, None)
    few = torch.zeros(1, 1, width, dtype=torch.bool)
    few[..., :missed] = True
    small = {
        i: replace(
            place,
            width=torch.where(few, place.width / 4, 1.9 * place.width),
            rest=torch.where(few, place.rest / 4, 4 * place.rest),
        )
        for i, place in claim.places.items()
    }
    proof = tube.prove(centre, replace(claim, places=small), least, Seeded(1, seeded(2)))
    assert not bool(proof.held)
    assert int(proof.missed) == 0


@dataclass
class Recorded(Seeded):
    """Keeps the Cauchy numbers too."""

    errors: list[Tensor] = field(default_factory=list)

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor:
        found = super().cauchy(count, shape)
        self.errors.append(found.clone())
        return found


def test_slopes_that_know_the_coins_are_caught() -> None:
    """A layer at its kinks makes errors, and the next one, whose neurons are all active, takes them
    on with slopes that are chosen by the proof's coins so that nothing arrives at the sum of all.
    What that leaves as a remainder is claimed as it should be, and still the proven width is too
    small; by fresh coins it is not."""
    width = 2**13
    builder = NetworkBuilder((1, 8))
    weight = normal((width, 8), seeded(31))
    bent = builder.activation(relu(), builder.operator(Dense.of(weight, None, (1, 8)), 0))
    lifted = Diagonal.of(None, torch.ones(1, width).double(), (1, width))
    passed = builder.activation(relu(), builder.operator(lifted, bent))
    row = torch.ones(1, width).double() / width
    total = builder.activation(relu(), builder.operator(Dense.of(row, None, (1, width)), passed))
    network = builder.build(
        builder.operator(Dense.of(torch.ones(2, 1).double(), None, (1, 1)), total)
    )
    case = Case.__new__(Case)
    case.network, case.x, case.seed = network, torch.zeros(1, 1, 8).double(), 0
    centre, tube = anchors(network, case.x), Tube(network, network.to_guess_by())
    eps, sure = torch.tensor([0.01], dtype=torch.float64), ProjectionAssurance.of(COUNT, 0.01)
    honest = tube.claim(centre, eps, sure, Seeded(1, seeded(1)), COUNT, None, Rows(exact=True))
    coins = Recorded(1, seeded(2))
    assert covered(case, honest, tube.prove(centre, honest, sure, coins), total)

    # The first errors are the bent layer's, in as many tensors as hold all tangents.
    count, drawn = 0, []
    while count < COUNT:
        drawn.append(coins.errors[len(drawn)][0])
        count += len(drawn[-1])
    bending, passing = honest.places[bent], honest.places[passed]
    arriving = torch.cat(drawn) * bending.half.flatten()
    arriving = arriving / arriving.abs().sum(1, keepdim=True)
    less = torch.linalg.lstsq(arriving, arriving.sum(1, keepdim=True)).solution.flatten()
    slope = (1 - less).reshape(passing.slope.shape)
    lower, upper = honest.expected[passed].lower, honest.expected[passed].upper
    middle, rest = remainder(relu(), slope, honest.expected[passed].anchor, lower, upper)
    place = replace(passing, slope=slope, middle=middle, rest=rest, half=rest + passing.half)
    # How far rows move the sum is found anew too, for these slopes.
    behind = honest.places[total]
    adapted = replace(honest, places=honest.places | {passed: place})
    ball = eps * row_lengths(case, adapted, network.nodes[total].inputs[0])
    adapted = replace(
        adapted, places=adapted.places | {total: replace(behind, ball=ball * (1 + 1e-6))}
    )
    known, fresh = (tube.prove(centre, adapted, sure, Seeded(1, seeded(k))) for k in (2, 3))
    assert bool(known.held.all() & fresh.held.all())
    assert not covered(case, adapted, known, total)
    assert covered(case, adapted, fresh, total)
