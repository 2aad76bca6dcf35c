"""Boxes hold every value, and values are as near to the real ones as their errors say."""

from fractions import Fraction

import pytest
import torch
from attacks import in_ball
from laws import normal, random_network, seeded, uniform

from lipcert.bounds import Propagation, node_constants
from lipcert.network import Network, NetworkBuilder, simplify
from lipcert.network.activations import relu
from lipcert.network.operators import Dense

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


def rational(network: Network, x: torch.Tensor) -> list[list[Fraction]]:
    """The values of every node of a chain of dense operators and ReLUs, without rounding."""
    values = [[Fraction(v) for v in x.flatten().tolist()]]
    for node in network.nodes[1:]:
        before = values[-1]
        if isinstance(node.kind, Dense):
            rows, bias = node.kind.weight.tolist(), node.kind.bias
            assert bias is not None
            values.append([
                sum((Fraction(w) * v for w, v in zip(row, before, strict=True)), Fraction(b))
                for row, b in zip(rows, bias.flatten().tolist(), strict=True)
            ])  # fmt: skip
        else:
            values.append([max(v, Fraction(0)) for v in before])
    return values


@pytest.mark.parametrize("afresh", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(8))
def test_values_are_as_near_to_the_real_ones_as_they_say(seed, dtype, afresh) -> None:
    generator, width = seeded(seed), 6
    builder, last = NetworkBuilder((1, width)), 0
    for k in range(3):
        weight = normal((width, width), generator).to(dtype) * 10.0 ** (3 * (seed % 3) - 3)
        bias = normal((width,), generator).to(dtype) * 1e-3
        last = builder.operator(Dense.of(weight, bias, (1, width)), last)
        last = builder.activation(relu(weight), last) if k < 2 else last
    network = builder.build(last)
    x = normal((1, 1, width), generator).to(dtype)
    propagation = Propagation.of(network, node_constants(network, {}))
    centre = propagation.anchors(x) if afresh else propagation.centre(x)
    if afresh or dtype == torch.float32:
        # Errors from what the layers before make of the computed values; see ``Centre``.
        for i, operator in network.exact.operators.items():
            source = centre.values[network.nodes[i].inputs[0]].double()
            step = NetworkBuilder((1, width))
            alone = step.build(step.operator(operator, 0))
            truth = rational(alone, source)[-1]
            assert within(centre.values[i], centre.errors[i], truth)
        return
    for value, error, truth in zip(centre.values, centre.errors, rational(network, x), strict=True):
        assert within(value, error, truth)
        assert bool((error <= 1e-12 * (1 + value.abs().amax())).all())


def within(value: torch.Tensor, error: torch.Tensor, truth: list[Fraction]) -> bool:
    pairs = zip(value.flatten().tolist(), error.flatten().tolist(), truth, strict=True)
    return all(abs(Fraction(v) - t) <= Fraction(e) for v, e, t in pairs)


def test_cancellation_is_charged() -> None:
    """``x ↦ (size + x) − size``: all that is kept of x is noise."""
    builder = NetworkBuilder((1, 2))
    shift = torch.full((2,), 1e16, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    node = builder.operator(Dense.of(eye, shift, (1, 2)), 0)
    network = builder.build(builder.operator(Dense.of(eye, -shift, (1, 2)), node))
    x = torch.tensor([[[0.3, 0.6]]], dtype=torch.float64)
    centre = Propagation.of(network, node_constants(network, {})).centre(x)
    off = (centre.logits - x.flatten(1)).abs()
    assert (off <= centre.logit_errors).all()
    assert off.max() > 0.1


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
