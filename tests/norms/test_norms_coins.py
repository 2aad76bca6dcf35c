"""The coins: uniform, reproducible, and independent of the company a sample keeps."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.norms import unit_vectors

SEEDS = st.integers(0, 2**128 - 1)


@given(SEEDS, st.lists(st.integers(-1, 10**9), min_size=1, max_size=5, unique=True))
def test_a_vector_is_a_function_of_seed_stream_and_call_alone(
    seed: int, streams: list[int]
) -> None:
    support = torch.ones(len(streams), 2, 5, dtype=torch.float64)
    together = unit_vectors(seed, torch.tensor(streams), 7, support)
    for row, stream in enumerate(streams):
        alone = unit_vectors(seed, torch.tensor([stream]), 7, support[:1])
        assert torch.equal(alone[0], together[row])


def test_no_two_vectors_are_alike() -> None:
    support = torch.ones(50, 400, dtype=torch.float64)
    streams = torch.arange(50) - 1
    vectors = torch.cat([unit_vectors(seed, streams, call, support)
                         for seed in (0, 1, 2**64, 2**64 + 1, 2**127)
                         for call in (0, 1, 4)])  # fmt: skip
    cosine = vectors @ vectors.mT - torch.eye(len(vectors))
    # Independent directions in 400 dimensions: five standard deviations and a little.
    assert cosine.abs().max() < 6 / 20


def test_the_direction_is_uniform() -> None:
    vectors = unit_vectors(3, torch.arange(20_000), 0, torch.ones(20_000, 9, dtype=torch.float64))
    assert (vectors.norm(dim=1) - 1).abs().max() < 1e-14
    assert vectors.mean(0).abs().max() < 0.01
    moments = vectors.mT @ vectors / len(vectors)
    assert (moments - torch.eye(9) / 9).abs().max() < 0.005
    # The fourth moment of a coordinate on the sphere is 3 / (n (n + 2)).
    assert (vectors.pow(4).mean(0) - 3 / 99).abs().max() < 0.003


def test_vectors_stay_on_their_support() -> None:
    support = (torch.arange(12).reshape(2, 6) % 3 == 0).double()
    support[1] = 0
    vectors = unit_vectors(1, torch.tensor([4, 5]), 0, support)
    assert ((vectors != 0) <= (support != 0)).all()
    assert abs(float(vectors[0].norm()) - 1) < 1e-14
    assert not vectors[1].any()
