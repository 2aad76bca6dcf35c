"""Simplification keeps the function, never grows the network, and each of its rules is needed."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import DTYPES, clip, normal, padded, places, random_network, seeded, uniform

from lipcert.network import Input, NetworkBuilder, Sum, simplify
from lipcert.network.activations import Clip, MaxMin, PReLU, absolute
from lipcert.network.operators import Convolution, Dense, Diagonal, Operator, Select

IMAGE = (1, 4, 5, 5)


def kinds(network):
    return [type(node.kind) for node in network.nodes]


def simplified(builder, output):
    """The simplified network, after a look that its function is the same."""
    network = builder.build(output)
    smaller = simplify(network)
    assert_same_function(network, smaller)
    assert len(smaller.nodes) <= len(network.nodes)
    return smaller


def assert_same_function(network, other, seed=0):
    x = 2 * normal((5, *network.in_shape), seeded(seed), network.anchor.dtype)
    expected = network.logits(x)
    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(other.logits(x), expected, rtol=tolerance, atol=tolerance)


def convolution(in_shape=IMAGE, outputs=6, *, groups=1, bias=True, seed=1):
    weight = normal((outputs, in_shape[1] // groups, 3, 3), seeded(seed))
    return Convolution.of(
        weight,
        normal((outputs,), seeded(seed + 1)) if bias else None,
        in_shape,
        stride=(2, 1),
        padding=[(1, 1), (0, 1)],
        groups=groups,
    )


def diagonal(shape, scale=(), bias=(), seed=2):
    return Diagonal.of(
        None if scale is None else normal(scale, seeded(seed)),
        None if bias is None else normal(bias, seeded(seed + 1)),
        shape,
    )


def dense(in_shape, outputs, *, bias=True, seed=3):
    weight = normal((outputs, in_shape[-1]), seeded(seed))
    return Dense.of(weight, normal((outputs,), seeded(seed + 1)) if bias else None, in_shape)


def chain(in_shape, *parts):
    """A builder with the parts one after the other, and its last node."""
    builder, node = NetworkBuilder(in_shape), 0
    for part in parts:
        put = builder.operator if isinstance(part, Operator) else builder.activation
        node = put(part, node)
    return builder, node


def simplified_chain(in_shape, *parts):
    return simplified(*chain(in_shape, *parts))


# The whole ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), residual=st.booleans())
def test_random_networks_keep_their_function(seed, residual):
    network = random_network(seeded(seed), residual=residual, blocks=4)
    smaller = simplify(network)
    assert smaller.in_shape == network.in_shape
    assert smaller.classes == network.classes
    assert len(smaller.nodes) <= len(network.nodes)
    assert_same_function(network, smaller, seed)
    again = simplify(smaller)
    assert kinds(again) == kinds(smaller)
    assert [node.inputs for node in again.nodes] == [node.inputs for node in smaller.nodes]
    assert_same_function(smaller, again, seed)


def test_nothing_to_do():
    builder, node = chain((3,), dense((3,), 4), clip(0.0, None), dense((4,), 2))
    assert kinds(simplified(builder, node)) == [Input, Dense, Clip, Dense]


def test_an_input_alone_stays():
    assert kinds(simplify(NetworkBuilder((3,)).build(0))) == [Input]


def test_origins_are_kept():
    builder = NetworkBuilder(IMAGE, "pixels")
    node = builder.operator(diagonal(IMAGE), 0, "normalise")
    node = builder.operator(convolution(), node, "first")
    node = builder.activation(clip(0.0, None), node, "relu")
    network = simplify(builder.build(node))
    assert [node.origin for node in network.nodes] == ["pixels", "first", "relu"]


# Scales and shifts -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, (), (4, 1, 1), (1, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("bias", [None, (), (4, 1, 1), (1, 4, 5, 5)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_normalisation_goes_into_the_convolution(scale, bias, groups):
    parts = diagonal(IMAGE, scale, bias), convolution(groups=groups, bias=groups == 1)
    assert kinds(simplified_chain(IMAGE, *parts)) == [Input, Convolution]


@pytest.mark.parametrize("scale", [None, (), (1, 6, 1, 1)], ids=str)
@pytest.mark.parametrize("bias", [None, (), (6, 1, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("own", [True, False], ids=["bias", "no bias"])
def test_batch_norm_goes_into_the_convolution(scale, bias, own):
    before = convolution(bias=own)
    assert before.out_shape == (1, 6, 3, 4)
    network = simplified_chain(IMAGE, before, diagonal(before.out_shape, scale, bias))
    assert kinds(network) == [Input, Convolution]


def test_scales_on_both_sides_go_into_the_convolution():
    middle = convolution()
    network = simplified_chain(
        IMAGE, diagonal(IMAGE, (4, 1, 1)), middle, diagonal(middle.out_shape, (6, 1, 1), (6, 1, 1))
    )
    assert kinds(network) == [Input, Convolution]


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("scale", [None, (), (4,)], ids=str)
@pytest.mark.parametrize("bias", [None, (), (4,)], ids=str)
def test_scales_go_into_a_dense_layer(shape, scale, bias):
    before, after = diagonal(shape, scale, bias), diagonal(shape, scale, bias, seed=8)
    own = bias is None
    assert kinds(simplified_chain(shape, before, dense(shape, 4, bias=own), after)) == [
        Input,
        Dense,
    ]


def test_dense_with_leading_axes_takes_shifts_only():
    shape = (2, 3)
    shift = diagonal(shape, None, (2, 3))
    assert kinds(simplified_chain(shape, shift, dense(shape, 4))) == [Input, Dense]
    for scale in (diagonal(shape, (2, 1)), diagonal(shape, (2, 3))):
        assert kinds(simplified_chain(shape, scale, dense(shape, 4))) == [Input, Diagonal, Dense]
    after = diagonal((2, 4), (2, 1), None)
    assert kinds(simplified_chain(shape, dense(shape, 4), after)) == [Input, Dense, Diagonal]


def test_scales_compose():
    shape = (2, 3, 4)
    variants = [
        diagonal(shape, scale, bias, seed)
        for seed, (scale, bias) in enumerate(
            itertools.product([None, (), (3, 1), shape], [None, (2, 1, 1), (4,)])
        )
    ]
    for first, second in itertools.product(variants, variants):
        # With neither scale nor bias a diagonal changes nothing, but for the format of its values.
        nothing = first.is_identity and second.is_identity
        expected = [Input] if nothing else [Input, Diagonal]
        assert kinds(simplified_chain(shape, first, second)) == expected


@pytest.mark.parametrize("scale", [(5,), (1, 4, 5, 5), (5, 1)], ids=str)
def test_a_scale_that_differs_from_pixel_to_pixel_stays(scale):
    network = simplified_chain(IMAGE, diagonal(IMAGE, scale), convolution())
    assert kinds(network) == [Input, Diagonal, Convolution]


def test_a_scale_that_differs_from_image_to_image_stays():
    shape = (2, 4, 5, 5)
    network = simplified_chain(shape, diagonal(shape, (2, 1, 1, 1)), convolution(shape))
    assert kinds(network) == [Input, Diagonal, Convolution]


def test_a_scale_does_not_pass_an_activation():
    shape = (1, 4)
    network = simplified_chain(shape, dense(shape, 4), clip(0.0, None), diagonal(shape))
    assert kinds(network) == [Input, Dense, Clip, Diagonal]


def test_two_layers_absorb_one_scale():
    builder = NetworkBuilder(IMAGE)
    scaled = builder.operator(diagonal(IMAGE, (4, 1, 1)), 0)
    first = builder.operator(convolution(seed=1), scaled)
    second = builder.operator(convolution(seed=5), scaled)
    network = simplified(builder, builder.sum([first, second]))
    assert kinds(network) == [Input, Convolution, Convolution, Sum]


def test_a_scale_that_another_node_reads_stays_for_it():
    builder = NetworkBuilder((1, 4))
    scaled = builder.operator(diagonal((1, 4), (4,)), 0)
    layer = builder.operator(dense((1, 4), 4), scaled)
    network = simplified(builder, builder.sum([layer, scaled]))
    assert sorted(kind.__name__ for kind in kinds(network)) == ["Dense", "Diagonal", "Input", "Sum"]


def test_a_layer_that_another_node_reads_is_not_scaled():
    builder = NetworkBuilder((1, 4))
    layer = builder.operator(dense((1, 4), 4), 0)
    scaled = builder.operator(diagonal((1, 4), (4,)), layer)
    network = simplified(builder, builder.sum([layer, scaled]))
    assert kinds(network) == [Input, Dense, Diagonal, Sum]


# Moves -------------------------------------------------------------------------------------------


def test_moves_compose():
    first = Select.of(padded(places((3, 4)), (1, 0, 0, 1)), (3, 4))
    second = Select.of(padded(places((4, 5)).T[::2], (0, 1)), (4, 5))
    network = simplified_chain((3, 4), first, second)
    assert kinds(network) == [Input, Select]


def test_moves_that_change_nothing_disappear():
    there = Select.of(places((3, 4)).T, (3, 4))
    back = Select.of(places((4, 3)).T, (4, 3))
    assert kinds(simplified_chain((3, 4), there, back)) == [Input]
    assert kinds(simplified_chain((3, 4), Select.reshape((3, 4), (3, 4)))) == [Input]


def test_a_reshape_stays():
    network = simplified_chain((3, 4), Select.reshape((3, 4), (12,)))
    assert kinds(network) == [Input, Select]
    assert network.nodes[-1].shape == (12,)


def test_split_and_concat_disappear():
    builder, _ = chain((1, 6))
    index = places((1, 6))
    parts = [builder.operator(Select.of(index[:, i : i + 2], (1, 6)), 0) for i in (0, 2, 4)]
    joined = [
        builder.operator(Select.of(padded(places((1, 2)), (i, 4 - i)), (1, 2)), part)
        for i, part in zip((0, 2, 4), parts, strict=True)
    ]
    node = builder.activation(clip(0.0, None), builder.sum(joined))
    assert kinds(simplified(builder, node)) == [Input, Clip]


def test_split_and_concat_in_another_order_are_one_move():
    builder, _ = chain((1, 6))
    index = places((1, 6))
    parts = [builder.operator(Select.of(index[:, i : i + 2], (1, 6)), 0) for i in (4, 0)]
    joined = [
        builder.operator(Select.of(padded(places((1, 2)), (i, 4 - i)), (1, 2)), part)
        for i, part in zip((0, 3), parts, strict=True)
    ]
    network = simplified(builder, builder.sum(joined))
    assert kinds(network) == [Input, Select]
    assert network.nodes[-1].kind.index.tolist() == [4, 5, -1, 0, 1, -1]


def test_pieces_of_different_values_stay_a_sum():
    builder = NetworkBuilder((1, 4))
    layer = builder.operator(dense((1, 4), 4), 0)
    index = places((1, 4))
    left = builder.operator(Select.of(torch.where(index < 2, index, -1), (1, 4)), layer)
    right = builder.operator(Select.of(torch.where(index < 2, -1, index), (1, 4)), 0)
    network = simplified(builder, builder.sum([left, right]))
    assert kinds(network) == [Input, Dense, Select, Select, Sum]


def test_overlapping_pieces_stay_a_sum():
    builder = NetworkBuilder((1, 4))
    pieces = [
        builder.operator(Select.of(torch.tensor([index]), (1, 4)), 0)
        for index in ([0, 1, -1], [-1, 2, 3])
    ]
    assert kinds(simplified(builder, builder.sum(pieces))) == [Input, Select, Select, Sum]


def test_a_value_added_to_itself_doubles():
    builder = NetworkBuilder((1, 4))
    layer = builder.operator(dense((1, 4), 4), 0)
    assert kinds(simplified(builder, builder.sum([layer, layer]))) == [Input, Dense, Sum]
    assert kinds(simplified(builder, builder.sum([0, 0, 0]))) == [Input, Sum]


def test_pieces_that_are_read_twice_stay_for_the_other_reader():
    builder = NetworkBuilder((1, 4))
    index = places((1, 4))
    pieces = []
    for start, one in ((0, clip(-1.0, 0.0)), (2, clip(0.0, 1.0))):
        cut = builder.operator(Select.of(index[:, start : start + 2].flip(1), (1, 4)), 0)
        placed = Select.of(padded(places((1, 2)), (start, 2 - start)), (1, 2))
        pieces.append(builder.operator(placed, builder.activation(one, cut)))
    joined = builder.activation(absolute(), builder.sum(pieces))
    apart = [builder.activation(PReLU(torch.tensor(0.5).double()), piece) for piece in pieces]
    network = builder.build(builder.sum([joined, *apart]))
    smaller = simplify(network)
    assert_same_function(network, smaller)
    assert kinds(smaller).count(Sum) == 1


# Clips -------------------------------------------------------------------------------------------


def test_clips_of_clips_are_one_clip():
    """All pairs of clips with limits on a small grid, crossed ones too, at all of its points."""
    limits = [None, -1.0, 0.0, 0.5, 2.0]
    points = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0]).double()
    pairs = list(itertools.product(limits, limits))
    for first, second in itertools.product(pairs, pairs):
        builder, node = chain((9,), clip(*first), clip(*second))
        network = simplify(builder.build(node))
        assert kinds(network) == [Input, Clip]
        expected = clip(*second).value(clip(*first).value(points))
        assert torch.equal(network.logits(points)[0], expected), (first, second)


def test_clips_with_limits_a_neuron_are_one_clip():
    shape = (1, 3, 2, 2)
    first = Clip(normal((3, 1, 1), seeded(0)), normal((1, 3, 2, 2), seeded(1)))
    second = Clip(normal((2,), seeded(2)), None)
    assert kinds(simplified_chain(shape, first, second)) == [Input, Clip]


def test_a_clip_that_another_node_reads_stays_for_it():
    builder = NetworkBuilder((4,))
    first = builder.activation(clip(-0.5, None), 0)
    second = builder.activation(clip(None, 0.5), first)
    network = simplified(builder, builder.sum([first, second]))
    assert kinds(network) == [Input, Clip, Clip, Sum]


def clipped_maxmin(dtype=torch.float64, *, lower_first=False):
    """``min(max(a, b), θ⁺)`` and ``max(min(a, b), θ⁻)``, cut out, clipped, and joined again."""
    shape = (1, 4, 2, 2)
    builder = NetworkBuilder(shape)
    layer = Diagonal.of(
        normal((4, 1, 1), seeded(1), dtype), normal((4, 1, 1), seeded(2), dtype), shape
    )
    node = builder.activation(MaxMin(1), builder.operator(layer, 0))
    index = places(shape)
    halves = [builder.operator(Select.of(part, shape), node) for part in index.chunk(2, dim=1)]
    limits = uniform((2, 2, 1, 1), seeded(3), dtype)
    clips = [Clip(None, limits[0]), Clip(-limits[1], None)]
    if lower_first:
        clips.reverse()
    clipped = [builder.activation(one, half) for one, half in zip(clips, halves, strict=True)]
    size = index.numel() // 2
    joined = [
        builder.operator(Select.of(torch.where(at, index - start, -1), (1, 2, 2, 2)), part)
        for start, at, part in zip((0, size), (index < size, index >= size), clipped, strict=True)
    ]
    return builder, builder.sum(joined)


@pytest.mark.parametrize("lower_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clipped_maxmin_is_maxmin_and_a_clip(dtype, lower_first):
    network = simplified(*clipped_maxmin(dtype, lower_first=lower_first))
    assert kinds(network) == [Input, Diagonal, MaxMin, Clip]
    x = normal((2, *network.in_shape), seeded(4), dtype)
    assert network.logits(x).dtype == dtype


def test_a_clip_on_one_piece_alone_leaves_the_other_as_it_is():
    builder = NetworkBuilder((1, 4))
    index = places((1, 4))
    left = builder.operator(Select.of(index[:, :2], (1, 4)), 0)
    left = builder.activation(clip(0.5, None), left)
    left = builder.operator(Select.of(padded(places((1, 2)), (0, 2)), (1, 2)), left)
    right = builder.operator(Select.of(torch.where(index < 2, -1, index), (1, 4)), 0)
    network = simplified(builder, builder.sum([left, right]))
    assert kinds(network) == [Input, Clip]


def test_places_that_no_piece_fills_stay_zero_above_a_lower_limit():
    builder = NetworkBuilder((1, 4))
    pieces = []
    for i in (0, 2):
        part = builder.operator(Select.of(places((1, 4))[:, i : i + 1], (1, 4)), 0)
        part = builder.activation(clip(1.0 + i, None), part)
        pieces.append(builder.operator(Select.of(padded(places((1, 1)), (i, 2 - i)), (1, 1)), part))
    network = simplified(builder, builder.sum(pieces))
    assert kinds(network) == [Input, Select, Clip]
    assert network.logits(torch.zeros(1, 1, 4).double()).tolist() == [[1, 0, 3]]


def test_a_constant_zero_inside_a_clip_comes_out_at_its_limit():
    """The clip lifts the padded zeros to 1; they are no zeros to be filled by other pieces."""
    builder = NetworkBuilder((1, 2))
    index = places((1, 2))
    pieces = []
    for sides, lower in (((0, 1), 1.0), ((1, 0), 2.0)):
        part = builder.operator(Select.of(padded(index[:, :1], sides), (1, 2)), 0)
        pieces.append(builder.activation(clip(lower, None), part))
    network = simplified(builder, builder.sum(pieces))
    assert network.logits(torch.zeros(1, 1, 2).double()).tolist() == [[3, 3]]

    wide = builder.operator(Select.of(padded(index, (1, 1)), (1, 2)), 0)
    lifted = builder.activation(clip(1.0, None), wide)
    halves = [
        builder.operator(Select.of(torch.where(keep, places((1, 4)), -1), (1, 4)), lifted)
        for keep in (places((1, 4)) < 2, places((1, 4)) >= 2)
    ]
    network = simplified(builder, builder.sum(halves))
    assert network.logits(torch.zeros(1, 1, 2).double()).tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("seed", range(24))
def test_moves_alone_change_no_bit_of_any_run(seed):
    network = random_network(seeded(seed)).to(dtype=torch.float32)
    smaller = simplify(network, moves_only=True)
    x = 2 * normal((7, *network.in_shape), seeded(seed + 1), torch.float32)
    assert torch.equal(smaller.logits(x), network.logits(x))

    def computing(one):
        return [
            node.kind
            for node in one.nodes
            if isinstance(node.kind, Operator) and not isinstance(node.kind, Select)
        ]

    before, after = computing(network), computing(smaller)
    assert len(before) == len(after)
    assert all(a is b for a, b in zip(after, before, strict=True))
