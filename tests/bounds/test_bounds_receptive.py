"""ReceptiveFields show a neuron all that it sees, and boxes refined through them hold every run."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from bounds.test_bounds_lipschitz import bound_of, deterministic
from laws import normal, seeded, uniform

from lipcert.bounds import AnchoredBound, FactPlan
from lipcert.bounds.receptive import ReceptiveFields
from lipcert.bounds.refined import Refinement, Subnetwork
from lipcert.bounds.reverse import carry_back
from lipcert.bounds.state import Layer, State
from lipcert.certification import Certifier
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import PReLU, relu
from lipcert.network.operators import Convolution, Dense, Diagonal, Select
from lipcert.options import Epsilon, Options

Pads = Sequence[tuple[int, int]]
EVERY = Refinement(receptive=10.0)
# Only the sides where slopes change.
BENDS = Refinement(work=0.0, tried=torch.inf, worth=10.0, receptive=10.0)


class Grower:
    """Networks of convolutions over images of two channels."""

    def __init__(self, seed: int, side: int = 9) -> None:
        self.generator = seeded(seed)
        self.builder = NetworkBuilder((1, 2, side, side))

    def conv(
        self, node: int, outputs: int = 3, kernel: int = 3, stride: int = 1, groups: int = 1,
        dilation: int = 1, pads: Pads = ((1, 1), (1, 1)),
    ) -> int:  # fmt: skip
        shape = self.builder.shape(node)
        weight = normal((outputs, shape[1] // groups, kernel, kernel), self.generator)
        operator = Convolution.of(
            weight / 3, normal((outputs,), self.generator), shape, stride=(stride, stride),
            padding=pads, dilation=(dilation, dilation), groups=groups,
        )  # fmt: skip
        return self.builder.operator(operator, node)

    def relu(self, node: int) -> int:
        return self.builder.activation(relu(), node)

    def prelu(self, node: int) -> int:
        """A slope for each channel."""
        slopes = uniform((self.builder.shape(node)[1], 1, 1), self.generator)
        return self.builder.activation(PReLU(slopes), node)

    def diagonal(self, node: int) -> int:
        shape = self.builder.shape(node)
        scale = 1 + uniform((shape[1], 1, 1), self.generator)
        return self.builder.operator(Diagonal.of(scale, None, shape), node)

    def logits(self, node: int) -> Network:
        shape = self.builder.shape(node)
        size = int(torch.tensor(shape).prod())
        flat = self.builder.operator(Select.reshape(shape, (1, size)), node)
        weight = normal((3, size), self.generator) / 4
        return self.builder.build(self.builder.operator(Dense.of(weight, None, (1, size)), flat))


def plain(grow: Grower) -> int:
    node = grow.relu(grow.conv(grow.diagonal(0), outputs=4))
    return grow.conv(grow.prelu(grow.conv(node, stride=2, kernel=4)))


def residual(grow: Grower) -> int:
    """The identity sees less than the convolutions beside it."""
    node = grow.relu(grow.conv(0, outputs=4))
    inner = grow.conv(grow.relu(grow.conv(node, outputs=4)), outputs=4)
    node = grow.relu(grow.builder.sum([node, grow.diagonal(inner)]))
    short = grow.conv(node, outputs=3, kernel=1, stride=2, pads=((0, 0), (0, 0)))
    return grow.builder.sum([short, grow.conv(node, stride=2)])


def uneven(grow: Grower) -> int:
    """Padding on one side, a crop, groups and dilation."""
    node = grow.relu(grow.conv(0, outputs=4, groups=2, pads=((0, 2), (1, 0))))
    node = grow.relu(grow.conv(node, outputs=4, kernel=2, dilation=2, pads=((-1, 1), (2, 0))))
    return grow.conv(node, kernel=2, stride=2, pads=((0, 0), (0, 0)))


def pooled(grow: Grower) -> int:
    """A convolution that reads another one, without padding between them."""
    node = grow.relu(grow.conv(0, outputs=4))
    node = grow.conv(node, outputs=4, groups=4, kernel=2, stride=2, pads=((0, 0), (0, 0)))
    return grow.conv(node, kernel=2, pads=((0, 0), (0, 0)))


SHAPES = [plain, residual, uneven, pooled]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_what_a_neuron_sees_tells_how_it_moves(shape: Callable[[Grower], int], seed: int) -> None:
    """Objective by objective back through the small network: ``Δv = Σ objectives · Δa`` over its
    windows."""
    grow = Grower(seed)
    node = shape(grow)
    network = grow.logits(node)
    seen = ReceptiveFields.of(network, node, 10.0)
    assert seen is not None
    x = uniform((2, 1, 2, 9, 9), grow.generator)
    values, others = network.values(x), network.values(uniform(x.shape, grow.generator))
    sources = [i for i in seen.numbers if i < node]
    state: State = {}
    for i in sources:
        moved = others[i] - values[i]
        ones, ball = torch.ones_like(moved), moved.flatten(1).norm(dim=1)
        state[i] = Layer(moved, moved, moved, ball, ones, ones)
    rows, neurons = torch.ones(2, values[node][0].numel()).nonzero().unbind(1)
    windowed = seen.state(state, rows, neurons)
    total = torch.zeros(len(rows)).double()

    def taken(number: int, value: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total = total + (value * windowed[number].anchor).flatten(1).sum(1)
        return torch.zeros_like(value)

    objective = seen.coefficients(neurons, network.anchor)
    rest = carry_back(seen.network, seen.network.output, objective, taken)
    if rest is not None:
        total = total + (rest * windowed[0].anchor).flatten(1).sum(1)
    expected = (others[node] - values[node]).flatten(1)[rows, neurons]
    torch.testing.assert_close(total, expected)
    # Beyond the border nothing varies.
    assert any(bool((layer.varying == 0).any()) for layer in windowed.values()) or shape is pooled


def test_a_form_that_would_come_back_from_beyond_the_border_has_no_window() -> None:
    """What pads a convolution that reads another one is 0, and not what that one would give."""
    grow = Grower(0)
    node = grow.conv(grow.conv(grow.relu(grow.conv(0))))
    network = grow.logits(node)
    assert ReceptiveFields.of(network, node, 10.0) is None
    # Nor has what is no image, or does something else at every place.
    assert ReceptiveFields.of(network, network.output, 10.0) is None
    grow = Grower(0)
    scale = uniform((3, 9, 9), grow.generator)
    node = grow.builder.operator(Diagonal.of(scale, None, (1, 3, 9, 9)), grow.relu(grow.conv(0)))
    node = grow.conv(node)
    assert ReceptiveFields.of(grow.logits(node), node, 10.0) is None


def test_windows_and_the_whole_network_agree() -> None:
    """But for balls, of which a window may know a smaller part."""
    grow = Grower(6)
    network = grow.logits(grow.relu(residual(grow)))
    x, eps = uniform((2, 1, 2, 9, 9), grow.generator), torch.full((2,), 0.05).double()
    through = bounds(network, EVERY, False)
    _, small = through.prepare_state(through.propagation.anchors(x), eps, deterministic)
    over = bounds(network, replace(EVERY, receptive=0.0), False)
    assert all(subnetwork.receptive is None for subnetwork in over.subnetworks.values())
    _, whole = over.prepare_state(over.propagation.anchors(x), eps, deterministic)
    for i, layer in small.items():
        wide = (whole[i].upper - whole[i].lower).clamp(min=1e-12)
        assert ((layer.upper - layer.lower) / wide).mean() < 1 + 1e-3


def bounds(network: Network, refinement: Refinement | None, images: bool) -> AnchoredBound:
    found = bound_of(AnchoredBound, network)
    assert isinstance(found, AnchoredBound)
    rough = network.to_guess_by()
    return replace(found, rough=rough, plan=FactPlan(0, False, refinement), images=images)


def test_views_count_what_a_neuron_sees() -> None:
    grow = Grower(7)
    node = plain(grow)
    network = grow.logits(grow.relu(node))
    subnetwork = bounds(network, EVERY, False).subnetworks[node]
    assert isinstance(subnetwork, Subnetwork)
    assert subnetwork.receptive is not None
    # 3 by 3 of the layer before, whose windows of 4 lie 2 apart, and 2 channels of 10 by 10.
    assert subnetwork.size == 3 * 9 + 4 * 8 * 8 + 2 * 10 * 10


def test_a_layer_before_any_operator_is_refined_too() -> None:
    """Its window has no number that would tell a type, nor needs to."""
    builder = NetworkBuilder((1, 2, 3, 3))
    bent = builder.activation(relu(), 0)
    node = builder.activation(PReLU(torch.tensor(0.3).double()), builder.sum([0, bent]))
    flat = builder.operator(Select.reshape((1, 2, 3, 3), (1, 18)), node)
    last = Dense.of(normal((3, 18), seeded(0)), None, (1, 18))
    network = builder.build(builder.operator(last, flat))
    x = uniform((2, *network.in_shape), seeded(1)) - 0.5
    options = Options((Epsilon.parse("0.2"),))
    samples = Certifier(network, options, samples=2)(x, network.logits(x).argmax(1), [0, 1])
    assert all(sample.radius for sample in samples)
