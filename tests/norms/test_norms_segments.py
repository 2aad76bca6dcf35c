"""Norms of weighted segments: never below the truth, close to it, and honest about failure."""

import math

import pytest
import torch
from laws import norm_coins, normal, random_network, seeded, uniform
from torch import Tensor

import lipcert.norms.bounds as norm_bounds
from lipcert.network import Network, NetworkBuilder, Segment, segments, simplify
from lipcert.network.operators import Convolution, Dense
from lipcert.norms import Norm, SegmentNorms, WeightedMap, lanczos, power_iteration
from lipcert.norms.coins import unit_vectors


def segment_of(operator: Convolution | Dense) -> Segment:
    builder = NetworkBuilder(operator.in_shape)
    return Segment(builder.build(builder.operator(operator, 0)), 0, 1)


def dense_twins(mapping: WeightedMap) -> Tensor:
    """``diag(outer) A diag(inner)`` of every sample: ``(B, out, in)``."""
    size = math.prod(mapping.segment.in_shape)
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *mapping.segment.in_shape)
    matrix = mapping.segment.apply(unit).flatten(1).mT
    return mapping.outer.flatten(1)[:, :, None] * matrix * mapping.inner.flatten(1)[:, None, :]


def random_masks(segment: Segment, batch: int, seed: int) -> WeightedMap:
    generator = seeded(seed)
    share = 0.1 + 0.9 * uniform((batch, *(1,) * len(segment.in_shape)), generator)
    inner = (uniform((batch, *segment.in_shape), generator) < share).double()
    share = 0.1 + 0.9 * uniform((batch, *(1,) * len(segment.out_shape)), generator)
    outer = (uniform((batch, *segment.out_shape), generator) < share).double()
    return WeightedMap(segment, inner, outer)


SHAPES = [
    Convolution.of(normal((6, 2, 3, 3), seeded(0)), None, (1, 2, 7, 7), padding=((1, 1), (1, 1))),
    Convolution.of(normal((5, 3, 4, 4), seeded(1)), None, (1, 3, 8, 8), stride=(2, 2),
                   padding=((1, 1), (1, 1))),
    Convolution.of(normal((4, 4, 3, 3), seeded(2)), None, (1, 4, 8, 8)),
    Dense.of(normal((40, 60), seeded(3)), None, (60,)),
    Dense.of(normal((50, 20), seeded(4)), None, (20,)),
]  # fmt: skip


def test_masked_norms_of_a_thousand_operators() -> None:
    """1,000 masked convolutions and matrices: none below the truth, the median within 3 %."""
    excess = []
    for number, operator in enumerate(SHAPES):
        segment = segment_of(operator)
        norms = SegmentNorms.of(segment, norm_coins(1e-10, seed=0, first=number), matrix_side=0)
        whole = float(torch.linalg.matrix_norm(dense_twins(norms.unweighted())[0], ord=2))
        assert whole * (1 - 1e-13) <= norms.norm.value <= 1.01 * whole
        mapping = random_masks(segment, 200, seed=number)
        bound = norms.randomised(mapping, norm_coins(1e-13, 200, first=1000))
        truth = torch.linalg.matrix_norm(dense_twins(mapping), ord=2)
        assert (bound >= truth * (1 - 1e-13)).all()
        some = truth > 0
        excess.append(bound[some] / truth[some] - 1)
    assert len(torch.cat(excess)) > 900
    assert float(torch.cat(excess).median()) <= 0.03


@pytest.mark.parametrize("operator", SHAPES, ids=repr)
def test_deterministic_and_exact_norms_are_never_below_the_truth(
    operator: Convolution | Dense,
) -> None:
    segment = segment_of(operator)
    mapping = random_masks(segment, 30, seed=9)
    truth = torch.linalg.matrix_norm(dense_twins(mapping), ord=2)
    norms = SegmentNorms.of(segment)
    exact = norms.deterministic(mapping)
    assert norms.norm.assurance == "deterministic"
    assert (exact >= truth * (1 - 1e-13)).all()
    if norms.is_exact:
        assert (exact <= truth * (1 + 1e-9)).all()
    norms = SegmentNorms.of(segment, matrix_side=0)
    assert (norms.deterministic(mapping) >= truth * (1 - 1e-13)).all()


@pytest.mark.parametrize("seed", range(12))
def test_every_segment_of_random_networks(seed: int) -> None:
    """Residual branches, pooling windows, moves: with real-valued gains, by every route."""
    network = simplify(random_network(seeded(seed)))
    sinks = [network.nodes[i].inputs[0] for i in network.activations]
    for side in (256, 0):
        for number, segment in enumerate(s for sink in sinks for s in segments(network, sink)):
            norms = SegmentNorms.of(
                segment, norm_coins(1e-9, seed=seed, first=number), matrix_side=side
            )
            mapping = random_masks(segment, 4, seed=number)
            gains = uniform(mapping.inner.shape, seeded(number)) * 3 * mapping.inner
            mapping = WeightedMap(segment, gains, mapping.outer)
            truth = torch.linalg.matrix_norm(dense_twins(mapping), ord=2)
            whole = torch.linalg.matrix_norm(dense_twins(norms.unweighted()), ord=2)
            assert norms.norm.value >= float(whole[0]) * (1 - 1e-12)
            for bound in (
                norms.deterministic(mapping),
                norms.randomised(mapping, norm_coins(1e-9, 4, seed=seed, first=1000 + 4 * number)),
            ):  # fmt: skip
                assert (bound >= truth * (1 - 1e-12)).all()


