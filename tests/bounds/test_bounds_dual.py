"""Anchored states, chains, refined boxes, duals: sound against sampling and attacks, in order."""

import math
from dataclasses import replace
from itertools import count, islice

import pytest
import torch
from attacks import smallest_margins
from bounds.test_bounds_lipschitz import deterministic
from laws import random_network, seeded, uniform

from lipcert.bounds import AnchoredBound, FactPlan, Facts, Layers, LocalBound
from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import DualVariables, Objectives, margin_objectives
from lipcert.bounds.refined import Refinement
from lipcert.bounds.state import Layer, State, select
from lipcert.network import Network, lower, simplify
from lipcert.network.activations.piecewise_linear import PiecewiseLinear
from lipcert.norms import GramMap, SegmentNorms

SEEDS = range(10)
BENDS = Refinement(work=0.0, tried=math.inf, worth=10.0, receptive=10.0)
RADII = (1e-6, 0.02, 0.3, 2.0)


def gram_matrices(mapping: GramMap) -> torch.Tensor:
    """``G`` of every sample, written down: ``(B, n, n)``."""
    shape, size = mapping.support.shape, mapping.support[0].numel()
    unit = torch.eye(size, dtype=torch.float64).reshape(size, 1, *shape[1:])
    images = mapping.gram(unit.expand(size, *shape).reshape(-1, *shape[1:]) * 1.0)
    return images.reshape(size, shape[0], size).permute(1, 2, 0)


def exact_norm(_: SegmentNorms | None, mapping: GramMap, __: int) -> torch.Tensor:
    gram = gram_matrices(mapping) * (mapping.support != 0).flatten(1)[:, None, :]
    return torch.linalg.matrix_norm(gram, ord=2).sqrt()


