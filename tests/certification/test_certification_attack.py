"""Attacks: their points are what they claim to be, and near where the nearest is known."""

import math

import pytest
import torch
from laws import normal, random_network, seeded, uniform
from torch import Tensor

from lipcert.certification.attack import Attack, attack, nearest
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import MaxMin, PReLU, Sigmoid, Tanh, relu
from lipcert.network.activations.base import Activation
from lipcert.network.operators import Dense


def linear(seed: int, inputs: int = 40, classes: int = 6) -> tuple[Network, Tensor]:
    builder = NetworkBuilder((inputs,))
    weight = normal((classes, inputs), seeded(seed)).float().double()
    bias = 3 * normal((classes,), seeded(seed + 1)).float().double()
    return builder.build(builder.operator(Dense.of(weight, bias, (inputs,)), 0)), weight


def case(seed: int, batch: int = 6) -> tuple[Network, Tensor, Tensor]:
    """A random network, pixels that float32 does not hold, labels as predicted."""
    network = random_network(seeded(seed))
    x = uniform((batch, *network.in_shape), seeded(seed + 1))
    return network, x, network.to(dtype=torch.float32).logits(x.float()).argmax(1)


def check(
    found: Attack, network: Network, x: Tensor, labels: Tensor, *, pixel_domain: bool = False
) -> None:
    """Every point really is misclassified in float32, at no more than the distance claimed."""
    assert found.radius.dtype == torch.float64
    assert found.points.shape == x.shape
    assert found.points.dtype == x.dtype
    broken = torch.isfinite(found.radius)
    distance = (found.points.double() - x.double()).flatten(1).norm(dim=1)
    assert (distance[broken] <= found.radius[broken]).all()
    assert torch.allclose(distance[broken], found.radius[broken], rtol=1e-9, atol=0)
    assert torch.equal(found.points[~broken], x[~broken])
    if broken.any():
        single = network.to(dtype=torch.float32)
        logits = torch.cat([single.logits(point[None].float()) for point in found.points])
        own = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
        assert (others > own)[broken].all()
    if pixel_domain:
        assert ((found.points >= 0) & (found.points <= 1)).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_to_a_plane(seed: int) -> None:
    network, weight = linear(seed)
    x = uniform((8, 40), seeded(seed + 2))
    logits = network.logits(x)
    labels = logits.argmax(1)
    gap = logits.gather(1, labels[:, None]) - logits
    planes = gap / (weight[labels][:, None] - weight).norm(dim=2)
    exact = planes.scatter(1, labels[:, None], math.inf).amin(1)
    found = nearest(network, x, labels)
    check(found, network, x, labels)
    assert (found.radius >= exact * (1 - 1e-5)).all()
    # Near a tie the point has to be clearly on the other side, in float32.
    assert (found.radius <= exact * 1.01 + 1e-4).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_to_a_plane_in_the_pixel_domain(seed: int) -> None:
    network, weight = linear(seed, classes=2)
    x = uniform((8, 40), seeded(seed + 2)).round(decimals=1)
    logits = network.logits(x)
    labels = logits.argmax(1)
    slope = weight[labels] - weight[1 - labels]
    margin = (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])).squeeze(1)
    # The nearest point is clamp(x − s slope), s by bisection.
    low, high = torch.zeros(8, dtype=torch.float64), torch.full((8,), 100.0, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        moved = (x - middle[:, None] * slope).clamp(0, 1) - x
        above = margin + (moved * slope).sum(1) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    exact = torch.where(above & (high > 99), math.inf, moved.norm(dim=1))
    found = nearest(network, x, labels, pixel_domain=True)
    check(found, network, x, labels, pixel_domain=True)
    assert torch.isfinite(exact).any()
    assert (found.radius <= exact * 1.01).all()
    assert (found.radius >= exact * (1 - 1e-5)).all()


@pytest.mark.parametrize("pixel_domain", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_points_of_random_networks(seed: int, pixel_domain: bool) -> None:
    network, x, labels = case(seed)
    found = nearest(network, x, labels, restarts=1, pixel_domain=pixel_domain)
    check(found, network, x, labels, pixel_domain=pixel_domain)
    eps = found.radius.nan_to_num(posinf=1.0) * 1.05
    at = attack(network, x, labels, eps, pixel_domain=pixel_domain)
    check(at, network, x, labels, pixel_domain=pixel_domain)
    assert (at.radius <= eps).logical_or(at.radius.isinf()).all()


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3, 0.1, 1.0])
def test_eps_is_never_passed(eps: float) -> None:
    network, _ = linear(0)
    x = uniform((20, 40), seeded(2))
    labels = network.logits(x).argmax(1)
    # Samples on both sides of the radius asked for, by a hair.
    far = nearest(network, x, labels)
    edge = (x + (far.points - x) * (1 - eps / far.radius)[:, None]).where(
        eps < far.radius[:, None], x
    )
    found = attack(network, edge, labels, eps)
    check(found, network, edge, labels)
    broken = torch.isfinite(found.radius)
    assert (found.radius[broken] <= eps).all()


