"""The search finds the largest radius of positive slack, and never one whose slack was not."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lipcert.certification.search import largest_radius

RADII = st.floats(1e-6, 50)
POWERS = st.sampled_from([0.5, 1.0, 1.5, 3.0])


@given(st.lists(RADII, min_size=1, max_size=6), st.floats(1e-3, 10), POWERS, st.floats(1e-3, 1e3))
def test_it_finds_the_root(roots: list[float], start: float, power: float, clean: float) -> None:
    root = torch.tensor(roots, dtype=torch.float64)
    begin = torch.full_like(root, start)
    found = largest_radius(
        lambda eps, _: clean * (1 - (eps / root) ** power),
        begin,
        clean=torch.full_like(root, clean),
        limit=torch.full_like(begin, 20.0),
        resolution=1.001,
    )
    assert (found <= root * (1 + 1e-12)).all()
    assert (found >= root.clamp(max=20.0) / 1.001 * (1 - 1e-12)).all()


@given(st.lists(RADII, min_size=1, max_size=6), st.floats(1e-3, 10))
def test_a_step_is_found_like_any_other_slack(steps: list[float], start: float) -> None:
    step = torch.tensor(steps, dtype=torch.float64)
    begin = torch.full_like(step, start)
    found = largest_radius(
        lambda eps, _: torch.where(eps <= step, 1.0, -torch.inf),
        begin, clean=torch.ones_like(step), limit=torch.full_like(begin, 20.0), resolution=1.01,
    )  # fmt: skip
    assert (found <= step).all()
    assert (found >= step.clamp(max=20.0) / 1.01 * (1 - 1e-12)).all()


@given(st.integers(0, 10**6))
def test_only_what_was_positive_is_returned(seed: int) -> None:
    """Even slacks without rhyme or reason are never overruled, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    accepted: list[list[float]] = [[], [], []]
    strange = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])

    def slack(eps: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        value = torch.randn(3, generator=generator, dtype=torch.float64)
        odd = torch.rand(3, generator=generator) < 0.3
        choice = strange[torch.randint(4, (3,), generator=generator)].double()
        value = torch.where(odd, choice, value)
        for row, radius in enumerate(eps.tolist()):
            if value[row] > 0:
                accepted[row].append(radius)
        return value

    start = torch.full((3,), 0.1, dtype=torch.float64)
    found = largest_radius(
        slack, start, clean=torch.ones_like(start), limit=torch.full_like(start, 10.0),
        resolution=1.01,
    )  # fmt: skip
    for row, radius in enumerate(found.tolist()):
        assert radius == -1 or radius in accepted[row]


def test_nothing_positive_is_minus_one_and_everything_is_the_limit() -> None:
    start = torch.tensor([0.5, 0.0], dtype=torch.float64)
    never = largest_radius(
        lambda eps, _: -torch.ones_like(eps), start, clean=torch.ones_like(start),
        limit=torch.tensor(3.0, dtype=torch.float64), resolution=1.01,
    )  # fmt: skip
    assert (never == -1).all()
    always = largest_radius(
        lambda eps, _: torch.ones_like(eps), start[:1], clean=torch.ones_like(start[:1]),
        limit=torch.tensor(3.0, dtype=torch.float64), resolution=1.01,
    )  # fmt: skip
    assert always == 3.0
