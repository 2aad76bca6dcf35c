"""The sketched tube: no run leaves a proven state."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from attacks import in_ball
from deployed_runs import DTYPES, ORDERS, deployed_values
from laws import normal, random_network, seeded, uniform
from torch import Generator, Tensor

from lipcert.bounds import Propagation
from lipcert.bounds.boxes import Centre
from lipcert.bounds.claims import Claim, Rows
from lipcert.bounds.projections import ProjectionAssurance
from lipcert.bounds.reverse import carry_back
from lipcert.bounds.sketch import COLUMN_BYTES, Tube, TubeProof
from lipcert.certification.deployed import Deployment
from lipcert.errors import InternalError
from lipcert.network import Network, NetworkBuilder, lower, simplify
from lipcert.network.activations import relu
from lipcert.network.operators import Dense, Diagonal
from lipcert.rounding import FORMATS

COUNT = 192
RADII = (1e-9, 1e-3, 0.05, 0.3)


@dataclass
class Seeded:
    """RandomNumbers from a generator; ``drawn`` keeps the normal ones."""

    batch: int
    generator: Generator
    drawn: list[Tensor] = field(default_factory=list)

    def normals(self, count: int, shape: tuple[int, ...]) -> Tensor:
        self.drawn.append(normal((self.batch, count, *shape), self.generator))
        return self.drawn[-1]

    def cauchy(self, count: int, shape: tuple[int, ...]) -> Tensor:
        even = uniform((self.batch, count, *shape), self.generator)
        return torch.tan(math.pi * (even - 0.5))

    def cauchy_of(self, count: int, own: Tensor) -> Tensor:
        return self.cauchy(count, own.shape[1:]) * own[:, None]


class Case:
    """A random network, samples, and a tube around them, in real or deployed arithmetic."""

    def __init__(self, seed: int, name: str | None = None, batch: int = 3) -> None:
        loaded = random_network(seeded(seed), blocks=1 + seed % 3)
        self.x = uniform((batch, *loaded.in_shape), seeded(seed + 50))
        if name is not None:
            self.x = self.x.to(DTYPES[name]).double()
        self.network = simplify(lower(simplify(loaded)))
        arithmetic = None if name is None else FORMATS[name]
        self.deployment = Deployment.of(loaded, arithmetic=arithmetic, softmax=False)
        self.noise = self.deployment.noise(self.network)
        self.tube = Tube(self.network, self.network.to_guess_by())
        self.centre = anchors(self.network, self.x)
        self.seed = seed

    def proof(
        self, radius: float, assurance: ProjectionAssurance, rows: Rows | None = None
    ) -> tuple[Claim, TubeProof]:
        """``rows``: by default exact in every second case."""
        rows = Rows(exact=self.seed % 2 == 1) if rows is None else rows
        eps = torch.full((len(self.x),), radius, dtype=torch.float64)
        rounding = None if self.noise is None else self.noise.over(eps).before
        first, second = (Seeded(len(eps), seeded(self.seed + k)) for k in (1000, 2000))
        claim = self.tube.claim(self.centre, eps, assurance, first, COUNT, rounding, rows)
        return claim, self.tube.prove(self.centre, claim, assurance, second)


def anchors(network: Network, x: Tensor) -> Centre:
    return Propagation.of(network, [math.inf] * len(network.nodes)).anchors(x)


ASSURANCE = ProjectionAssurance.of(COUNT, 1e-9)


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


def exact_widths(case: Case, claim: Claim, sink: int) -> Tensor:
    """What the claim's weights give exactly at each neuron: its row's norm, and its errors."""
    network, size = case.network, math.prod(case.network.nodes[sink].shape)
    batch, places = len(case.x), claim.places
    objectives = torch.eye(size, dtype=torch.float64).reshape(size, *network.nodes[sink].shape)
    objectives = objectives.repeat(batch, *(1,) * (objectives.dim() - 1))
    rows = torch.arange(batch).repeat_interleave(size)
    total = torch.zeros(len(objectives), dtype=torch.float64)

    def relax(i: int, value: Tensor) -> Tensor:
        nonlocal total
        total = total + (value.abs() * places[i].half[rows]).flatten(1).sum(1)
        return value * places[i].slope[rows]

    rest = carry_back(network, sink, objectives, relax)
    if rest is not None:
        total = total + claim.eps[rows] * rest.flatten(1).norm(dim=1)
    return total.reshape(batch, *network.nodes[sink].shape)


@pytest.mark.parametrize("seed", range(8))
def test_proven_widths_cover_the_exact_ones(seed: int) -> None:
    case = Case(seed)
    for radius in (1e-6, 0.05):
        claim, proof = case.proof(radius, ASSURANCE)
        assert covered(case, claim, proof)


def covered(case: Case, claim: Claim, proof: TubeProof) -> bool:
    for i, place in claim.places.items():
        sink = case.network.nodes[i].inputs[0]
        exact, layer = exact_widths(case, claim, sink), proof.state[i]
        middle = layer.anchor + place.shift
        # A proven box is the claimed one at most, which a neuron that was missed leaves.
        proven = torch.maximum(layer.upper - middle, middle - layer.lower)
        good = proof.held.reshape(-1, *(1,) * (exact.dim() - 1)).expand_as(exact)
        if bool((exact > proven * (1 + 1e-9))[good].any()):
            return False
    return True


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
    """Neurons that are wider than claimed are followed one by one, in so much memory and no more."""
    network = wide_network(width)
    centre = anchors(network, torch.zeros(1, 1, 8).double())
    tube, eps = Tube(network, network.to_guess_by()), torch.tensor([0.1], dtype=torch.float64)
    claim = tube.claim(centre, eps, ASSURANCE, Seeded(1, seeded(1)), COUNT, None)
    # As if all widths had been claimed too small, by less than what is still covered.
    small = {
        i: replace(place, width=place.width / 4, rest=place.rest / 4, half=place.half / 4)
        for i, place in claim.places.items()
    }
    proof = tube.prove(
        centre, replace(claim, places=small), ASSURANCE, Seeded(1, seeded(2))
    )
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
