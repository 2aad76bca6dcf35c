"""Deep networks: radii by sketched tubes, where norms layer after layer leave nothing."""

import math
from typing import Any

import pytest
import torch
from attacks import in_ball, smallest_margins
from laws import normal, seeded, uniform
from torch import Generator

from lipcert.certificate import Sample
from lipcert.certification import Certifier
from lipcert.certification.analysis import Analysis
from lipcert.certification.published import Published
from lipcert.certification.rungs import Rung, is_deep
from lipcert.certification.rungs.attack import Attacked
from lipcert.certification.rungs.tube import Nothing, TubeRadius
from lipcert.errors import UsageError
from lipcert.network import Network, NetworkBuilder, Segment
from lipcert.network.activations import Activation, Silu, absolute, relu
from lipcert.network.operators import Convolution, Dense, Diagonal, Select
from lipcert.norms import SegmentNorms
from lipcert.options import Effort, Epsilon, Options


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


class OneByOne(TubeRadius):
    at_once = 1


class SideBySide(TubeRadius):
    at_once = 4


def by_tube(
    kind: type[TubeRadius], count: int, effort: Effort, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Samples of a network that is not deep, by a tube alone."""

    def rungs(analysis: Analysis, published: Published) -> tuple[Rung, ...]:
        return Nothing(), Attacked(analysis), kind.of(analysis, 0.5)

    network = residual_network(seeded(11), 1, relu())
    x = uniform((count, *network.in_shape), seeded(12)).float().double()
    options = Options(eps=(Epsilon.parse("1e-3"),), effort=effort, seed=3)
    certifier = Certifier(network, options, samples=count, device=device, rungs=rungs)
    samples = certifier(x, network.logits(x).argmax(1), range(count))
    return [
        {k: v for k, v in sample.to_json().items() if k not in ("seconds", "rungs")}
        for sample in samples
    ]


def test_samples_side_by_side_have_the_radii_that_each_has_alone() -> None:
    """Though each draws errors at neurons of its own: most are on one side of their kink."""
    alone, together = by_tube(OneByOne, 4, "standard"), by_tube(SideBySide, 4, "standard")
    assert sum(record["radius"] > 0 for record in alone) > 1
    for one, other in zip(alone, together, strict=True):
        assert (one["radius"], one["verdict"]) == (other["radius"], other["verdict"])
        assert one["failure_probability"] == other["failure_probability"]
        assert one["deployed_error"] == pytest.approx(other["deployed_error"], rel=1e-9)


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
    network = permuted_network()
    assert is_deep(network)
    x = uniform((2, *network.in_shape), seeded(12)).float().double()
    samples = certified(network, x, "real", "auto")
    assert all(sample.method == "local" and "tube" not in sample.rungs for sample in samples)
    assert all(sample.radius > 0.6 * sample.margin for sample in samples)


def permuted_network(layers: int = 72) -> Network:
    """A deep network of moves, shifts and absolute values, which is 1-Lipschitz."""
    generator, size = seeded(7), 3 * 12 * 12
    builder, node = NetworkBuilder((1, 3, 12, 12)), 0
    for _ in range(layers):
        order = torch.randperm(size, generator=generator)[None]
        node = builder.operator(Select.of(order, builder.shape(node)), node, "shuffle")
        shift = 0.2 * normal((1, size), generator)
        node = builder.operator(
            Diagonal.of(torch.ones(1, size).double(), shift, (1, size)), node, "shift"
        )
        node = builder.activation(absolute(), node)
    rows, _ = torch.linalg.qr(normal((size, 4), generator))
    return builder.build(builder.operator(Dense.of(rows.T, None, (1, size)), node, "head"))


def test_norms_are_found_only_where_a_sample_asks_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network of tubes needs none; one that is settled by them has them listed."""
    found: list[Segment] = []
    whole = SegmentNorms.of

    def counted(segment: Segment, *args: Any, **kwargs: Any) -> SegmentNorms:
        found.append(segment)
        return whole(segment, *args, **kwargs)

    monkeypatch.setattr(SegmentNorms, "of", counted)
    options = Options(eps=(Epsilon.parse("1e-5"),), effort="fast", deployed="real", seed=3)
    for network, asked in ((residual_network(seeded(11), 20, relu()), False),
                           (permuted_network(), True)):  # fmt: skip
        x = uniform((1, *network.in_shape), seeded(12)).float().double()
        certifier = Certifier(network, options, samples=1)
        assert not found
        samples = certifier(x, network.logits(x).argmax(1), range(1))
        assert samples[0].radius > 1e-5
        assert bool(found) == bool(samples[0].eliminated) == asked
        norms = certifier.layer_norms_asked(samples)[:-1]
        assert all((norm.assurance != "not asked for") == asked for norm in norms)
        assert all(math.isfinite(norm.value) == asked for norm in norms)
        found.clear()


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
