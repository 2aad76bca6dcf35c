"""Branch and bound: leaves cover the ball, bounds hold on them, and enough of them are exact."""

import math

import pytest
import torch
from attacks import in_ball, smallest_margins
from bounds.test_bounds_dual import Case
from laws import seeded

from lipcert.bounds.anchored import Layer
from lipcert.bounds.dual import DualBound
from lipcert.bounds.refined import select
from lipcert.bounds.split import Budget, Leaves, Splitter
from lipcert.network import Network

SEEDS = range(6)


class Search:
    """Branch and bound of every margin of a random network's samples at one radius."""

    def __init__(self, seed: int, radius: float) -> None:
        self.case = case = Case(seed)
        self.forms, self.others = case.forms()
        self.eps = case.eps(radius)
        _, state = case.prepared("plain", radius)
        self.clean = case.clean(self.forms, self.others) - 1e-12
        self.guide = DualBound(case.network.to(dtype=torch.float32))
        self.state, self.radii = select(state, self.forms.rows), self.eps[self.forms.rows]
        single = {i: layer.map(lambda t: t.float()) for i, layer in self.state.items()}
        self.found = self.guide.start(single, self.forms.to(torch.float32))

    def splitter(self, needed: torch.Tensor) -> Splitter:
        return Splitter(
            self.case.dual, self.guide, self.state, self.radii, self.forms, self.clean, needed
        )

    def certified(self, splitter: Splitter, leaves: Leaves) -> torch.Tensor:
        """Lower bounds of the margins on the leaves: ``(M,)``."""
        state, forms = splitter.state_of(leaves), self.forms.select(leaves.form)
        found = leaves.found.to(torch.float64)
        return self.clean[leaves.form] + self.case.dual.certified(
            state, self.radii[leaves.form], forms, found
        )

    def grown(self, splitter: Splitter, depth: int) -> tuple[Leaves, torch.Tensor]:
        """All leaves after ``depth`` cuts, and the forms that were cut so often."""
        leaves, whole = Leaves.whole(self.found, self.clean), self.clean == self.clean
        for _ in range(depth):
            leaves, stuck = splitter.cut(splitter.unproven(leaves, 3))
            whole[stuck] = False
        return leaves, whole


def inside(state: dict[int, Layer], values: list[torch.Tensor], network: Network) -> torch.Tensor:
    """Whether each leaf's boxes hold the point of its row: ``(M,)``."""
    held = torch.ones(len(values[0]), dtype=torch.bool)
    for i, layer in state.items():
        z = values[network.nodes[i].inputs[0]]
        held &= ((layer.lower - 1e-12 <= z) & (z <= layer.upper + 1e-12)).flatten(1).all(1)
    return held


@pytest.mark.parametrize("seed", SEEDS)
def test_every_point_lies_in_a_leaf_that_bounds_it(seed: int) -> None:
    generator = seeded(seed + 3)
    for radius in (0.1, 0.6):
        search = Search(seed, radius)
        splitter = search.splitter(torch.full_like(search.clean, math.inf))
        leaves, whole = search.grown(splitter, 3)
        state, lowest = splitter.state_of(leaves), search.certified(splitter, leaves)
        rows, network = search.forms.rows, search.case.network
        for _ in range(10):
            points = in_ball(search.case.x[rows], search.radii, generator)
            values = network.values(points)
            margins = (values[-1] * search.forms.coefficients).flatten(1).sum(1)
            held = inside(state, [value[leaves.form] for value in values], network)
            leaf_of = torch.zeros_like(whole)
            leaf_of[leaves.form[held]] = True
            assert leaf_of[whole].all()
            reached = margins[leaves.form]
            assert (lowest <= reached + 1e-11 * (1 + reached.abs()))[held].all()


@pytest.mark.parametrize("seed", SEEDS)
def test_halves_are_bounded_no_worse_than_the_whole(seed: int) -> None:
    search = Search(seed, 0.3)
    splitter = search.splitter(torch.full_like(search.clean, math.inf))
    whole = splitter.unproven(Leaves.whole(search.found, search.clean), 5)
    before = search.certified(splitter, whole)
    halves, _ = splitter.cut(whole)
    assert len(halves)
    after = search.certified(splitter, halves)
    assert (after >= before[halves.form] - 1e-9 * (1 + before[halves.form].abs())).all()
    found = splitter.unproven(halves, 5)
    assert (search.certified(splitter, found) >= after - 1e-5 * (1 + after.abs())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_proven_that_an_attack_breaks(seed: int) -> None:
    """Margins that are reached at some point of the ball are not exceeded in all of it."""
    for radius in (0.1, 2.0):
        search = Search(seed, radius)
        case, rows = search.case, search.forms.rows
        found = smallest_margins(case.network, case.x, case.labels, search.eps, steps=12)
        reached = found[rows, search.others] + 1e-11
        proven = search.splitter(reached).proven(search.found, Budget(leaves=16, steps=5))
        assert not proven.any()
