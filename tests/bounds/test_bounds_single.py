"""Bounds found in float32, against the network that they are of, evaluated in float64."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from attacks import in_ball, smallest_margins
from bounds.test_bounds_lipschitz import bound_of, deterministic
from laws import random_network, seeded, uniform

from lipcert.bounds import AnchoredBound, FactPlan, LocalBound, Propagation, node_constants
from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import DualVariables, Objectives, margin_objectives
from lipcert.bounds.refined import Refinement
from lipcert.bounds.state import State, select, to_dtype
from lipcert.certification import Certifier
from lipcert.certification.deployed import Deployment
from lipcert.certification.samples import Samples
from lipcert.network import Network, NetworkBuilder, lower, simplify
from lipcert.network.operators import Dense
from lipcert.numbers import OUT32, OUT64
from lipcert.options import Epsilon, Options
from lipcert.rounding import DOUBLE, SINGLE, arithmetic_of, column, rounded_up

SEEDS = range(1, 4)
RADII = (1e-6, 0.02, 0.5)


class Analysed:
    """The network that an analysis in float32 is of: one for each sample, whose values there, at
    what activations read, are float32 numbers; all in float64."""

    def __init__(self, network: Network, x: torch.Tensor) -> None:
        self.network, self.shifts = network, {}

        def rounded(i: int, value: torch.Tensor) -> torch.Tensor:
            if i not in network.sinks:
                return value
            self.shifts[i] = value.float().double() - value
            return value + self.shifts[i]

        network.exact.values(x, rounded)

    def values(self, x: torch.Tensor) -> list[torch.Tensor]:
        none = torch.zeros((), dtype=torch.float64)
        return self.network.exact.values(x, lambda i, value: value + self.shifts.get(i, none))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.values(x)[-1].flatten(1)


class Case:
    """A random network in float32, samples, and bounds of all kinds."""

    def __init__(self, seed: int, batch: int = 3, scale: float = 1.0) -> None:
        loaded = random_network(seeded(seed)).to(dtype=torch.float64)
        self.loaded = scaled(loaded, scale)
        self.network = simplify(lower(simplify(self.loaded))).to(dtype=torch.float32)
        self.x = uniform((batch, *self.network.in_shape), seeded(seed + 1)).float().double()
        self.truth = Analysed(self.network, self.x)
        self.labels = self.truth.logits(self.x).argmax(1)
        self.local = bound_of(LocalBound, self.network)
        plain = self.local.replaced(AnchoredBound)
        guide = self.network.to_guess_by()
        self.bounds = {
            "plain": replace(plain, rough=guide, plan=FactPlan(0, False, None)),
            "chains": replace(plain, rough=guide, plan=FactPlan(0, True, None)),
            "refined": replace(plain, rough=guide, plan=FactPlan(10**6, True, Refinement(2))),
        }
        self.centre = self.local.propagation.centre(self.x)
        self.dual = DualBound(self.network)

    def eps(self, radius: float) -> torch.Tensor:
        return torch.full((len(self.x),), radius, dtype=torch.float64)

    def states(self, radius: float) -> Iterator[tuple[str, State]]:
        for name, bound in self.bounds.items():
            yield name, bound.prepare_state(self.centre, self.eps(radius), deterministic)[1]


def scaled(network: Network, scale: float) -> Network:
    """All weights and biases times a number."""
    return network if scale == 1 else replace(
        network,
        nodes=tuple(
            replace(node, kind=node.kind.convert(
                lambda t: t * scale if t.is_floating_point() else t
            )) if hasattr(node.kind, "transpose") else node
            for node in network.nodes
        ),
    )  # fmt: skip


def near(values: torch.Tensor) -> torch.Tensor:
    """What float64 may be off by."""
    return 1e-12 * (1 + values.abs().flatten(1).amax(1).reshape(-1, *(1,) * (values.dim() - 1)))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_values_at_the_samples_are_those_of_the_network_that_is_analysed(seed: int) -> None:
    case = Case(seed)
    values = case.truth.values(case.x)
    for i, (value, kept, error) in enumerate(
        zip(values, case.centre.values, case.centre.errors, strict=True)
    ):
        assert (kept.double() - value).abs().le(error).all()
        assert kept.dtype == (torch.float64 if i == case.network.output else torch.float32)
        # One rounding of each, not those of a forward pass.
        assert (error <= 1.01 * 2.0**-24 * value.abs() + 1e-9 * (1 + value.abs().amax())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_and_states_hold_every_point(seed: int) -> None:
    case, generator = Case(seed), seeded(seed + 9)
    for radius in RADII:
        eps = case.eps(radius)
        boxes = case.local.propagation.boxes(case.centre, eps)
        states = dict(case.states(radius))
        for _ in range(3):
            values = case.truth.values(in_ball(case.x, eps, generator))
            for value, (low, high) in zip(values, boxes, strict=True):
                assert (value >= low - near(value)).all()
                assert (value <= high + near(value)).all()
            for state in states.values():
                for i, layer in state.items():
                    z = values[case.network.nodes[i].inputs[0] if i else 0]
                    assert layer.radius.dtype == torch.float64
                    assert layer.lower.dtype == torch.float32
                    assert (z >= layer.lower - near(z)).all()
                    assert (z <= layer.upper + near(z)).all()
                    moved = ((z - layer.anchor) * layer.varying).flatten(1).norm(dim=1)
                    assert (moved <= layer.radius * (1 + 1e-12) + 1e-12).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_attack_goes_below_a_margin(seed: int) -> None:
    case = Case(seed)
    others = torch.ones(len(case.x), case.network.classes).scatter(1, case.labels[:, None], 0)
    rows, classes = others.nonzero().unbind(1)
    objectives = margin_objectives(case.network, rows, case.labels[rows], classes)
    for radius in RADII:
        eps = case.eps(radius)
        found = smallest_margins(case.truth, case.x, case.labels, eps, steps=10, restarts=2)  # type: ignore[arg-type]
        prepared = case.local.prepare(case.centre, eps, deterministic)
        margins = case.local.margins(case.centre, case.labels, eps, prepared)
        assert (margins <= found + 1e-11 * (1 + found.abs())).all()
        logits = case.centre.logits[rows]
        label = case.labels[rows][:, None]
        clean = (logits.gather(1, label) - logits.gather(1, classes[:, None])).squeeze(1)
        for name, state in case.states(radius):
            margins = case.bounds[name].margins_in(case.centre, case.labels, state)
            assert (margins <= found + 1e-11 * (1 + found.abs())).all()
            own = select(state, rows)
            rough = case.bounds[name].duals[1]
            start = rough.start(select(to_dtype(state, torch.float32), rows), objectives)
            _, best = rough.optimise(
                select(to_dtype(state, torch.float32), rows), objectives, start, 8
            )
            wild = DualVariables(
                {i: (uniform(s.shape, seeded(i)) * 3 - 1).float() for i, s in start.slopes.items()},
                {i: (uniform(v.shape, seeded(i)) * 20 - 10).float() for i, v in start.logs.items()},
            )
            reached = found[rows, classes]
            for multipliers in (start, best, wild):
                exact = exact_change(case, own, objectives, multipliers)
                # With affine operators in either type: below what no rounding would leave.
                for dual in (case.dual, case.bounds[name].duals[0]):
                    change = dual.certified(own, objectives, multipliers)
                    assert (clean + change <= reached + 1e-11 * (1 + reached.abs())).all()
                    assert (change <= exact + 1e-10 * (1 + exact.abs())).all()
                if multipliers is best:
                    # The drift of anchors in float32 is charged.
                    assert (change >= exact - 1e-5 * (1 + exact.abs())).all()


def exact_change(
    case: Case, state: State, objectives: Objectives, multipliers: DualVariables
) -> torch.Tensor:
    """The dual's value, but for the rounding of float64."""
    double = torch.float64
    return DualBound(case.network.exact).change(
        to_dtype(state, double), objectives.to(double), multipliers.to(double)
    )


