"""Norms of long and overlapping segments: written out, by lengths, and asked once more."""

import math

import pytest
import torch
from laws import norm_coins, normal, random_network, seeded
from torch import Tensor

from lipcert.network import Network, NetworkBuilder, Segment, segments, simplify
from lipcert.network.operators import Convolution, Dense, Diagonal, Select
from lipcert.norms import SegmentNorms, rough_norm, written_norm
from lipcert.norms.sweeps import Sweeps


def dense(segment: Segment) -> Tensor:
    size = math.prod(segment.in_shape)
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *segment.in_shape)
    return segment.apply(unit).flatten(1).mT


def largest(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal((size, size), seeded(seed)))[0]


def series(seed: int, size: float = 2.0, space: int = 6) -> Network:
    """``exp`` of a skew convolution of norm about ``size``, six terms written out, as skew
    orthogonal convolutions are exported."""
    weight = normal((8, 8, 3, 3), seeded(seed))
    skew = weight - weight.flip(2, 3).transpose(0, 1)
    shape = (1, 8, space, space)
    one = Convolution.of(skew, None, shape, padding=((1, 1), (1, 1)))
    builder = NetworkBuilder(shape)
    norm = largest(dense(Segment(builder.build(builder.operator(one, 0)), 0, 1)))
    skew = skew * (size / norm)
    builder, total, power = NetworkBuilder(shape), 0, 0
    for term in range(1, 7):
        layer = Convolution.of(skew, None, shape, padding=((1, 1), (1, 1)))
        power = builder.operator(layer, power)
        by = torch.tensor(1 / term, dtype=torch.float64)
        power = builder.operator(Diagonal.of(by, None, shape), power)
        total = builder.sum([total, power])
    return builder.build(total)


def circular(weight: Tensor, space: int) -> Network:
    """A convolution with circular padding, as Slice and Concat write it: a move before it."""
    shape = (1, weight.shape[1], space, space)
    places = torch.arange(math.prod(shape)).reshape(shape)
    wrapped = torch.nn.functional.pad(places.double(), (1, 1, 1, 1), mode="circular").long()
    builder = NetworkBuilder(shape)
    node = builder.operator(Select.of(wrapped, shape), 0)
    layer = Convolution.of(weight, None, tuple(wrapped.shape))
    return builder.build(builder.operator(layer, node))


def whole(network: Network) -> Segment:
    return Segment(network, 0, network.output)


CASES = {
    "series": lambda seed: series(seed),
    "circular": lambda seed: circular(normal((6, 6, 3, 3), seeded(seed)), 6),
    "residual": lambda seed: residual(seed),
}


def residual(seed: int) -> Network:
    shape = (1, 6, 6, 6)
    builder = NetworkBuilder(shape)
    weight = 0.1 * normal((6, 6, 3, 3), seeded(seed))
    layer = Convolution.of(weight, None, shape, padding=((1, 1), (1, 1)))
    return builder.build(builder.sum([0, builder.operator(layer, 0)]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_a_deterministic_norm_is_the_truth_but_for_a_hair(case: str, seed: int) -> None:
    """By products and sums alone these are two to six times as large."""
    segment = whole(CASES[case](seed))
    exact = largest(dense(segment))
    found = SegmentNorms.of(segment)
    assert not found.is_exact
    assert exact <= found.norm.value <= exact * 1.005
    assert found.norm.assurance == "deterministic"


@pytest.mark.parametrize("seed", range(3))
def test_a_series_of_a_skew_operator_hardly_expands(seed: int) -> None:
    """The coins' bound, too: magnitudes grow by hundreds, lengths do not."""
    segment = whole(series(seed, size=1.8))
    exact = largest(dense(segment))
    assert SegmentNorms.of(segment).absolute > 50
    found = SegmentNorms.of(segment, norm_coins(1e-9, seed=seed))
    assert found.norm.assurance == "randomised"
    assert exact <= found.norm.value <= exact * 1.01
    assert exact < 1.05


@pytest.mark.parametrize("seed", range(8))
def test_weights_made_to_look_orthogonal_are_not_taken_for_it(seed: int) -> None:
    """One direction is stretched by little, by much, or by nothing; the rest is orthogonal."""
    size, stretch = 150, [0.0, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0][seed]
    q, p = orthogonal(size, seed), orthogonal(size, seed + 100)
    direction = q[:, :1] @ p[:1]
    builder = NetworkBuilder((size,))
    node = builder.operator(Dense.of(q, None, (size,)), 0)
    node = builder.operator(Dense.of(p, None, (size,)), node)
    other = builder.operator(Dense.of(stretch * direction, None, (size,)), 0)
    segment = whole(builder.build(builder.sum([node, other])))
    exact = largest(dense(segment))
    found = SegmentNorms.of(segment).norm.value
    assert exact * (1 - 1e-14) <= found <= exact * 1.005
    absolute = torch.tensor([SegmentNorms.of(segment).absolute], dtype=torch.float64)
    written = written_norm(SegmentNorms.of(segment).unweighted(), absolute)
    assert exact * (1 - 1e-14) <= written <= exact * 1.0001


def test_a_rough_norm_is_no_bound() -> None:
    for seed in range(5):
        segment = whole(residual(seed))
        found = rough_norm(SegmentNorms.of(segment).unweighted())
        assert found <= largest(dense(segment)) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_lengths_cover_what_sweeps_round(seed: int) -> None:
    """In float32, against float64: the sweep's error is scaled by the units of both."""
    network = series(seed) if seed < 3 else simplify(random_network(seeded(seed)))
    ratio = 2.0**-24 / 2.0**-53
    for segment in segments(network, network.output):
        sweeps = Sweeps.of(segment)
        single = Segment(network.to(dtype=torch.float32), segment.source, segment.sink)
        exactly = single.network.to(dtype=torch.float64)
        double = Segment(exactly, segment.source, segment.sink)
        for shape, name, found in (
            (segment.in_shape, "apply", sweeps.forth), (segment.out_shape, "transpose", sweeps.back)
        ):  # fmt: skip
            v = normal((5, *shape), seeded(seed + 9), torch.float32)
            v = v / v.flatten(1).norm(dim=1).max()
            got, true = getattr(single, name)(v), getattr(double, name)(v.double())
            assert float(true.flatten(1).norm(dim=1).max()) <= found.size * (1 + 1e-6)
            off = (got.double() - true).flatten(1).norm(dim=1).max()
            assert float(off) <= found.error * ratio * 1.01