def test_the_failure_rate_is_below_the_stated_one() -> None:
    """With a failure probability of 0.1 for each norm, fewer than a tenth are too low."""
    matrix = torch.diag(torch.linspace(0.5, 1, 30, dtype=torch.float64))
    segment = segment_of(Dense.of(matrix, None, (30,)))
    norms = SegmentNorms(segment, Norm(10.0, "deterministic"), matrix_side=0)
    ones = torch.ones(10_000, 30, dtype=torch.float64)
    bound = norms.randomised(
        WeightedMap(segment, ones, ones), norm_coins(0.1, 10_000, seed=11, first=1000)
    )
    assert float((bound < 1).double().mean()) < 0.1


def test_a_scale_far_from_the_norm_costs_tightness_but_not_soundness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segment = segment_of(SHAPES[0])
    norms = SegmentNorms.of(segment, matrix_side=0)
    mapping = random_masks(segment, 20, seed=3)
    truth = torch.linalg.matrix_norm(dense_twins(mapping), ord=2)
    for factor in (1e-3, 0.5, 3.0, 1e3):
        monkeypatch.setattr(norm_bounds, "lanczos", lambda *a, f=factor: lanczos(*a) * f)
        bound = norms.randomised(mapping, norm_coins(1e-9, 20, first=1000))
        assert (bound >= truth * (1 - 1e-13)).all()


def test_estimates_come_from_below_and_are_no_bounds() -> None:
    """Why power iteration certifies nothing: after two steps it is far below the norm."""
    segment = segment_of(SHAPES[2])
    mapping = random_masks(segment, 20, seed=4)
    truth = torch.linalg.matrix_norm(dense_twins(mapping), ord=2)
    start = unit_vectors(0, torch.arange(20), 0, mapping.support)
    for estimate in (power_iteration(mapping, start, 2), lanczos(mapping, start, 2)):
        assert (estimate <= truth * (1 + 1e-12)).all()
        assert (estimate < 0.99 * truth).any()
    assert (lanczos(mapping, start, 60) >= 0.999 * truth).all()


def test_scaling_an_operator_scales_its_norm() -> None:
    """No additive guard in a denominator: at a scale of 1e-12 it would swallow the norm."""
    operator = SHAPES[1]
    for factor in (1e-12, 1e-60, 1e60):
        small = Convolution.of(
            operator.weight * factor, None, operator.in_shape, stride=operator.stride,
            padding=operator.padding,
        )  # fmt: skip
        segment = segment_of(small)
        mapping = random_masks(segment, 10, seed=5)
        truth = torch.linalg.matrix_norm(dense_twins(mapping) / factor, ord=2)
        norms = SegmentNorms.of(segment, norm_coins(1e-10), matrix_side=0)
        for bound in (
            norms.deterministic(mapping),
            norms.randomised(mapping, norm_coins(1e-10, 10, first=1000)),
        ):  # fmt: skip
            assert (bound / factor >= truth * (1 - 1e-12)).all()
            assert (bound / factor <= truth * 2).all()


def test_a_sample_with_nothing_varying_has_norm_zero_and_leaves_no_trace() -> None:
    """A zero vector in a batch affects neither its neighbours nor the next call."""
    segment = segment_of(SHAPES[0])
    mapping = random_masks(segment, 3, seed=6)
    outer = mapping.outer.clone()
    outer[1] = 0
    dead = WeightedMap(segment, mapping.inner, outer)
    norms = SegmentNorms.of(segment, norm_coins(1e-10))
    streams = torch.arange(3)
    found = norms.randomised(dead, norm_coins(1e-10, len(streams)))
    start = unit_vectors(0, streams, 0, dead.support)
    estimate = power_iteration(dead, start, 50)
    again = power_iteration(mapping, unit_vectors(0, streams, 0, mapping.support), 50)
    truth = torch.linalg.matrix_norm(dense_twins(mapping), ord=2)
    assert found[1] <= 1e-12
    assert estimate[1] == 0
    assert (found[[0, 2]] >= truth[[0, 2]]).all()
    assert (again >= 0.9 * truth).all()


def test_weights_that_are_not_finite_are_never_bounded() -> None:
    weight = normal((3, 2, 3, 3), seeded(8))
    weight[0, 0, 0, 0] = torch.nan
    segment = segment_of(Convolution.of(weight, None, (1, 2, 5, 5)))
    norms = SegmentNorms.of(segment, norm_coins(1e-9))
    assert not norms.norm.value < 1e300
    mapping = random_masks(segment, 2, seed=1)
    assert not (norms.deterministic(mapping) < 1e300).any()


def test_composite_segments_keep_their_own_norm() -> None:
    """Two linear layers in a row: the norm of the product, not the product of the norms."""
    builder = NetworkBuilder((1, 2))
    shrink = torch.tensor([[10.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    node = builder.operator(Dense.of(shrink, None, (1, 2)), 0)
    node = builder.operator(Dense.of(torch.linalg.inv(shrink), None, (1, 2)), node)
    network: Network = builder.build(node)
    norms = SegmentNorms.of(Segment(network, 0, 2))
    assert 1 <= norms.norm.value <= 1 + 1e-9