class Case:
    """A random network with element-wise activations, samples, and anchored bounds of all kinds."""

    def __init__(self, seed: int, batch: int = 3, network: Network | None = None) -> None:
        network = random_network(seeded(seed)) if network is None else network
        self.network = simplify(lower(simplify(network)))
        self.x = uniform((batch, *self.network.in_shape), seeded(seed + 1))
        self.labels = self.network.logits(self.x).argmax(1)
        layers = Layers.of(self.network)
        norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
        self.local = LocalBound.of(layers, norms)
        rough = self.network.to(dtype=torch.float32)
        plain = self.local.replaced(AnchoredBound)
        plans = {
            "plain": FactPlan(narrow=0, chains=False, refinement=None),
            "chains": FactPlan(narrow=0, chains=True, refinement=None),
            "narrow": FactPlan(narrow=10**6, refinement=None),
            "bent": FactPlan(narrow=0, chains=False, refinement=BENDS),
            "refined": FactPlan(narrow=10**6, refinement=Refinement(steps=2, receptive=10.0)),
        }
        self.bounds = {name: replace(plain, rough=rough, plan=plan) for name, plan in plans.items()}
        self.centre = self.local.propagation.centre(self.x)
        self.dual = DualBound(self.network)

    def eps(self, radius: float) -> torch.Tensor:
        return torch.full((len(self.x),), radius, dtype=torch.float64)

    def prepared(self, name: str, radius: float) -> tuple[Facts, State]:
        return self.bounds[name].prepare_state(self.centre, self.eps(radius), deterministic)

    def objectives(self) -> tuple[Objectives, torch.Tensor]:
        others = torch.ones(len(self.x), self.network.classes).scatter(1, self.labels[:, None], 0)
        rows, classes = others.nonzero().unbind(1)
        return margin_objectives(self.network, rows, self.labels[rows], classes), classes

    def clean(self, objectives: Objectives, others: torch.Tensor) -> torch.Tensor:
        logits = self.centre.logits[objectives.rows]
        label = self.labels[objectives.rows][:, None]
        return (logits.gather(1, label) - logits.gather(1, others[:, None])).squeeze(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_attack_goes_below_a_margin(seed: int) -> None:
    case = Case(seed)
    for radius in RADII:
        eps = case.eps(radius)
        found = smallest_margins(case.network, case.x, case.labels, eps, steps=12, restarts=2)
        objectives, others = case.objectives()
        for name in case.bounds:
            _, state = case.prepared(name, radius)
            margins = case.bounds[name].margins_in(case.centre, case.labels, state)
            assert (margins <= found + 1e-11 * (1 + found.abs())).all()
            own = select(state, objectives.rows)
            start = case.dual.start(own, objectives)
            _, best = case.dual.optimise(own, objectives, start, 8)
            wild = DualVariables(
                {i: uniform(s.shape, seeded(i)) * 3 - 1 for i, s in start.slopes.items()},
                {i: uniform(v.shape, seeded(i)) * 20 - 10 for i, v in start.logs.items()},
            )
            for multipliers in (start, best, wild):
                change = case.dual.certified(own, objectives, multipliers)
                lowest = case.clean(objectives, others) + change
                reached = found[objectives.rows, others]
                assert (lowest <= reached + 1e-11 * (1 + reached.abs())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_tighter_states_and_more_steps_only_help(seed: int) -> None:
    case = Case(seed)
    for radius in (0.02, 0.3):
        eps = case.eps(radius)
        states = {name: case.prepared(name, radius)[1] for name in case.bounds}
        for i, layer in states["plain"].items():
            for name in ("narrow", "bent", "refined"):
                assert (states[name][i].radius <= layer.radius * (1 + 1e-9)).all()
                assert (states[name][i].lower >= layer.lower - 1e-9).all()
                assert (states[name][i].upper <= layer.upper + 1e-9).all()
        # With exact norms the order is a theorem; bounds of norms can be looser for one of the two.
        local = case.local.prepare(case.centre, eps, exact_norm)
        _, state = case.bounds["plain"].prepare_state(case.centre, eps, exact_norm)
        published = case.local.margins(case.centre, case.labels, eps, local)
        anchored = case.bounds["plain"].margins_in(case.centre, case.labels, state)
        assert (anchored >= published - 1e-7 * (1 + published.abs())).all()
        objectives, _ = case.objectives()
        own = select(states["plain"], objectives.rows)
        start = case.dual.start(own, objectives)
        first = case.dual.change(own, objectives, start)
        best, kept = case.dual.optimise(own, objectives, start, 10)
        assert (best >= first - 1e-12).all()
        again = case.dual.change(own, objectives, kept)
        assert (again - best).abs().max() <= 1e-9 * (1 + best.abs().max())
        exact = case.dual.certified(own, objectives, kept)
        assert (exact <= again).all()
        # What rounding costs in float64 is nothing to speak of.
        assert (exact >= again - 1e-8 * (1 + again.abs())).all()


def test_what_is_not_finite_is_never_proven() -> None:
    case = Case(0)
    x = case.x.clone()
    x[0, ..., 0] = torch.nan
    centre = case.local.propagation.centre(x)
    eps = case.eps(0.1)
    eps[1] = torch.inf
    _, state = case.bounds["refined"].prepare_state(centre, eps, deterministic)
    margins = case.bounds["refined"].margins_in(centre, case.labels, state)
    objectives, others = case.objectives()
    own = select(state, objectives.rows)
    change = case.dual.certified(own, objectives, case.dual.start(own, objectives))
    logits = centre.logits[objectives.rows]
    total = logits.gather(1, others[:, None]).squeeze(1) * 0 + change
    for row in (0, 1):
        assert not (margins[row].scatter(0, case.labels[row], -1.0) > 0).any()
        assert not (total[objectives.rows == row] > -1e300).any()


def widened(layer: Layer) -> Layer:
    """The same ball in a box that says nothing."""
    radius = 50 * layer.radius.reshape(-1, *(1,) * (layer.anchor.dim() - 1))
    lower = torch.minimum(layer.lower, layer.anchor - radius)
    upper = torch.maximum(layer.upper, layer.anchor + radius)
    return replace(layer, lower=lower, upper=upper)


def is_straight(seed: int) -> bool:
    """Whether minima are exact there: of smooth activations they are only bounded."""
    network = simplify(lower(simplify(random_network(seeded(seed)))))
    return all(isinstance(network.nodes[i].kind, PiecewiseLinear) for i in network.activations)


@pytest.mark.parametrize("number", range(6))
def test_box_and_ball_together_beat_either_alone(number: int) -> None:
    """For any slopes and multipliers, so for the best of each alone: boxes alone let λ go to 0."""
    case = Case(next(islice(filter(is_straight, count()), number, None)))
    for radius in (0.02, 0.3):
        objectives, _ = case.objectives()
        own = select(case.prepared("chains", radius)[1], objectives.rows)
        # The input keeps its ball in either case.
        boxes = {i: replace(layer, radius=1e9 * layer.radius) if i else layer
                 for i, layer in own.items()}  # fmt: skip
        balls = {i: widened(layer) if i else layer for i, layer in own.items()}
        start = case.dual.start(own, objectives)
        flat = DualVariables(start.slopes, {i: log - 60 for i, log in start.logs.items()})
        for alone, first in ((boxes, flat), (balls, start)):
            best, kept = case.dual.optimise(alone, objectives, first, 10)
            assert best.isfinite().all()
            joint = case.dual.change(own, objectives, kept)
            assert (joint >= best - 1e-9 * (1 + best.abs())).all()
