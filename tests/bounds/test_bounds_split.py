"""Branch and bound: leaves cover the ball, bounds hold on them, and enough of them are exact."""

import math

import pytest
import torch
from attacks import in_ball, smallest_margins
from bounds.test_bounds_dual import Case
from laws import ENDINGS, normal, random_network, seeded

from lipcert.bounds.coupled import coupled
from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import Objectives, margin_objectives
from lipcert.bounds.split import Leaves, Splitter
from lipcert.bounds.state import Layer, State, select, to_dtype
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import PReLU
from lipcert.network.activations.piecewise_linear import relu
from lipcert.network.operators import Dense

SEEDS = range(6)


class Search:
    """Branch and bound of every margin of a random network's samples at one radius."""

    def __init__(self, seed: int, radius: float) -> None:
        self.case = case = Case(seed)
        self.objectives, self.others = case.objectives()
        self.eps = case.eps(radius)
        _, state = case.prepared("plain", radius)
        self.clean = case.clean(self.objectives, self.others) - 1e-12
        self.guide = DualBound(case.network.to(dtype=torch.float32))
        self.state, self.radii = select(state, self.objectives.rows), self.eps[self.objectives.rows]
        single = to_dtype(self.state, torch.float32)
        found = self.guide.start(single, self.objectives.to(torch.float32))
        # Every other network with coupled balls.
        self.found = coupled(case.network, single, found) if seed % 2 else found

    def splitter(self, needed: torch.Tensor) -> Splitter:
        return Splitter(self.case.dual, self.guide, self.state, self.objectives, self.clean, needed)

    def certified(self, splitter: Splitter, leaves: Leaves) -> torch.Tensor:
        """Lower bounds of the margins on the leaves: ``(M,)``."""
        state, objectives = splitter.state_of(leaves), self.objectives.select(leaves.objective)
        found = leaves.found.to(torch.float64)
        return self.clean[leaves.objective] + self.case.dual.certified(state, objectives, found)

    def grown(self, splitter: Splitter, depth: int) -> Leaves:
        """All leaves after ``depth`` cuts."""
        leaves = Leaves.whole(self.found, self.clean)
        for _ in range(depth):
            leaves = splitter.cut(splitter.unproven(leaves, 3))
        return leaves


def inside(state: State, values: list[torch.Tensor], network: Network) -> torch.Tensor:
    """Whether each leaf's boxes hold the point of its row: ``(M,)``."""
    held = torch.ones(len(values[0]), dtype=torch.bool)
    for i, layer in state.items():
        z = values[network.nodes[i].inputs[0] if i else 0]
        held &= ((layer.lower - 1e-12 <= z) & (z <= layer.upper + 1e-12)).flatten(1).all(1)
    return held


@pytest.mark.parametrize("seed", SEEDS)
def test_every_point_lies_in_a_leaf_that_bounds_it(seed: int) -> None:
    generator = seeded(seed + 3)
    for radius in (0.1, 0.6):
        search = Search(seed, radius)
        splitter = search.splitter(torch.full_like(search.clean, math.inf))
        leaves = search.grown(splitter, 3)
        state, lowest = splitter.state_of(leaves), search.certified(splitter, leaves)
        rows, network = search.objectives.rows, search.case.network
        for _ in range(10):
            points = in_ball(search.case.x[rows], search.radii, generator)
            values = network.values(points)
            margins = (values[-1] * search.objectives.coefficients).flatten(1).sum(1)
            held = inside(state, [value[leaves.objective] for value in values], network)
            assert set(leaves.objective[held].tolist()) == set(range(len(rows)))
            reached = margins[leaves.objective]
            assert (lowest <= reached + 1e-11 * (1 + reached.abs()))[held].all()


@pytest.mark.parametrize("seed", SEEDS)
def test_halves_are_bounded_no_worse_than_the_whole(seed: int) -> None:
    search = Search(seed, 0.3)
    splitter = search.splitter(torch.full_like(search.clean, math.inf))
    whole = splitter.unproven(Leaves.whole(search.found, search.clean), 5)
    before = search.certified(splitter, whole)
    halves = splitter.cut(whole)
    assert len(halves)
    after = search.certified(splitter, halves)
    assert (after >= before[halves.objective] - 1e-9 * (1 + before[halves.objective].abs())).all()
    found = splitter.unproven(halves, 5)
    assert (search.certified(splitter, found) >= after - 1e-5 * (1 + after.abs())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_proven_that_an_attack_breaks(seed: int) -> None:
    """Margins that are reached at some point of the ball are not exceeded in all of it."""
    for radius in (0.1, 2.0):
        search = Search(seed, radius)
        case, rows = search.case, search.objectives.rows
        found = smallest_margins(case.network, case.x, case.labels, search.eps, steps=12)
        reached = found[rows, search.others] + 1e-11
        proven = search.splitter(reached).proven(search.found, leaves=16, steps=5)
        assert not proven.any()


def plane_network(kink: str, generator: torch.Generator, *, bent: bool) -> Network:
    """A small network on the plane, with kinks everywhere; ``bent``: in its logits too."""
    builder, node = NetworkBuilder((2,)), 0
    for width in (4, 3):
        rows = normal((width, builder.shape(node)[0]), generator)
        shift = normal((width,), generator) * 0.3
        node = builder.operator(Dense.of(rows, shift, builder.shape(node)), node)
        absolute = PReLU(torch.tensor(-1.0, dtype=torch.float64))
        node = builder.activation(relu() if kink == "relu" else absolute, node)
    last = Dense.of(normal((3, 3), generator), None, (3,))
    node = builder.operator(last, node)
    leaky = PReLU(torch.tensor(0.5, dtype=torch.float64))
    return builder.build(builder.activation(leaky, node) if bent else node)


def box_state(network: Network, x: torch.Tensor, eps: float) -> State:
    """Boxes by interval arithmetic, balls around them."""
    low, high = x - eps, x + eps
    values, one = network.values(x), torch.ones_like(x)
    radius = torch.full((len(x),), eps, dtype=x.dtype)
    state = {0: Layer(x, low, high, radius, one, one)}
    for i, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.kind, Dense):
            reach = node.kind.magnitude((high - low) / 2)
            low, high = (node.kind.forward((low + high) / 2) + side * reach for side in (-1, 1))
            continue
        one = torch.ones_like(low)
        radius = torch.maximum(high - values[i - 1], values[i - 1] - low).norm(dim=1)
        state[i] = Layer(values[i - 1], low, high, radius, one, one)
        low, high = node.kind.image(low, high)
    return state


