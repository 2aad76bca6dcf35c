"""The network as a data structure: how it is built, what it refuses, and how it is moved."""

import pytest
import torch
from laws import clip, normal, places, random_network, seeded, uniform

from lipcert.network import Input, NetworkBuilder, Sum
from lipcert.network.activations import (
    ACTIVATIONS,
    Erf,
    GeluTanh,
    GroupMax,
    GroupSort,
    HardSwish,
    Identity,
    MaxMin,
    Mish,
)
from lipcert.network.operators import (
    OPERATORS,
    Dense,
    Diagonal,
    Operator,
    Select,
    TransposedConvolution,
)


def dense(inputs, outputs, *, bias=True):
    return Dense.of(
        normal((outputs, inputs), seeded(0)),
        normal((outputs,), seeded(1)) if bias else None,
        (inputs,),
    )


def tensors(network):
    for node in network.nodes:
        if isinstance(node.kind, Operator):
            yield from (t for t in (node.kind.entries(), node.kind.bias) if t is not None)


def test_methods_return_the_number_of_the_new_node():
    builder = NetworkBuilder((3,), "pixels")
    layer = builder.operator(dense(3, 4), 0, "layer")
    active = builder.activation(clip(0.0, None), layer, "relu")
    total = builder.sum([layer, active], "add")
    assert (layer, active, total) == (1, 2, 3)
    assert [builder.shape(i) for i in range(4)] == [(3,), (4,), (4,), (4,)]
    network = builder.build(total)
    assert [node.origin for node in network.nodes] == ["pixels", "layer", "relu", "add"]
    assert [node.inputs for node in network.nodes] == [(), (0,), (1,), (1, 2)]
    assert (network.in_shape, network.classes, network.output) == ((3,), 4, 3)
    assert (network.activations, network.sources) == ((2,), (0, 2))


def test_an_operator_must_take_the_shape():
    builder = NetworkBuilder((1, 3))
    with pytest.raises(ValueError, match=r"layer: Dense\(\[3\] → \[4\]\) does not take \[1, 3\]"):
        builder.operator(dense(3, 4), 0, "layer")


def test_an_activation_must_take_the_shape():
    builder = NetworkBuilder((1, 3))
    with pytest.raises(ValueError, match="halves"):
        builder.activation(MaxMin(1), 0)
    assert len(builder.nodes) == 1


def test_a_sum_must_have_one_shape():
    builder = NetworkBuilder((3,))
    layer = builder.operator(dense(3, 4), 0)
    with pytest.raises(ValueError, match=r"add: a sum of different shapes \[\[3\], \[4\]\]"):
        builder.sum([layer, 0], "add")
    with pytest.raises(ValueError, match="a sum of different shapes"):
        builder.sum([])


def test_a_sum_of_one_is_that_one():
    builder = NetworkBuilder((3,))
    assert builder.sum([0]) == 0
    assert len(builder.nodes) == 1


def test_build_drops_what_the_output_does_not_use():
    builder = NetworkBuilder((3,))
    used = builder.operator(dense(3, 4), 0)
    builder.activation(clip(0.0, None), builder.operator(dense(3, 5), 0))
    output = builder.activation(clip(0.0, 1.0), used)
    builder.operator(dense(4, 2), output)
    network = builder.build(output)
    assert [type(node.kind).__name__ for node in network.nodes] == ["Input", "Dense", "Clip"]
    assert [node.inputs for node in network.nodes] == [(), (0,), (1,)]


def test_the_input_alone_is_a_network():
    network = NetworkBuilder((2, 3)).build(0)
    x = normal((4, 2, 3), seeded(2))
    assert isinstance(network.nodes[0].kind, Input)
    assert torch.equal(network.logits(x), x.flatten(1))
    assert network.classes == 6


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_sums_add_all_their_parts(parts):
    builder = NetworkBuilder((3,))
    scales = [2.0**i for i in range(parts)]
    nodes = [builder.operator(Diagonal.of(torch.tensor(s), None, (3,)), 0) for s in scales]
    network = builder.build(builder.sum(nodes))
    assert isinstance(network.nodes[-1].kind, Sum)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    assert torch.equal(network.logits(x), sum(scales) * x)
    same = builder.build(builder.sum([0] * parts))
    assert torch.equal(same.logits(x), parts * x)


