"""How far nodes move from balls alone, against points of these balls."""

import pytest
import torch
from laws import OPERATOR_CASES, normal, seeded

from lipcert.bounds.reach import Reach, joined, through
from lipcert.norms import operator_norm, row_norms
from lipcert.numbers import OUT64


def points(reach: Reach, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Changes that a reach allows, as far as they go: ``(30, *shape)``."""
    way = normal((30, *shape), generator)
    way = way / way.flatten(1).norm(dim=1).reshape(-1, *(1,) * len(shape)) * reach.radius
    way = way if reach.squares is None else way * reach.squares.sqrt()
    return torch.maximum(torch.minimum(way, reach.width), -reach.width)


@pytest.mark.parametrize("name", OPERATOR_CASES)
@pytest.mark.parametrize("scaled", [False, True])
def test_nothing_moves_out_of_reach_behind_an_operator(name: str, scaled: bool) -> None:
    generator = seeded(4)
    operator = OPERATOR_CASES[name](torch.float64, generator)
    like = torch.zeros(1, 1, dtype=torch.float64)
    rows, norm = row_norms(operator, like), operator_norm(operator)
    shape, radius = operator.in_shape, torch.tensor([0.7], dtype=torch.float64)
    squares = torch.rand((1, *shape), generator=generator, dtype=torch.float64) if scaled else None
    width = torch.rand((1, *shape), generator=generator, dtype=torch.float64)
    before = Reach(width, radius, squares)
    moved = operator.apply(points(before, shape, generator))
    after = through(operator, before, rows, norm, OUT64)
    assert (moved.abs() <= after.width).all()
    assert (moved.flatten(1).norm(dim=1) <= after.whole).all()
    if after.squares is not None:
        squares = after.squares.expand_as(moved)
        parts = torch.where(squares > 0, moved / squares.sqrt(), moved * torch.inf).nan_to_num(0.0)
        assert (parts.flatten(1).norm(dim=1) <= after.radius * (1 + 1e-12)).all()


def test_sums_reach_as_far_as_their_parts_together() -> None:
    generator = seeded(5)
    parts = [
        Reach(
            torch.rand((1, 3, 4), generator=generator, dtype=torch.float64),
            torch.rand((1,), generator=generator, dtype=torch.float64),
        )
        for _ in range(3)
    ]
    moved = sum(points(part, (3, 4), generator) for part in parts)
    both = joined(parts, OUT64)
    assert (moved.abs() <= both.width).all()
    assert (moved.flatten(1).norm(dim=1) <= both.whole).all()
    assert torch.allclose(both.width, sum(part.width for part in parts), rtol=1e-12)
