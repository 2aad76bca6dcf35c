"""Neighbours that are one map: never below its norm, and what they are is proven entry by entry."""

import pytest
import torch
from laws import normal, seeded
from norms.test_norms_written import circular, dense, largest, whole

from lipcert.network import NetworkBuilder, Segment
from lipcert.network.operators import Convolution, Select
from lipcert.norms import structural_norm
from lipcert.norms.merged import merged


def summed(seed: int, *, kernels: tuple[int, ...], groups: int = 1, itself: bool = True) -> Segment:
    """``x`` and convolutions of it, behind a convolution, so that ``x`` is one itself."""
    shape = (1, 4, 5, 7)
    builder = NetworkBuilder((1, 2, 5, 7))
    stem = Convolution.of(
        normal((4, 2, 3, 3), seeded(seed)), None, (1, 2, 5, 7), padding=((1, 1), (1, 1))
    )
    x = builder.operator(stem, 0)
    parts = [x] if itself else []
    for k, size in enumerate(kernels):
        weight = 0.3 * normal((4, 4 // groups, size, size), seeded(seed + k + 1))
        pads = ((size // 2, size // 2),) * 2
        layer = Convolution.of(weight, None, shape, padding=pads, groups=groups)
        parts.append(builder.operator(layer, x))
    return Segment(builder.build(builder.sum(parts)), x, len(builder.nodes) - 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("kernels", "groups", "itself"),
    [((3,), 1, True), ((3,), 2, True), ((1, 3), 1, True), ((5, 3), 1, False), ((3, 1, 5), 4, True)],
)
def test_sums_of_convolutions(
    kernels: tuple[int, ...], groups: int, itself: bool, seed: int
) -> None:
    segment = summed(seed, kernels=kernels, groups=groups, itself=itself)
    found = merged(segment.network, segment.sink)
    assert found is not None
    assert found.source == segment.source
    v = normal((3, *segment.in_shape), seeded(seed))
    assert torch.allclose(found.operator.apply(v), segment.apply(v))
    exact = largest(dense(segment))
    assert exact * (1 - 1e-12) <= structural_norm(segment) <= exact * 1.5


@pytest.mark.parametrize("seed", range(4))
def test_circular_padding_costs_nothing(seed: int) -> None:
    """By frequencies of the torus the norm is exact."""
    segment = whole(circular(normal((5, 4, 3, 3), seeded(seed)), 6))
    exact = largest(dense(segment))
    assert exact * (1 - 1e-12) <= structural_norm(segment) <= exact * (1 + 1e-9)


def test_a_padding_that_is_not_quite_circular_is_none() -> None:
    network = circular(normal((3, 3, 3, 3), seeded(0)), 5)
    move = network.nodes[1].kind
    assert isinstance(move, Select)
    for change in (0, 17, 100):
        index = move.index.clone()
        index[change] = (index[change] + 1) % 75
        other = Select(move.in_shape, move.out_shape, None, index)
        builder = NetworkBuilder(network.in_shape)
        layer = network.nodes[2].kind
        assert isinstance(layer, Convolution)
        built = builder.build(builder.operator(layer, builder.operator(other, 0)))
        assert merged(built, 2) is None
        segment = Segment(built, 0, 2)
        assert largest(dense(segment)) <= structural_norm(segment)


@pytest.mark.parametrize(
    ("pads", "width", "stride", "fits"),
    [
        ((1, 1), 3, 1, True), ((2, 1), 4, 1, True), ((0, 3), 4, 1, True), ((1, 1), 3, 2, True),
        ((3, 3), 3, 1, False), ((1, 1), 3, 4, False), ((2, 2), 3, 1, False),
    ],
)  # fmt: skip
def test_paddings_and_strides_on_the_torus(
    pads: tuple[int, int], width: int, stride: int, fits: bool
) -> None:
    """Pads that differ; strides that divide; and paddings so wide that places come twice."""
    shape = (1, 3, 6, 6)
    places = torch.arange(108).reshape(shape).double()
    wide = torch.nn.functional.pad(places, (*pads, *pads), mode="circular").long()
    builder = NetworkBuilder(shape)
    node = builder.operator(Select.of(wide, shape), 0)
    weight = normal((4, 3, width, width), seeded(1))
    layer = Convolution.of(weight, None, tuple(wide.shape), stride=(stride, stride))
    network = builder.build(builder.operator(layer, node))
    assert (merged(network, 2) is not None) == fits
    segment = whole(network)
    assert largest(dense(segment)) * (1 - 1e-12) <= structural_norm(segment)
