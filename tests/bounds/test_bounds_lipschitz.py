"""Lower bounds of margins: sound against attacks, ordered, monotone, exact at radius 0."""

import pytest
import torch
from laws import normal, random_network, seeded, uniform

from lipcert.bounds import Bound, Centre, Facts, GlobalBound, Layers, LocalBallBound, LocalBound
from lipcert.bounds.lipschitz import local_radii
from lipcert.network import Network, simplify
from lipcert.norms import SegmentNorms, WeightedMap, schur_bound

SEEDS = range(14)
RADII = (0.0, 1e-6, 0.02, 0.3, 2.0)


def bound_of(kind: type[Bound], network: Network) -> Bound:
    layers = Layers.of(network)
    norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
    return kind.of(layers, norms)


def deterministic(norm: SegmentNorms | None, mapping: WeightedMap, _: int) -> torch.Tensor:
    return schur_bound(mapping) if norm is None else norm.deterministic(mapping)


class Case:
    """A random network, some samples with their predictions, and a bound of each kind."""

    def __init__(self, seed: int, batch: int = 4) -> None:
        self.network = simplify(random_network(seeded(seed)))
        self.x = uniform((batch, *self.network.in_shape), seeded(seed + 1))
        self.labels = self.network.logits(self.x).argmax(1)
        self.local = bound_of(LocalBound, self.network)
        self.others = {kind: self.local.replaced(kind) for kind in (GlobalBound, LocalBallBound)}
        self.centre: Centre = self.local.propagation.centre(self.x)

    def eps(self, radius: float) -> torch.Tensor:
        return torch.full((len(self.x),), radius, dtype=torch.float64)

    def prepared(self, radius: float) -> Facts:
        return self.local.prepare(self.centre, self.eps(radius), deterministic)

    def margins(self, kind: type[Bound], radius: float, prepared: float) -> torch.Tensor:
        bound = self.local if kind is LocalBound else self.others[kind]
        return bound.margins(self.centre, self.labels, self.eps(radius), self.prepared(prepared))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_the_bounds(seed: int) -> None:
    """``local`` is at least ``global``, and at least itself without the box."""
    case = Case(seed)
    for radius in RADII:
        local = case.margins(LocalBound, radius, radius)
        ball = case.margins(LocalBallBound, radius, radius)
        whole = case.margins(GlobalBound, radius, radius)
        slack = 1e-9 * (1 + whole.abs())
        assert (local >= ball - slack).all()
        assert (ball >= whole - slack).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_local_constant_holds_between_any_two_points(seed: int) -> None:
    case = Case(seed)
    generator = seeded(seed + 50)
    for radius in (0.01, 0.3, 2.0):
        eps = case.eps(radius)
        constant = case.local.constant(case.centre, eps, case.prepared(radius))
        whole = case.others[GlobalBound].product
        assert (constant <= whole * (1 + 1e-9)).all()
        for _ in range(60):
            one, two = (
                case.x
                + radius * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)
                for direction in (normal(case.x.shape, generator) for _ in range(2))
            )
            # Far apart, and next to each other inside the ball.
            for first, second in ((one, two), (case.x + (one - case.x) / 2, one)):
                near = first + 1e-3 * (second - first)
                for other in (second, near):
                    change = (case.network.logits(first) - case.network.logits(other)).norm(dim=1)
                    distance = (first - other).flatten(1).norm(dim=1)
                    assert (change <= constant * distance * (1 + 1e-9) + 1e-12).all()


def test_the_local_bound_is_better_where_neurons_are_dead() -> None:
    """Huang et al.'s point: rows and columns of constant neurons leave the norm."""
    gains = []
    for seed in SEEDS:
        case = Case(seed)
        radius = 1e-3
        local = case.local.constant(case.centre, case.eps(radius), case.prepared(radius))
        whole = case.others[GlobalBound].product
        gains.append(float((whole / local).mean()))
    assert max(gains) > 1.5
    assert min(gains) > 1


@pytest.mark.parametrize("seed", SEEDS)
def test_radii_of_a_narrower_type_are_rounded_up(seed: int) -> None:
    layers = Layers.of(simplify(random_network(seeded(seed))))
    norms = {
        (edge.source, edge.sink): uniform((50,), seeded(seed + n)) * 3
        for n, edge in enumerate(layers.edges)
    }
    eps = uniform((50,), seeded(seed)).float()
    narrow, wide = local_radii(layers, norms, eps), local_radii(layers, norms, eps.double())
    for source, radius in wide.items():
        assert narrow[source].dtype == torch.float32
        assert (narrow[source].double() >= radius).all()
        assert (narrow[source].double() <= radius * (1 + 1e-4)).all()