@pytest.mark.parametrize(("seed", "lowered"), list(product(SEEDS, (False, True))))
def test_what_the_analysis_rounds_is_charged(seed: int, lowered: bool) -> None:
    """The margins of the network that is analysed against those of the one that was loaded, whose
    numbers float32 does not hold."""
    loaded, generator = random_network(seeded(seed)), seeded(seed + 3)
    simple = simplify(lower(simplify(loaded)) if lowered else loaded).to(dtype=torch.float32)
    x = uniform((4, *loaded.in_shape), seeded(seed + 1)).float().double()
    truth, labels = Analysed(simple, x), loaded.logits(x).argmax(1)
    charged = Deployment.of(loaded, arithmetic=None, softmax=False, analysis=SINGLE)
    free = Deployment.of(loaded, arithmetic=None, softmax=False, analysis=DOUBLE)
    off = 0.0
    for radius in (1e-3, 0.3):
        eps = torch.full((len(x),), radius, dtype=torch.float64)
        error = charged.pair_errors(charged.centre(x), labels, eps)
        assert (error < 1e-3 * (1 + loaded.logits(x).abs().amax())).all()
        unpaid = free.pair_errors(free.centre(x), labels, eps)
        for _ in range(8):
            point = in_ball(x, eps, generator)
            given, analysed = (
                logits.gather(1, labels[:, None]) - logits
                for logits in (loaded.logits(point), truth.logits(point))
            )
            assert ((given - analysed).abs() <= error).all()
            off = max(off, float(((given - analysed).abs() - unpaid).max()))
    # Not for nothing.
    assert off > 0


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e4, 1e12])
def test_numbers_at_the_ends_of_float32_prove_nothing_false(scale: float) -> None:
    """What underflows and overflows is charged, or leaves nothing to certify."""
    for seed in (1, 2):
        case = Case(seed, scale=scale)
        eps = case.eps(0.1)
        found = smallest_margins(case.loaded, case.x, case.labels, eps, steps=6, restarts=1)
        deployment = Deployment.of(case.loaded, arithmetic=None, softmax=False, analysis=SINGLE)
        error = deployment.pair_errors(deployment.centre(case.x), case.labels, eps)
        for name, state in case.states(0.1):
            margins = case.bounds[name].margins_in(case.centre, case.labels, state)
            proven = margins - error
            assert not (proven > found * (1 + 1e-9)).any()
        prepared = case.local.prepare(case.centre, eps, deterministic)
        margins = case.local.margins(case.centre, case.labels, eps, prepared)
        assert not (margins - error > found * (1 + 1e-9)).any()


