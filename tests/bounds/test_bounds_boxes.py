"""Boxes hold every value, and rounding errors hold every run in lower precision."""

import pytest
import torch
from attacks import in_ball
from laws import normal, random_network, seeded, uniform

from lipcert.bounds import Propagation, node_constants, rounding_errors
from lipcert.network import Network, NetworkBuilder, simplify
from lipcert.network.operators import Dense
from lipcert.rounding import DOUBLE, SINGLE

SEEDS = range(16)


def sample(network: Network, seed: int, batch: int = 3) -> torch.Tensor:
    return uniform((batch, *network.in_shape), seeded(seed))


@pytest.mark.parametrize("simplified", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_node_stays_in_its_box(seed: int, simplified: bool) -> None:
    network = random_network(seeded(seed))
    network = simplify(network) if simplified else network
    x, generator = sample(network, seed), seeded(seed + 100)
    propagation = Propagation.of(network, node_constants(network, {}))
    centre = propagation.centre(x)
    for radius in (0.0, 1e-9, 0.1, 3.0):
        eps = torch.full((len(x),), radius, dtype=torch.float64)
        boxes = propagation.boxes(centre, eps)
        for _ in range(40):
            values = network.values(in_ball(x, eps, generator))
            for value, (lower, upper), error in zip(values, boxes, centre.errors, strict=True):
                assert (value >= lower - error).all()
                assert (value <= upper + error).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ball_reaches_no_further_than_the_constants_say(seed: int) -> None:
    network = simplify(random_network(seeded(seed)))
    constants = node_constants(network, {})
    generator = seeded(seed)
    x = sample(network, seed, 200)
    for size in (1e-3, 1.0):
        moved = x + size * normal(x.shape, generator)
        distance = (moved - x).flatten(1).norm(dim=1)
        for before, after, constant in zip(
            network.values(x), network.values(moved), constants, strict=True
        ):
            assert ((after - before).flatten(1).norm(dim=1) <= constant * distance + 1e-12).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_float32_in_any_order_stays_within_its_error(seed: int) -> None:
    network = random_network(seeded(seed))
    single = network.to(dtype=torch.float32)
    # Weights that float32 holds exactly, as those of a file are.
    exact = single.to(dtype=torch.float64)
    x = sample(exact, seed).float().double()
    eps = torch.full((len(x),), 0.2, dtype=torch.float64)
    propagation = Propagation.of(exact, node_constants(exact, {}))
    boxes = propagation.boxes(propagation.centre(x), eps)
    errors = rounding_errors(exact, boxes, SINGLE)[-1].flatten(1)
    generator = seeded(seed)
    for _ in range(30):
        point = in_ball(x, eps * 0.999, generator).float()
        truth = exact.logits(point.double())
        assert ((single.logits(point).double() - truth).abs() <= errors).all()
    assert (errors < 1e-2 * (1 + truth.abs().amax(1, keepdim=True))).all()


def cancelling(size: float) -> Network:
    """``x ↦ (size + x) − size``: all that float32 keeps of x is noise."""
    builder = NetworkBuilder((1, 2))
    shift = torch.full((2,), size, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    node = builder.operator(Dense.of(eye, shift, (1, 2)), 0)
    return builder.build(builder.operator(Dense.of(eye, -shift, (1, 2)), node))


def test_cancellation_is_charged() -> None:
    network = cancelling(1e7)
    x = torch.tensor([[[0.3, 0.6]]], dtype=torch.float64)
    boxes = [(value, value) for value in network.values(x)]
    error = rounding_errors(network, boxes, SINGLE)[-1]
    single = network.to(dtype=torch.float32).logits(x.float()).double()
    assert ((single - x.flatten(1)).abs() <= error.flatten(1)).all()
    assert (single - x.flatten(1)).abs().max() > 0.1
    assert (rounding_errors(network, boxes, DOUBLE)[-1] < 1e-7).all()


def test_overflow_in_float32_is_an_infinite_error() -> None:
    network = cancelling(1e39)
    x = torch.zeros(1, 1, 2, dtype=torch.float64)
    boxes = [(value, value) for value in network.values(x)]
    assert rounding_errors(network, boxes, SINGLE)[-1].isinf().all()
    assert not rounding_errors(network, boxes, DOUBLE)[-1].isinf().any()


def test_boxes_of_what_is_not_finite_shrink_nothing() -> None:
    network = simplify(random_network(seeded(0)))
    propagation = Propagation.of(network, node_constants(network, {}))
    x = sample(network, 0)
    x[0, ..., 0] = torch.nan
    eps = torch.full((len(x),), 0.1, dtype=torch.float64)
    eps[1] = torch.inf
    boxes = propagation.boxes(propagation.centre(x), eps)
    for lower, upper in boxes:
        width = (upper - lower).flatten(1)
        assert not (width[0].nansum() < 0)
        assert torch.isfinite(width[2]).all()
    assert boxes[-1][0][0].isnan().all() or boxes[-1][0][0].isinf().any()