def test_values_are_those_of_every_node():
    builder = NetworkBuilder((1, 4))
    flat = builder.operator(Select.of(places((4,)).reshape(2, 2), (1, 4)), 0)
    network = builder.build(builder.activation(GroupMax(), flat))
    values = network.values(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
    assert [value.tolist() for value in values] == [
        [[[1, 2, 4, 3]]],
        [[[1, 2], [4, 3]]],
        [[2, 4]],
    ]


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_samples_are_independent_and_may_come_in_any_shape(batch):
    network = random_network(seeded(3))
    x = uniform((batch, *network.in_shape), seeded(4))
    logits = network.logits(x)
    assert logits.shape == (batch, network.classes)
    for shape in ((batch, 50), (batch, 2, 5, 5)):
        assert torch.equal(network.logits(x.reshape(shape)), logits)
    for sample, row in zip(x, logits, strict=True):
        torch.testing.assert_close(network.logits(sample)[0], row, rtol=1e-12, atol=1e-12)


def test_parameters_are_the_numbers_of_the_operators():
    builder = NetworkBuilder((3,))
    node = builder.operator(Diagonal.of(torch.tensor(2.0), torch.zeros(3), (3,)), 0)
    node = builder.operator(dense(3, 4), node)
    node = builder.activation(clip(0.0, 6.0), node)
    node = builder.operator(Select.reshape((4,), (1, 4)), node)
    network = builder.build(node)
    assert network.parameters == (1 + 3) + (12 + 4)
    assert NetworkBuilder((3,)).build(0).parameters == 0


def test_to_changes_every_floating_tensor_and_no_index():
    network = random_network(seeded(5))
    single = network.to(dtype=torch.float32)
    assert {tensor.dtype for tensor in tensors(network)} == {torch.float64}
    assert {tensor.dtype for tensor in tensors(single)} == {torch.float32}
    for before, after in zip(network.nodes, single.nodes, strict=True):
        assert (before.inputs, before.shape, before.origin) == (
            after.inputs,
            after.shape,
            after.origin,
        )
        if isinstance(before.kind, Select):
            assert torch.equal(before.kind.index, after.kind.index)
    x = uniform((3, *network.in_shape), seeded(6))
    logits = single.logits(x.float())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), network.logits(x), rtol=1e-4, atol=1e-4)


def test_to_without_change_is_the_same_network():
    network = random_network(seeded(7))
    x = uniform((2, *network.in_shape), seeded(8))
    same = network.to(device="cpu")
    assert torch.equal(same.logits(x), network.logits(x))
    assert same.to().anchor.dtype == torch.float64


def test_anchor_tells_the_type():
    builder = NetworkBuilder((3,))
    moved = builder.operator(Select.reshape((3,), (1, 3)), 0)
    assert builder.build(moved).anchor.dtype == torch.float64
    shifted = builder.operator(Diagonal.of(None, torch.zeros(3), (1, 3)), moved)
    assert builder.build(shifted).anchor.dtype == torch.float32


def test_random_networks_hold_every_kind_of_node():
    """What other tests rely on: sums only where asked for, and nothing left out."""
    chains = [random_network(seeded(seed), residual=False) for seed in range(20)]
    branched = [random_network(seeded(seed)) for seed in range(20)]

    def kinds(networks):
        return {type(node.kind) for network in networks for node in network.nodes}

    # Relatives of others that they hold.
    held = {*ACTIVATIONS} - {Erf, GeluTanh, GroupSort, HardSwish, Identity, Mish}
    operators = {*OPERATORS} - {TransposedConvolution}
    assert kinds(chains) >= {Input, *operators, *held}
    assert kinds(branched) == {Input, Sum, *operators, *held}
    assert Sum not in kinds(chains)
    assert {network.classes for network in chains} == {3, 4, 5}


def test_readers_and_sizes_are_those_of_the_nodes():
    builder = NetworkBuilder((1, 3))
    twice = builder.sum([0, 0])
    first = builder.activation(Identity(), twice)
    network = builder.build(builder.sum([first, twice]))
    assert network.readers == ((1,), (2, 3), (3,), ())
    assert (network.sums, network.activations) == ((1, 3), (2,))
    assert (network.size, network.largest, network.products) == (12, 3, 0)
