"""Deep networks: radii by sketched tubes, where norms layer after layer leave nothing."""

import math

import pytest
import torch
from attacks import in_ball, smallest_margins
from laws import normal, seeded, uniform
from torch import Generator

from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.certification.rungs.plan import is_deep
from lipcert.errors import UsageError
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import Activation, Silu, absolute, relu
from lipcert.network.operators import Convolution, Dense, Diagonal, Select
from lipcert.options import Epsilon, Options


def residual_network(generator: Generator, blocks: int, activation: Activation) -> Network:
    """``blocks`` residual blocks of 4 channels, as a batch norm would leave them."""
    builder = NetworkBuilder((1, 3, 12, 12))

    def convolution(node: int, channels: int, gain: float) -> int:
        shape = builder.shape(node)
        weight = normal((channels, shape[1], 3, 3), generator)
        weight *= gain / math.sqrt(weight[0].numel())
        bias = 0.2 * normal((channels,), generator)
        return builder.operator(
            Convolution.of(weight, bias, shape, padding=((1, 1), (1, 1))), node, "convolution"
        )

    node = builder.activation(activation, convolution(0, 4, 2.0))
    for _ in range(blocks):
        inner = builder.activation(activation, convolution(node, 4, 1.4))
        node = builder.activation(activation, builder.sum([convolution(inner, 4, 0.7), node]))
    shape = builder.shape(node)
    places = torch.arange(math.prod(shape)).reshape(1, -1)
    node = builder.operator(Select.of(places, shape), node, "flatten")
    weight = normal((4, places.numel()), generator) / math.sqrt(places.numel())
    return builder.build(
        builder.operator(Dense.of(weight, None, (1, places.numel())), node, "head")
    )


def certified(network: Network, x: torch.Tensor, deployed: str, method: str) -> list[Sample]:
    options = Options(
        eps=(Epsilon.parse("1e-5"),), method=method, effort="fast", deployed=deployed, seed=3
    )
    labels = network.logits(x).argmax(1)
    return Certifier(network, options, samples=len(x))(x, labels, range(len(x)))


@pytest.mark.parametrize(
    ("activation", "deployed"),
    [(relu(), "float32"), (relu(), "real"), (Silu(), "float32")],
    ids=["ReLU", "ReLU, real", "SiLU"],
)
def test_deep_networks_get_radii_that_no_attack_breaks(
    activation: Activation, deployed: str
) -> None:
    network = residual_network(seeded(11), 20, activation)
    assert is_deep(network)
    x = uniform((2, *network.in_shape), seeded(12)).float().double()
    labels = network.logits(x).argmax(1)
    samples = certified(network, x, deployed, "auto")
    radii = torch.tensor([sample.radius for sample in samples], dtype=torch.float64)
    # The local bound is at most 1e-9 here.
    assert bool((radii > 1e-5).all())
    assert all(sample.method == "tube" for sample in samples)
    assert all(0 < sample.failure_probability < 1e-9 for sample in samples)
    points = torch.cat([in_ball(x, radii, seeded(k)) for k in range(20)])
    assert bool((network.logits(points).argmax(1) == labels.repeat(20)).all())
    assert bool((smallest_margins(network, x, labels, radii, restarts=1) > 0).all())


def test_what_lipschitz_constants_settle_takes_no_tube() -> None:
    """A deep network of moves, shifts and absolute values is 1-Lipschitz."""
    generator, size = seeded(7), 3 * 12 * 12
    builder, node = NetworkBuilder((1, 3, 12, 12)), 0
    for _ in range(72):
        order = torch.randperm(size, generator=generator)[None]
        node = builder.operator(Select.of(order, builder.shape(node)), node, "shuffle")
        shift = 0.2 * normal((1, size), generator)
        node = builder.operator(
            Diagonal.of(torch.ones(1, size).double(), shift, (1, size)), node, "shift"
        )
        node = builder.activation(absolute(), node)
    rows, _ = torch.linalg.qr(normal((size, 4), generator))
    network = builder.build(builder.operator(Dense.of(rows.T, None, (1, size)), node, "head"))
    assert is_deep(network)
    x = uniform((2, *network.in_shape), seeded(12)).float().double()
    samples = certified(network, x, "real", "auto")
    assert all(sample.method == "local" and "tube" not in sample.rungs for sample in samples)
    assert all(sample.radius > 0.6 * sample.margin for sample in samples)


def test_a_batch_of_wrong_predictions_takes_no_tube() -> None:
    network = residual_network(seeded(11), 20, relu())
    x = uniform((2, *network.in_shape), seeded(12)).float().double()
    options = Options(eps=(Epsilon.parse("1e-5"),), effort="fast", deployed="real", seed=3)
    wrong = (network.logits(x).argmax(1) + 1) % network.classes
    samples = Certifier(network, options, samples=2)(x, wrong, range(2))
    assert [sample.verdict for sample in samples] == ["misclassified"] * 2


def test_without_coins_deep_networks_go_the_way_of_the_others() -> None:
    network = residual_network(seeded(11), 20, relu())
    certain = Options(eps=(Epsilon.parse("1e-5"),), effort="fast", failure_probability=0.0)
    assert "tube" not in Certifier(network, certain, samples=1).rungs


def test_a_probability_that_no_projection_assures_is_refused() -> None:
    network = residual_network(seeded(11), 20, relu())
    options = Options(
        eps=(Epsilon.parse("1e-5"),), effort="fast", failure_probability=1e-320, seed=3
    )
    with pytest.raises(UsageError, match="--failure-probability"):
        Certifier(network, options, samples=1)


def test_a_chain_of_wide_layers_takes_the_tube() -> None:
    """The first layers of 8C2F on pictures of 64 × 64: a chain holds the tangents of two nodes and
    a half, not those of a branch too."""
    builder = NetworkBuilder((1, 3, 64, 64))
    node = 0
    for channels in (64, 64, 128):
        weight = torch.zeros(channels, builder.shape(node)[1], 1, 1, dtype=torch.float64)
        stride = (2, 2) if channels == 128 else (1, 1)
        node = builder.operator(
            Convolution.of(weight, None, builder.shape(node), stride=stride), node
        )
        node = builder.activation(relu(), node)
    assert is_deep(builder.build(node))


def test_a_layer_that_leaves_no_room_for_tangents_takes_no_tube() -> None:
    """Of a large image as many tangents as assure something would take all memory."""
    builder = NetworkBuilder((1, 3, 224, 224))
    node = 0
    for channels in (64, 64, 64):
        weight = torch.zeros(channels, builder.shape(node)[1], 1, 1, dtype=torch.float64)
        node = builder.operator(Convolution.of(weight, None, builder.shape(node)), node)
        node = builder.activation(relu(), node)
    assert not is_deep(builder.build(node))


def test_shallow_networks_are_not_deep() -> None:
    assert not is_deep(residual_network(seeded(11), 2, relu()))