def test_overflow_is_never_a_bound() -> None:
    builder = NetworkBuilder((1, 2))
    weight = torch.full((2, 2), 1e30)
    node = builder.operator(Dense.of(weight, None, (1, 2)), 0)
    network = builder.build(builder.operator(Dense.of(weight, None, (1, 2)), node))
    propagation = Propagation.of(network, node_constants(network, {}))
    x, eps = torch.full((1, 1, 2), 0.5).double(), torch.full((1,), 0.1).double()
    low, high = propagation.boxes(propagation.centre(x), eps)[-1]
    assert not (torch.isfinite(low) | torch.isfinite(high)).any() or (low < 1e59).all()
    assert not (high < 1.2e60).any()


def test_balls_around_rounded_samples_cover_those_around_the_given_ones() -> None:
    network = random_network(seeded(0)).to(dtype=torch.float32)
    x = uniform((4, *network.in_shape), seeded(1))
    given = Options(eps=(Epsilon.parse("0.1"),), dtype="float32")
    certifier = Certifier(network, given, samples=4)
    labels, allowance = torch.zeros(4, dtype=torch.int64), certifier.budget.open(torch.arange(4))
    samples = Samples.of(certifier.analysis, x, labels, allowance)
    assert (samples.near != x).any()
    assert torch.equal(samples.near, x.float().double())
    assert torch.equal(samples.anchored.near, samples.near)
    eps, generator = torch.tensor([0.0, 1e-9, 0.1, 3.0]).double(), seeded(2)
    for _ in range(10):
        point = in_ball(x, eps, generator)
        way = (point - samples.near).flatten(1).norm(dim=1)
        assert (way <= samples.ball(eps) * (1 + 1e-15)).all()
    double = samples.anchored_in(certifier.analysis.lowered_double)
    assert torch.equal(double.near, x)
    assert torch.equal(double.ball(eps), eps)


def test_rounding_up() -> None:
    generator = seeded(3)
    values = torch.cat([
        uniform((1000,), generator) * 10.0 ** torch.randint(-50, 50, (1000,), generator=generator),
        torch.tensor([0.0, torch.inf, 1e-60, 3.5e38, 2.0**-149, 1.0]),
    ]).double()  # fmt: skip
    up = rounded_up(values, torch.float32)
    assert up.dtype == torch.float32
    assert (up.double() >= values).all()
    assert (up.nextafter(torch.tensor(0.0)).double() < values)[values > 0].all()
    assert rounded_up(torch.tensor([torch.nan]).double(), torch.float32).isnan().all()
    assert column(values, torch.zeros(1, 2, 3)).shape == (len(values), 1, 1)
    assert arithmetic_of(torch.float32) is SINGLE
    assert arithmetic_of(torch.float64) is DOUBLE
    for own, terms in product((OUT32, OUT64), (1, 100, 30_000, 10**6)):
        part = terms * own.unit
        assert own.gamma(terms) >= part / (1 - part) * (1 + 2.9 * part)
    assert OUT32.gamma(2**23) == float("inf")
