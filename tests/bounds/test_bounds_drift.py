"""Centres whose errors are as large as they say: what rounding does, a million millionfold."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from attacks import in_ball
from bounds.test_bounds_dual import Case, deterministic
from laws import normal, seeded

from lipcert.bounds.boxes import Centre
from lipcert.bounds.reverse import RigorousSweep
from lipcert.bounds.rows import explicit_chain
from lipcert.bounds.state import State, select
from lipcert.network import Network, NetworkBuilder, Sum
from lipcert.network.activations import Activation, relu
from lipcert.network.operators import Dense, Operator

SEEDS = range(12)
RADII = (1e-3, 0.1)


def drifted(network: Network, x: torch.Tensor, size: float, seed: int) -> Centre:
    """Every input of an activation and the logits off by errors of this size from what the
    activations before give."""
    generator, values, errors = seeded(seed), [x], [torch.zeros_like(x)]
    for i, node in enumerate(network.nodes[1:], start=1):
        parts = [values[j] for j in node.inputs]
        error = [errors[j] for j in node.inputs]
        match node.kind:
            case Operator() as operator:
                value, worst = operator.forward(parts[0]), operator.magnitude(error[0])
            case Activation() as activation:
                value = activation.value(parts[0])
                worst = torch.zeros_like(value)
            case Sum():
                value, worst = sum(parts[1:], parts[0]), sum(error[1:], error[0])
        if i in network.sinks or i == network.output:
            drift = size * normal(value.shape, generator)
            value, worst = value + drift, worst + drift.abs()
        values.append(value)
        errors.append(worst * (1 + 1e-9) + 1e-12)
    return Centre(values, errors)


def least_margins(case: Case, name: str, radius: float, *, charged: bool) -> torch.Tensor:
    """What the dual proves of every margin, from a centre that is off."""
    _, state = case.bounds[name].prepare_state(case.centre, case.eps(radius), deterministic)
    if not charged:
        state = {i: replace(layer, drift=None) for i, layer in state.items()}
    objectives, others = case.objectives()
    own: State = select(state, objectives.rows)
    _, found = case.dual.optimise(own, objectives, case.dual.start(own, objectives), 30)
    change = case.dual.certified(own, objectives, found)
    error = case.centre.logit_errors[objectives.rows]
    label = case.labels[objectives.rows][:, None]
    off = (error.gather(1, label) + error.gather(1, others[:, None])).squeeze(1)
    return case.clean(objectives, others) - off + change


def real_margins(case: Case, radius: float) -> torch.Tensor:
    """The smallest of some points, the samples among them."""
    objectives, others = case.objectives()
    label, found = case.labels[objectives.rows][:, None], []
    points = [in_ball(case.x, case.eps(radius), seeded(k)) for k in range(20)]
    for x in [case.x, *points]:
        logits = case.network.logits(x)[objectives.rows]
        found.append((logits.gather(1, label) - logits.gather(1, others[:, None])).squeeze(1))
    return torch.stack(found).amin(0)


def case_of(seed: int, size: float) -> Case:
    case = Case(seed)
    case.centre = drifted(case.network, case.x, size, seed)
    return case


@pytest.mark.parametrize("seed", SEEDS)
def test_states_hold_every_point_around_centres_that_are_off(seed: int) -> None:
    for size, radius in product((1e-4, 0.03), RADII):
        case = case_of(seed, size)
        for name in case.bounds:
            _, state = case.prepared(name, radius)
            for x in (case.x, *(in_ball(case.x, case.eps(radius), seeded(k)) for k in range(6))):
                values = case.network.values(x)
                for i, layer in state.items():
                    z = values[case.network.nodes[i].inputs[0] if i else 0]
                    assert (z >= layer.lower - 1e-12).all()
                    assert (z <= layer.upper + 1e-12).all()
                    moved = ((z - layer.anchor) * layer.varying).flatten(1).norm(dim=1)
                    assert (moved <= layer.radius * (1 + 1e-12) + 1e-14).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_point_goes_below_a_margin_from_a_centre_that_is_off(seed: int) -> None:
    for size, radius in product((1e-4, 0.03), RADII):
        case = case_of(seed, size)
        real = real_margins(case, radius)
        for name in ("plain", "chains", "refined"):
            assert (least_margins(case, name, radius, charged=True) <= real + 1e-12).all()


def scalar_case(depth: int) -> tuple[Case, torch.Tensor]:
    """Numbers through ReLUs, the first of −1 at the sample; its anchor is off by −0.2, which no
    later error tells of, as the neuron is off at the sample."""
    builder, node = NetworkBuilder((1,)), 0
    for bias in (-1.0, 0.5)[:depth]:
        unit, shift = torch.ones(1, 1, dtype=torch.float64), torch.tensor([bias]).double()
        node = builder.activation(relu(), builder.operator(Dense.of(unit, shift, (1,)), node))
    last = torch.tensor([[-1.0], [0.0]], dtype=torch.float64)
    bias = torch.tensor([3.0, 0.0], dtype=torch.float64)
    node = builder.operator(Dense.of(last, bias, (1,)), node)
    case = Case(0, network=builder.build(node))
    case.x, case.labels = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    case.centre = drifted(case.network, case.x, 0.0, 0)
    case.centre.values[1] -= 0.2
    case.centre.errors[1] += 0.2
    return case, torch.tensor([[2.0]], dtype=torch.float64)


def test_the_drift_of_an_anchor_is_charged_to_the_margin() -> None:
    case, far = scalar_case(1)
    logits = case.network.logits(far)[0]
    real = float(logits[0] - logits[1])
    assert float(least_margins(case, "plain", 2.0, charged=True)) <= real
    # Without the charge it would be wrong.
    assert float(least_margins(case, "plain", 2.0, charged=False)) > real + 1e-3


@pytest.mark.parametrize("name", ["chains", "narrow"])
def test_chains_carry_the_drift_of_earlier_anchors(name: str) -> None:
    case, far = scalar_case(2)
    last = max(case.network.activations)
    source = case.network.nodes[last].inputs[0]
    moved = float((case.network.values(far)[source] - case.centre.values[source]).abs())
    _, state = case.prepared(name, 2.0)
    assert float(state[last].radius) >= moved
    state = {i: replace(layer, drift=None) for i, layer in state.items() if i != last}
    mask = torch.ones(1, 1, dtype=torch.float64)
    chain = explicit_chain(RigorousSweep(case.network), source, state, mask)
    # Without the drift it would be wrong.
    assert float(chain.length(state)) < moved - 1e-3
