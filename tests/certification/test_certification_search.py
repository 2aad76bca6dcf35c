"""The search finds the largest accepted radius, and never one that was not accepted."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.certification.search import largest_radius

RADII = st.floats(1e-6, 50)


@given(st.lists(RADII, min_size=1, max_size=6), st.floats(1e-3, 10), st.sampled_from([1.03, 2.0]))
def test_it_finds_the_threshold(thresholds: list[float], start: float, stride: float) -> None:
    threshold = torch.tensor(thresholds, dtype=torch.float64)
    begin = torch.full_like(threshold, start)
    found = largest_radius(
        lambda eps: eps <= threshold,
        begin,
        stride=stride,
        limit=torch.full_like(begin, 20.0),
        resolution=1.001,
    )
    assert (found <= threshold).all()
    assert (found >= threshold.clamp(max=20.0) / 1.001 * (1 - 1e-12)).all()


@given(st.integers(0, 10**6))
def test_only_what_was_accepted_is_returned(seed: int) -> None:
    """Even a predicate without rhyme or reason is never overruled."""
    generator = torch.Generator().manual_seed(seed)
    accepted: list[list[float]] = [[], [], []]

    def accepts(eps: torch.Tensor) -> torch.Tensor:
        yes = torch.rand(3, generator=generator) < 0.5
        for row, radius in enumerate(eps.tolist()):
            if yes[row]:
                accepted[row].append(radius)
        return yes

    start = torch.full((3,), 0.1, dtype=torch.float64)
    found = largest_radius(
        accepts, start, stride=1.5, limit=torch.full_like(start, 10.0), resolution=1.01
    )
    for row, radius in enumerate(found.tolist()):
        assert radius == -1 or radius in accepted[row]


def test_nothing_accepted_is_minus_one_and_everything_is_the_limit() -> None:
    start = torch.tensor([0.5, 0.0], dtype=torch.float64)
    never = largest_radius(
        lambda eps: torch.zeros_like(eps, dtype=torch.bool),
        start, stride=2.0, limit=torch.tensor(3.0, dtype=torch.float64), resolution=1.01,
    )  # fmt: skip
    assert (never == -1).all()
    always = largest_radius(
        lambda eps: torch.ones_like(eps, dtype=torch.bool),
        start[:1], stride=2.0, limit=torch.tensor(3.0, dtype=torch.float64), resolution=1.01,
    )  # fmt: skip
    assert always == 3.0