def test_a_larger_eps_breaks_and_a_smaller_one_does_not() -> None:
    network, _ = linear(3)
    x = uniform((10, 40), seeded(2))
    labels = network.logits(x).argmax(1)
    radius = nearest(network, x, labels).radius
    assert torch.isfinite(attack(network, x, labels, radius * 1.02).radius).all()
    assert torch.isinf(attack(network, x, labels, radius * 0.98).radius).all()
    assert torch.isinf(nearest(network, x, labels, within=radius * 0.98).radius).all()


def test_a_misclassified_sample_is_its_own_counterexample() -> None:
    network, x, labels = case(1)
    wrong = labels.clone()
    wrong[::2] = (wrong[::2] + 1) % network.classes
    for found in (nearest(network, x, wrong), attack(network, x, wrong, 0.0)):
        assert torch.equal(found.radius[::2], torch.zeros(3, dtype=torch.float64))
        assert torch.equal(found.points[::2], x[::2])
        assert (found.radius[1::2] > 0).all()


def test_the_same_seed_gives_the_same_points_in_any_company() -> None:
    network, x, labels = case(2)
    first, second = (nearest(network, x, labels, restarts=2, seed=5) for _ in range(2))
    assert torch.equal(first.radius, second.radius)
    assert torch.equal(first.points, second.points)
    alone = [
        nearest(network, x[[i]], labels[[i]], restarts=2, seed=5).radius for i in range(len(x))
    ]
    assert torch.allclose(torch.cat(alone), first.radius, rtol=1e-3)


def chain(activation: Activation, *, scale: float = 1.0, shift: float = 0.0) -> Network:
    builder = NetworkBuilder((12,))
    first = normal((16, 12), seeded(0)) * scale
    node = builder.operator(Dense.of(first, torch.full((16,), shift).double(), (12,)), 0)
    node = builder.activation(activation, node)
    last = normal((4, 16), seeded(1))
    return builder.build(builder.operator(Dense.of(last, normal((4,), seeded(2)), (16,)), node))


@pytest.mark.parametrize(
    "activation",
    [relu(), Sigmoid(), Tanh(), MaxMin(0), PReLU(torch.full((16,), 0.1).double())],
    ids=lambda activation: type(activation).__name__,
)
def test_every_activation(activation: Activation) -> None:
    network = chain(activation)
    x = uniform((10, 12), seeded(3))
    labels = network.logits(x).argmax(1)
    found = nearest(network, x, labels)
    check(found, network, x, labels)
    assert torch.isfinite(found.radius).float().mean() >= 0.5


def test_zero_gradients_are_left_by_random_directions() -> None:
    """Every neuron is off at the samples, so the gradient is zero."""
    network = chain(relu(), scale=4.0, shift=-1.5)
    x = torch.zeros(4, 12, dtype=torch.float64)
    labels = network.logits(x).argmax(1)
    found = nearest(network, x, labels, restarts=5)
    check(found, network, x, labels)
    assert torch.isfinite(found.radius).any()


def test_numbers_that_are_none_break_nothing() -> None:
    """Products overflow in float32 a little away from the samples, and at one of them."""
    builder = NetworkBuilder((3,))
    big = torch.tensor([[1e30, 0, 0], [0, 1e30, 0], [1, 1, 1]], dtype=torch.float64)
    node = builder.operator(Dense.of(big, None, (3,)), 0)
    node = builder.activation(relu(), node)
    node = builder.operator(Dense.of(1e9 * big, None, (3,)), node)
    network = builder.build(node)
    x = torch.tensor([[0, 0, 0.5], [1e-31, 0, 1e-3], [1, 1, 0]], dtype=torch.float64)
    labels = torch.tensor([2, 2, 0])
    for found in (nearest(network, x, labels, restarts=2), attack(network, x, labels, 0.5)):
        assert not found.radius.isnan().any()
        assert not found.points.isnan().any()
        assert torch.isinf(found.radius[2])  # no finite logits, so no prediction to change
        check(found, network, x, labels)


def test_two_classes_other_dtypes_and_no_samples() -> None:
    network, _ = linear(7, classes=2)
    x = uniform((5, 40), seeded(1)).float()
    labels = network.logits(x.double()).argmax(1)
    check(nearest(network, x, labels), network, x, labels)
    double = nearest(network, x.double(), labels, dtype=torch.float64)
    check(double, network, x.double(), labels)
    assert nearest(network, x[:0], labels[:0]).radius.shape == (0,)


def test_more_effort_is_not_worse() -> None:
    network, x, labels = case(4)
    cheap = nearest(network, x, labels, steps=8).radius
    thorough = nearest(network, x, labels, steps=40, restarts=3).radius
    assert (thorough <= cheap * 1.01).all()
