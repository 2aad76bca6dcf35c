"""Coupled balls: what couplings claim, their minima, and duals with them, against points and
attacks."""

from dataclasses import replace

import pytest
import torch
from attacks import in_ball, smallest_margins
from bounds.test_bounds_dual import Case
from bounds.test_bounds_lipschitz import deterministic
from bounds.test_bounds_split import plane_network
from exact import exact_radius
from hypothesis import given, settings
from laws import ACTIVATION_CASES, normal, seeded, uniform
from network.test_anchored_activations import (
    PIECEWISE,
    anchored_boxes,
    changes,
    kinks,
    points_of,
    seeds,
    weights,
)

from lipcert.bounds.coupled import coupled, coupled_minimum, shares
from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import DualVariables, Objectives
from lipcert.bounds.reverse import carry_back
from lipcert.bounds.split import Splitter
from lipcert.bounds.state import Layer, State, select, to_dtype
from lipcert.network import NetworkBuilder
from lipcert.network.activations.piecewise_linear import PiecewiseLinear, relu
from lipcert.network.operators import Dense

EPS = 2.0**-52
SEEDS = range(8)
piecewise = pytest.mark.parametrize("name", PIECEWISE)


def layer_of(activation: PiecewiseLinear, generator: torch.Generator) -> Layer:
    """Boxes of all sizes, and the gains of their secants; some boxes were cut after that."""
    lower, anchor, upper = anchored_boxes(activation, generator)
    flat, steep = activation.secant(lower, upper, anchor)
    gain = torch.maximum(flat.abs(), steep.abs())
    cut = uniform(anchor.shape, generator) < 0.2
    middle = lower + uniform(anchor.shape, generator) * (upper - lower)
    lower = torch.where(cut & (middle < anchor), middle, lower)
    one = torch.ones_like(anchor)
    return Layer(anchor, lower, upper, one.flatten(1)[:, 0], gain, one)


