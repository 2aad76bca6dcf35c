"""Lowering keeps the function, and leaves affine operators and element-wise activations only."""

import math

import pytest
import torch
from laws import DTYPES, normal, pick, random_network, seeded, uniform

from lipcert.bounds import GlobalBound, Layers
from lipcert.network import Input, NetworkBuilder, Sum, lower, simplify
from lipcert.network.activations import Activation, Elementwise, GroupMax, MaxMin
from lipcert.network.operators import Diagonal, Operator, Select
from lipcert.norms import SegmentNorms

SAMPLES = 50
PAIRED = [((4,), 0), ((1, 4, 3, 2), 1), ((1, 4, 3, 2), 3), ((2, 6, 4), 0), ((2, 6, 4), 1),
          ((2, 6, 4), 2), ((1, 2), 1)]  # fmt: skip


def network_of(in_shape, *kinds, dtype=torch.float64):
    """A chain; a first operator that does nothing gives it its type."""
    builder = NetworkBuilder(in_shape)
    node = builder.operator(Diagonal.of(torch.ones((), dtype=dtype), None, in_shape), 0, "identity")
    for kind in kinds:
        add = builder.activation if isinstance(kind, Activation) else builder.operator
        node = add(kind, node, type(kind).__name__)
    return builder.build(node)


def powers_of_two(shape, generator, dtype=torch.float64):
    """Sums and differences of these, halved, are exact; many are equal, some 0."""
    exponent = (9 * uniform(shape, generator)).floor() - 4
    sign = normal(shape, generator).sign() * (uniform(shape, generator) > 0.1)
    return (sign * 2**exponent).to(dtype)


def values(network, x):
    """The output as it is, of any shape."""
    return network.values(x)[-1]


def assert_lowered(network):
    for node in network.nodes:
        assert isinstance(node.kind, Input | Sum | Operator | Elementwise)


def assert_same(network, x, rounds):
    """Equal but for a few roundings of the largest value of a sample for each round of pairs."""
    lowered = lower(network)
    assert_lowered(lowered)
    assert lowered.nodes[lowered.output].shape == network.nodes[network.output].shape
    found, expected = values(lowered, x), values(network, x)
    assert found.dtype == expected.dtype
    largest = x.flatten(1).abs().amax(1).reshape(-1, *(1,) * (expected.dim() - 1))
    slack = 4 * rounds * torch.finfo(x.dtype).eps * largest
    assert bool(((found - expected).abs() <= slack).all())
    whole = powers_of_two(x.shape, seeded(9), x.dtype)
    assert torch.equal(values(lowered, whole), values(network, whole))


@pytest.mark.parametrize("seed", range(24))
def test_keeps_random_networks(seed):
    network = random_network(
        seeded(seed), in_shape=pick([(1, 2, 5, 5), (1, 4, 4, 4)], seeded(seed))
    )
    x = 2 * normal((20, *network.in_shape), seeded(seed + 100))
    expected = network.logits(x)
    for lowered in (
        lower(network),
        lower(simplify(network)),
        simplify(lower(simplify(network))),
    ):
        assert_lowered(lowered)
        assert lowered.in_shape == network.in_shape
        torch.testing.assert_close(
            lowered.logits(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
        )


def test_random_networks_have_something_to_lower():
    kinds = {type(node.kind) for seed in range(24) for node in random_network(seeded(seed)).nodes}
    assert {MaxMin, GroupMax} <= kinds


def test_a_lowered_network_stays():
    """Nothing is left to rewrite: the same operators and activations, one for one."""
    once = lower(random_network(seeded(3)))
    twice = lower(once)
    assert [node.kind for node in twice.nodes] == [node.kind for node in once.nodes]
    assert [node.origin for node in twice.nodes] == [node.origin for node in once.nodes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), PAIRED)
def test_maxmin_on_each_axis(shape, axis, dtype):
    network = network_of(shape, MaxMin(axis), dtype=dtype)
    assert_same(network, normal((SAMPLES, *shape), seeded(1), dtype), rounds=1)


@pytest.mark.parametrize(
    ("shape", "axis", "passing"), [((5,), 0, 1), ((1, 4, 3), 1, 2), ((2, 7), 1, 7)]
)
def test_maxmin_past_others(shape, axis, passing):
    """What passes is exactly what it was, and a stage that is lowered is no longer than 1."""
    network = network_of(shape, MaxMin(axis, 5.0, passing=passing))
    x = normal((SAMPLES, *shape), seeded(1))
    assert_same(network, x, rounds=1)
    rest = values(lower(network), x).narrow(axis + 1, shape[axis] - passing, passing)
    assert torch.equal(rest, x.narrow(axis + 1, shape[axis] - passing, passing))
    layers = Layers.of(simplify(lower(network)))
    norms = {(edge.source, edge.sink): SegmentNorms.of(edge) for edge in layers.edges}
    assert GlobalBound.of(layers, norms).product <= 1 + 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", range(1, 10))
def test_the_maximum_of_a_group(size, dtype):
    for shape in ((size,), (1, 3, size), (2, 1, 2, size)):
        network = network_of(shape, GroupMax(), dtype=dtype)
        rounds = max(1, math.ceil(math.log2(size)))
        assert_same(network, normal((SAMPLES, *shape), seeded(2), dtype), rounds)


def test_each_place_of_a_group_can_win():
    for size in range(1, 10):
        lowered = lower(network_of((size,), GroupMax()))
        x = torch.full((size, size), -8.0, dtype=torch.float64)
        x.fill_diagonal_(0.25)
        assert bool((values(lowered, x) == 0.25).all())


def test_one_after_the_other():
    """Pairs of pairs: sorted along two axes, and the largest of each row."""
    shape = (2, 4, 6)
    network = network_of(shape, MaxMin(1), MaxMin(2), GroupMax(), MaxMin(0))
    assert_same(network, normal((SAMPLES, *shape), seeded(3)), rounds=6)


def test_origins_are_kept():
    lowered = lower(network_of((1, 4), MaxMin(1), GroupMax()))
    origins = {node.origin for node in lowered.nodes[1:]}
    assert origins == {"identity", "MaxMin", "GroupMax"}


@pytest.mark.parametrize("seed", range(5))
def test_a_lowered_network_converts(seed):
    network = random_network(seeded(seed))
    single = network.to(dtype=torch.float32)
    x = normal((5, *network.in_shape), seeded(seed), torch.float32)
    logits = lower(single).logits(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, single.logits(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(lower(network).to(dtype=torch.float32).logits(x), logits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("seed", range(12))
def test_a_network_on_a_gpu_stays_there(seed):
    """New selections can be fused with the network's own."""
    network = random_network(seeded(seed))
    x = normal((5, *network.in_shape), seeded(seed))
    moved = simplify(lower(network.to(device="cuda")))
    for node in moved.nodes:
        if isinstance(node.kind, Select):
            assert node.kind.index.is_cuda
    torch.testing.assert_close(moved.logits(x.cuda()).cpu(), network.logits(x))