@pytest.mark.parametrize(
    ("kink", "seed", "bent"),
    [("relu", 0, False), ("relu", 6, False), ("absolute", 0, False), ("absolute", 6, False),
     ("relu", 0, True)],
)  # fmt: skip
def test_small_networks_are_bounded_nearly_exactly(kink: str, seed: int, bent: bool) -> None:
    """In the plane a fine grid over the disc finds the smallest margins."""
    generator, eps = seeded(seed), 0.7
    network = plane_network(kink, generator, bent=bent)
    x = normal((1, 2), generator)
    label = network.logits(x).argmax(1)
    others = torch.tensor([j for j in range(3) if j != int(label)])
    rows = torch.zeros(2, dtype=torch.int64)
    objectives = margin_objectives(network, rows, label.expand(2), others)
    state = select(box_state(network, x, eps), rows)
    angle = torch.linspace(0, 2 * math.pi, 1441, dtype=torch.float64)
    length = torch.linspace(0, eps, 281, dtype=torch.float64)
    disc = torch.stack([angle.cos(), angle.sin()], 1)[:, None] * length[:, None]
    margins = network.logits((x + disc).reshape(-1, 2)) @ objectives.coefficients.T
    clean, smallest = network.logits(x) @ objectives.coefficients.T, margins.amin(0)
    guide, small = DualBound(network.to(dtype=torch.float32)), objectives.to(torch.float32)
    single = to_dtype(state, torch.float32)
    whole, found = guide.optimise(single, small, guide.start(single, small), 200)
    wanted = smallest - 0.02 * (clean[0] - smallest)
    # The whole ball without cuts does not say as much, or the test would say nothing.
    assert (clean[0] + whole < wanted).all()

    def proven(needed: torch.Tensor, leaves: int) -> torch.Tensor:
        splitter = Splitter(DualBound(network), guide, state, objectives, clean[0] - 1e-12, needed)
        return splitter.proven(found, leaves=leaves, steps=50)

    assert proven(wanted, 400).all()
    assert not proven(smallest, 60).any()


def test_nothing_is_proven_without_a_budget_or_of_no_number() -> None:
    search = Search(0, 0.1)
    low = torch.full_like(search.clean, -1e3)
    splitter = search.splitter(low)
    assert splitter.proven(search.found, leaves=8, steps=2).all()
    assert not splitter.proven(search.found, leaves=2, steps=2).any()
    assert not splitter.proven(search.found, seconds=0.0).any()
    assert not search.splitter(low * math.nan).proven(search.found, leaves=8).any()
    i = max(search.state)
    broken = search.state[i].map(lambda t: t.clone())
    broken.lower[0].fill_(math.nan)
    search.state = search.state | {i: broken}
    proven = search.splitter(low).proven(search.found, leaves=8, steps=2)
    row = search.objectives.rows[0]
    assert not proven[search.objectives.rows == row].any()
    assert proven[search.objectives.rows != row].all()


@pytest.mark.parametrize("ending", ENDINGS)
def test_forms_start_at_any_node(ending: str) -> None:
    """Cuts, leaves and losses of a network whose logits come out of anything; and objectives of a
    node in the middle, which others do not lead to."""
    loaded = random_network(seeded(4), ending=ending)
    case = Case(4, network=loaded)
    radius = 0.2
    objectives, _ = case.objectives()
    _, state = case.prepared("plain", radius)
    guide = DualBound(case.network.to(dtype=torch.float32))
    inner = [i for i in case.network.activations if i < case.network.output]
    middle = case.network.nodes[inner[-1]].shape
    some = Objectives(
        inner[-1], torch.arange(len(case.x)), torch.ones(len(case.x), *middle).double()
    )
    for objective in (objectives, some):
        own = select(state, objective.rows)
        found = guide.start(to_dtype(own, torch.float32), objective.to(torch.float32))
        value = (case.network.values(case.x)[objective.node][objective.rows]
                 * objective.coefficients).flatten(1).sum(1) - 1e-9  # fmt: skip
        needed = torch.full_like(value, math.inf)
        splitter = Splitter(case.dual, guide, own, objective, value, needed)
        leaves = splitter.cut(Leaves.whole(found, value))
        lowest = value[leaves.objective] + case.dual.certified(
            splitter.state_of(leaves),
            objective.select(leaves.objective),
            leaves.found.to(torch.float64),
        )
        generator = seeded(5)
        for _ in range(20):
            rows = objective.rows
            points = in_ball(case.x[rows], case.eps(radius)[rows], generator)
            values = case.network.values(points)
            margins = (values[objective.node] * objective.coefficients).flatten(1).sum(1)
            held = inside(
                splitter.state_of(leaves), [v[leaves.objective] for v in values], case.network
            )
            assert (margins[leaves.objective] >= lowest)[held].all()