def term(layer: Layer, rise: torch.Tensor, way: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
    """``A (Δσ − c Δz) + λ Δz² − ν (r Δσ² + m Δz²)``."""
    coefficient, slope, multiplier, amount = parts
    risen, moved = shares(layer.gain)
    taken = amount * (risen * rise.square() + moved * way.square())
    return coefficient * (rise - slope * way) + multiplier * way.square() - taken


def rounding(activation: PiecewiseLinear, layer: Layer, *parts: torch.Tensor) -> torch.Tensor:
    """A few roundings of each number that enters a neuron's term."""
    coefficient, slope, multiplier, amount = parts
    way = torch.maximum(layer.upper - layer.anchor, layer.anchor - layer.lower)
    kink = sum(kink.abs() for kink in kinks(activation))
    risen, moved = shares(layer.gain)
    output = activation.value(layer.anchor).abs() + kink
    output = output + (1 + activation.lipschitz) * (layer.anchor.abs() + way)
    size = coefficient.abs() * (output + slope.abs() * way) + multiplier * way.square()
    return 32 * EPS * (size + amount * (risen * output.square() + moved * way.square()))


@settings(max_examples=12, deadline=None)
@given(seed=seeds)
@piecewise
def test_the_coupled_minimum_is_below_every_point_and_attained(name, seed):
    """Also where what is amount exceeds the multiplier, and parabolas open downwards."""
    generator = seeded(seed)
    activation = ACTIVATION_CASES.get(name, ACTIVATION_CASES["ReLU"])(torch.float64, generator)
    layer = layer_of(activation, generator)
    coefficient, slope, multiplier = weights(generator)
    amount = multiplier * 10 ** (3 * uniform(multiplier.shape, generator) - 2)
    parts = coefficient, slope, multiplier, amount
    found = coupled_minimum(activation, *parts, layer)
    z = points_of(activation, layer.lower, layer.anchor, layer.upper, generator)
    # The vertices of all pieces too, wherever they lie.
    risen, moved = shares(layer.gain)
    for _, _, steep, intercept in activation.pieces():
        offset = steep * layer.anchor + intercept - activation.value(layer.anchor)
        bend = multiplier - amount * (moved + risen * steep * steep)
        tilt = coefficient * (steep - slope) - 2 * amount * risen * steep * offset
        vertex = (layer.anchor - tilt / (2 * bend)).nan_to_num(0.0)
        z = torch.cat([z, torch.minimum(torch.maximum(vertex, layer.lower), layer.upper)[None]])
    rise, way, _ = changes(activation, z, layer.anchor)
    reached = term(layer, rise, way, *parts)
    slack = rounding(activation, layer, *parts)
    assert bool((found <= reached + slack).all())
    assert bool((found >= reached.amin(0) - slack).all())


@settings(max_examples=12, deadline=None)
@given(seed=seeds)
@piecewise
def test_shares_cover_what_a_gain_allows(name, seed):
    generator = seeded(seed)
    activation = ACTIVATION_CASES.get(name, ACTIVATION_CASES["ReLU"])(torch.float64, generator)
    layer = layer_of(activation, generator)
    z = points_of(activation, layer.lower, layer.anchor, layer.upper, generator)
    rise, way, slack = changes(activation, z, layer.anchor)
    risen, moved = shares(layer.gain)
    rise = (rise.abs() - slack).clamp(min=0)
    exact = rise / torch.where(layer.gain > 0, layer.gain, 1)
    assert bool((exact.square() <= (risen * rise.square() + moved * way.square()) * 1.001).all())
    assert bool((rise[:, layer.gain == 0] == 0).all())


@piecewise
def test_nothing_taken_is_the_minimum_without(name):
    generator = seeded(3)
    activation = ACTIVATION_CASES.get(name, ACTIVATION_CASES["ReLU"])(torch.float64, generator)
    layer = layer_of(activation, generator)
    coefficient, slope, multiplier = weights(generator)
    found = coupled_minimum(activation, coefficient, slope, multiplier, 0 * multiplier, layer)
    plain = activation.relaxed_minimum(
        coefficient, slope, multiplier, layer.anchor, layer.lower, layer.upper
    )
    zero = torch.zeros_like(multiplier)
    slack = rounding(activation, layer, coefficient, slope, multiplier, zero)
    assert bool(((found - plain).abs() <= slack).all())


def test_an_endless_box_has_no_minimum_above_its_points() -> None:
    """Of parabolas that open downwards, and of straight lines."""
    one = torch.ones(1, 1, dtype=torch.float64)
    z = torch.linspace(-1e3, 1e3, 2001, dtype=torch.float64)[:, None, None]
    for low, high in ((-torch.inf, 1.0), (-1.0, torch.inf), (-torch.inf, torch.inf)):
        layer = Layer(0.5 * one, low * one, high * one, one[0], one, one)
        inside = z.clamp(min=low, max=high)
        for amount in (0.5, 1.0, 3.0):
            for coefficient in (-1.0, 0.0, 1.0):
                parts = coefficient * one, 0 * one, one, amount * one
                rise = inside.clamp(min=0) - 0.5
                reached = term(layer, rise, inside - 0.5, *parts).amin()
                assert not bool((coupled_minimum(relu(one), *parts, layer) > reached + 1e-9).any())


@pytest.mark.parametrize("seed", SEEDS)
def test_couplings_hold_at_every_point(seed: int) -> None:
    """At the radius that was prepared and below it. What they say with whole balls is no news."""
    case, generator, seen = Case(seed), seeded(seed + 9), 0
    for radius, above in ((1e-6, 1.0), (0.3, 1.0), (0.3, 1.7), (2.0, 1.0)):
        prepared, state = case.prepared("plain", radius * above)
        if above > 1:
            state = case.bounds["plain"].state(case.centre, case.eps(radius), prepared)
        layers = {i: layer for i, layer in state.items() if layer.coupling is not None}
        for _ in range(6):
            values = case.network.values(in_ball(case.x, case.eps(radius), generator))
            for i, layer in layers.items():
                z, total, balls = values[case.network.nodes[i].inputs[0]], 0, 0
                for j, factor in layer.coupling.factors.items():
                    rise = values[j] - case.network.nodes[j].kind.value(state[j].anchor)
                    parts = rise / torch.where(state[j].gain > 0, state[j].gain, 1)
                    total = total + factor * parts.flatten(1).square().sum(1)
                    balls = balls + factor * state[j].radius.square()
                    seen += 1
                moved = ((z - layer.anchor) * layer.varying).flatten(1).square().sum(1)
                assert (moved <= (total + layer.coupling.rest) * (1 + 1e-12) + 1e-24).all()
                whole = balls + layer.coupling.rest
                assert (layer.radius.square() <= whole * (1 + 1e-9)).all()
    assert seen


@pytest.mark.parametrize("seed", SEEDS)
def test_no_attack_goes_below_a_coupled_margin(seed: int) -> None:
    case, name = Case(seed), "refined" if seed == 1 else "plain"
    for radius in (1e-6, 0.3, 2.0):
        eps = case.eps(radius)
        found = smallest_margins(case.network, case.x, case.labels, eps, steps=10)
        objectives, others = case.objectives()
        reached = found[objectives.rows, others]
        own = select(case.prepared(name, radius)[1], objectives.rows)
        start = coupled(case.network, own, case.dual.start(own, objectives))
        _, best = case.dual.optimise(own, objectives, start, 8)
        steep = len(start.slopes)
        wild = start.of(
            uniform(t.shape, seeded(k)) * (3 if k < steep else 20) - (1 if k < steep else 10)
            for k, t in enumerate(start.numbers)
        )
        for multipliers in (start, best, wild):
            change = case.dual.certified(own, objectives, multipliers)
            lowest = case.clean(objectives, others) + change
            assert (lowest <= reached + 1e-11 * (1 + reached.abs())).all()
            again = case.dual.change(own, objectives, multipliers)
            assert (change <= again).all()
            # What rounding costs in float64 is nothing to speak of.
            assert multipliers is wild or (change >= again - 1e-8 * (1 + again.abs())).all()


def lagrangian(
    case: Case, own: State, objectives: Objectives, found: DualVariables
) -> torch.Tensor:
    """Written down as it is, at the worst of some points of each neuron's box: ``(N,)``."""
    total, taken, generator = torch.zeros(len(objectives), dtype=torch.float64), {}, seeded(1)

    def column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, *(1,) * (like.dim() - 1))

    def relax(i: int, value: torch.Tensor) -> torch.Tensor:
        nonlocal total
        layer, kind, multipliers = own[i], case.network.nodes[i].kind, found.logs[i].exp()
        slope = found.slopes[i] * layer.varying
        total = total - multipliers * layer.radius.square()
        if i in found.couplings:
            weight = found.couplings[i].exp()
            multipliers, total = multipliers + weight, total - weight * layer.coupling.rest
            for j, factor in layer.coupling.factors.items():
                taken.setdefault(j, []).append(weight * factor)
        share = uniform((5, *value.shape), generator)
        share[0], share[1] = 0, 1
        z = torch.cat([layer.lower + share * (layer.upper - layer.lower), layer.anchor[None]])
        rise, way = kind.value(z) - kind.value(layer.anchor), z - layer.anchor
        terms = value * (rise - slope * way) + column(multipliers, value) * way.square()
        for amount in taken.get(i, []):
            if isinstance(kind, PiecewiseLinear):
                part = rise / torch.where(layer.gain > 0, layer.gain, torch.inf)
                terms = terms - column(amount, value) * part.square()
            else:
                total = total - amount * layer.radius.square()
        total = total + (terms.amin(0) * layer.varying).flatten(1).sum(1)
        return value * slope

    rest = carry_back(case.network, objectives.node, objectives.coefficients, relax)
    return total - own[0].radius * rest.flatten(1).norm(dim=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_dual_is_below_its_lagrangian(seed: int) -> None:
    """Of any points in all boxes at once: which holds for no dual that pays a coupling too little,
    where couplings weigh the most, and the minima lie at the ends."""
    case = Case(seed)
    objectives, _ = case.objectives()
    own = select(case.prepared("plain", 0.3)[1], objectives.rows)
    start = coupled(case.network, own, case.dual.start(own, objectives))
    for weight in (0.0, 3.0, 8.0):
        couplings = {i: log + weight for i, log in start.couplings.items()}
        found = DualVariables(start.slopes, start.logs, couplings)
        bound = case.dual.change(own, objectives, found)
        reached = lagrangian(case, own, objectives, found)
        assert (bound <= reached + 1e-11 * (1 + bound.abs() + reached.abs())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_without_multipliers_the_dual_is_the_plain_one(seed: int) -> None:
    case = Case(seed)
    objectives, _ = case.objectives()
    own = select(case.prepared("plain", 0.3)[1], objectives.rows)
    plain = case.dual.start(own, objectives)
    before = case.dual.change(own, objectives, plain)
    start = coupled(case.network, own, plain)
    none = replace(plain, couplings={i: log - 700 for i, log in start.couplings.items()})
    same = case.dual.change(own, objectives, none)
    assert (same - before).abs().max() <= 1e-11 * (1 + before.abs().max())
    best, kept = case.dual.optimise(own, objectives, none, 10)
    assert (best >= before - 1e-11 * (1 + before.abs())).all()
    assert set(kept.couplings) == set(none.couplings)


def test_coupling_gains_in_deep_networks() -> None:
    """Where each layer turns its input, not all that a ball allows comes through its ReLUs."""
    generator, builder, node = seeded(5), NetworkBuilder((8,)), 0
    for _ in range(4):
        turn = torch.linalg.qr(normal((8, 8), generator))[0]
        node = builder.operator(Dense.of(turn, 0.1 * normal((8,), generator), (8,)), node)
        node = builder.activation(relu(), node)
    node = builder.operator(Dense.of(normal((3, 8), generator), None, (8,)), node)
    case = Case(5, network=builder.build(node))
    objectives, _ = case.objectives()
    own = select(case.prepared("plain", 0.5)[1], objectives.rows)
    _, found = case.dual.optimise(own, objectives, case.dual.start(own, objectives), 100)
    plain, _ = case.dual.optimise(own, objectives, found, 100)
    best, _ = case.dual.optimise(own, objectives, coupled(case.network, own, found), 100)
    assert (best >= plain - 1e-3 * plain.abs()).all()
    assert float(((best - plain) / plain.abs()).mean()) > 0.005


@pytest.mark.parametrize("kink", ["relu", "absolute"])
@pytest.mark.parametrize("seed", [0, 1])
def test_coupled_leaves_come_close_to_the_exact_radius(kink: str, seed: int) -> None:
    """Most of the ball inside it is proven, and just above it nothing is."""
    case = Case(seed + 20, batch=2, network=plane_network(kink, seeded(seed), bent=False))
    pairs = zip(case.x, case.labels.tolist(), strict=True)
    exact = torch.tensor([exact_radius(case.network, x[None], y)[0] for x, y in pairs]).double()
    exact = exact.clamp(max=2.0)
    objectives, others = case.objectives()
    clean = case.clean(objectives, others) - 1e-12
    guide = DualBound(case.network.to(dtype=torch.float32))
    small = objectives.to(torch.float32)
    for share in (0.85, 1.0001):
        _, state = case.bounds["plain"].prepare_state(case.centre, share * exact, deterministic)
        own = select(state, objectives.rows)
        single = to_dtype(own, torch.float32)
        found = coupled(case.network, single, guide.start(single, small))
        assert found.couplings
        _, found = guide.optimise(single, small, found, 60)
        splitter = Splitter(case.dual, guide, own, objectives, clean, torch.zeros_like(clean))
        proven = splitter.proven(found, leaves=40, steps=25)
        every = torch.ones(2, dtype=torch.bool)
        every[objectives.rows[~proven]] = False
        if share < 1:
            assert every.all()
        else:
            assert not every[exact < 2].any()
