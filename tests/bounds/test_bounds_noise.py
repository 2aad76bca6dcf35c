"""Rounding as noise: no deployed run leaves the states and margins that allow for it."""

from collections.abc import Iterator

import pytest
import torch
from attacks import in_ball
from bounds.test_bounds_dual import deterministic
from deployed_runs import DTYPES, ORDERS, deployed_values
from laws import normal, random_network, seeded, uniform

from lipcert.bounds import AnchoredBound, Centre, Layers
from lipcert.bounds.noise import NoiseSweep
from lipcert.bounds.objectives import margin_objectives
from lipcert.bounds.state import Noised, State, select
from lipcert.certification import Certifier
from lipcert.certification.deployed import Deployment
from lipcert.network import Forward, Network, NetworkBuilder, ancestors, forward, lower, simplify
from lipcert.network.activations import relu
from lipcert.network.operators import Dense, Diagonal, Operator, Select
from lipcert.norms import SegmentNorms
from lipcert.numbers import Box
from lipcert.options import Epsilon, Options
from lipcert.rounding import FORMATS

NAMES = ["bfloat16", "float32"]
SEEDS = range(10)


class Noisy:
    """One random network, deployed in one format, some samples, and balls around them."""

    def __init__(self, seed: int, name: str, radius: float) -> None:
        generator = seeded(seed)
        network = random_network(generator, blocks=1 + seed % 2)
        self.x = uniform((3, *network.in_shape), generator).to(DTYPES[name]).double()
        self.labels = network.logits(self.x).argmax(1)
        simple = simplify(lower(simplify(network)))
        deployment = Deployment.of(network, arithmetic=FORMATS[name], softmax=False)
        noise = deployment.noise(simple)
        assert noise is not None
        self.deployment, self.noise, self.name = deployment, noise, name
        layers = Layers.of(simple)
        norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
        self.bound = AnchoredBound.of(layers, norms)
        self.centre: Centre = self.bound.propagation.anchors(self.x)
        self.eps = torch.full((3,), radius, dtype=torch.float64)

    def state(self, *, noisy: bool = True) -> tuple[State, NoiseSweep]:
        sweep = self.noise.over(self.eps)
        noise_of = sweep.before if noisy else None
        return self.bound.prepare_state(self.centre, self.eps, deterministic, noise_of)[1], sweep

    def runs(self) -> Iterator[list[torch.Tensor]]:
        """Every node's value, of the deployed network with its comparisons lowered."""
        points = [self.x, *(in_ball(self.x, self.eps, seeded(k)) for k in range(3))]
        for k, order in enumerate(ORDERS.values()):
            yield deployed_values(
                self.noise.roundoff.network, points[k % len(points)], DTYPES[self.name], order,
                self.noise.compared,
            )  # fmt: skip

    def leaves(self, state: State, values: list[torch.Tensor]) -> bool:
        """Whether a run leaves a box or a ball of the state."""
        out = False
        for i, partner in self.noise.partners.items():
            if i:
                layer, z = state[partner], values[self.noise.roundoff.network.nodes[i].inputs[0]]
                moved = ((z - layer.anchor) * layer.varying).flatten(1).norm(dim=1)
                out |= bool(((z < layer.lower) | (z > layer.upper)).any())
                out |= bool((moved > layer.radius * (1 + 1e-12)).any())
        return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_run_leaves_a_noisy_state(seed: int, name: str) -> None:
    for radius in (1e-9, 0.05, 0.3):
        case = Noisy(seed, name, radius)
        state, _ = case.state()
        assert not any(case.leaves(state, values) for values in case.runs())


class Exact(Forward[torch.Tensor]):
    """Values in real arithmetic, between those that are known."""

    def sum(self, i: int, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(parts).sum(0)

    def affine(self, i: int, operator: Operator, before: torch.Tensor) -> torch.Tensor:
        return operator.forward(before)


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_within_its_values_and_its_length(name: str) -> None:
    """What a run rounds between its own activations and the next, one by one and as a length; and
    there are networks where the length says more than all values together."""
    shorter = 0
    for seed in SEEDS:
        case = Noisy(seed, name, 0.05)
        sweep, found = case.noise.over(case.eps), dict[int, Noised]()

        def before(node: int, state: State, box: Box, sweep=sweep, found=found) -> Noised:
            found[node] = sweep.before(node, state, box)
            return found[node]

        case.bound.prepare_state(case.centre, case.eps, deterministic, before)
        network = case.noise.roundoff.network
        points = [case.x, *(in_ball(case.x, case.eps, seeded(k)) for k in range(3))]
        for k, values in enumerate(case.runs()):
            known = {i: values[i] for i in network.sources} | {0: points[k % len(points)]}
            for sink, noise in found.items():
                for i in case.noise.sinks[sink]:
                    exact = forward(
                        network, Exact(), known=known, along=ancestors(network, i)
                    )[i]  # fmt: skip
                    off = (values[i] - exact).abs() if i else torch.zeros_like(values[0])
                    # What float64 makes of the exact values here.
                    own = 1e-13 * (1 + exact.abs().amax())
                    assert bool((off <= noise.each + own).all())
                    assert bool((off.flatten(1).norm(dim=1) <= noise.length + 10 * own).all())
        for noise in found.values():
            whole = noise.each.flatten(1).norm(dim=1)
            assert bool((noise.length <= whole * (1 + 1e-9)).all())
            shorter += int((noise.length < 0.99 * whole).sum())
    assert shorter > 0


@pytest.mark.parametrize("name", NAMES)
def test_runs_do_leave_states_without_noise(name: str) -> None:
    left = 0
    for seed in SEEDS:
        case = Noisy(seed, name, 1e-9)
        state, _ = case.state(noisy=False)
        left += any(case.leaves(state, values) for values in case.runs())
    assert left > len(SEEDS) / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_run_goes_below_a_margin_that_allows_for_noise(seed: int, name: str) -> None:
    for radius in (1e-9, 0.1):
        case = Noisy(seed, name, radius)
        state, sweep = case.state()
        network, count = case.bound.layers.network, case.bound.layers.network.classes
        rows = torch.arange(3).repeat_interleave(count)
        labels, others = case.labels[rows], torch.arange(count).repeat(3)
        objectives, own = margin_objectives(network, rows, labels, others), select(state, rows)
        dual = case.bound.duals[0]
        _, found = dual.optimise(own, objectives, dual.start(own, objectives), 20)
        logits, error = case.centre.logits[rows], case.centre.logit_errors[rows]
        noise = error + sweep.logits(state)[rows]
        places = torch.arange(len(rows))
        clean = logits[places, labels] - logits[places, others]
        lost = noise[places, labels] + noise[places, others]
        proven = clean + dual.certified(own, objectives, found) - lost * (1 + 1e-9)
        for values in case.runs():
            run = values[-1].flatten(1)[rows]
            margin = run[places, labels] - run[places, others]
            different = labels != others
            assert (proven[different] <= margin[different] + 1e-12).all()


def sorted_by(order: list[int]) -> Network:
    """Small numbers beside a large one, in some order, through a ReLU."""
    like, builder = torch.ones(1, dtype=torch.float64), NetworkBuilder((1, 4))
    bias = torch.tensor([1e6, 0.0, 0.0, 0.0], dtype=torch.float64)
    node = builder.operator(Select.of(torch.tensor([order]), (1, 4)), 0)
    node = builder.operator(Diagonal.of(like.new_ones(1, 4), bias[order][None], (1, 4)), node)
    node = builder.activation(relu(), node)
    return builder.build(builder.operator(Dense.of(like.new_ones(2, 4), None, (1, 4)), node))


def test_another_order_of_small_numbers_is_another_network() -> None:
    network = sorted_by([0, 1, 2, 3])
    deployment = Deployment.of(network, arithmetic=FORMATS["float32"], softmax=False)
    assert deployment.noise(network) is not None
    assert deployment.noise(sorted_by([0, 2, 1, 3])) is None


def deep(depth: int) -> Network:
    """Layers of norm 1 whose magnitudes have norms far above 1."""
    builder, node, generator = NetworkBuilder((1, 24)), 0, seeded(0)
    for _ in range(depth):
        weight = torch.linalg.qr(normal((24, 24), generator))[0]
        node = builder.operator(Dense.of(weight, 0.3 * normal((24,), generator), (1, 24)), node)
        node = builder.activation(relu(), node)
    last = normal((3, 24), generator)
    return builder.build(builder.operator(Dense.of(last, None, (1, 24)), node))


def test_what_depth_costs_is_not_what_magnitudes_grow_by() -> None:
    """Errors from anchor to anchor stay as they are; those from real values explode."""
    network = deep(30)
    x = uniform((5, 1, 24), seeded(1))
    propagation = AnchoredBound.of(Layers.of(network), {}).propagation
    added, near = propagation.centre(x).logit_errors, propagation.anchors(x).logit_errors
    assert (near < 1e-12).all()
    assert (added > 1e3 * near).all()


def test_a_deep_network_is_certified_as_deployed() -> None:
    network = deep(12).to(dtype=torch.float32).to(dtype=torch.float64)
    x = uniform((6, 1, 24), seeded(1)).float().double()
    labels, radius = network.logits(x).argmax(1), {}
    for deployed in ("real", "float32"):
        options = Options((Epsilon.parse("0.01"),), deployed=deployed)
        samples = Certifier(network, options, samples=6)(x, labels, range(6))
        radius[deployed] = [sample.radius or 0.0 for sample in samples]
    for real, single in zip(radius["real"], radius["float32"], strict=True):
        assert real > 0
        assert single > 0.9 * real
