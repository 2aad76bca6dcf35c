"""Gradient ascent of many rows: the best of each, never below its start, within its limits."""

import torch

from lipcert.bounds.ascent import StepSize, ascend


def hills(tops: torch.Tensor):
    """One concave function a row, of a vector and a number, whose largest value is 0."""

    def value_of(numbers: list[torch.Tensor]) -> torch.Tensor:
        vector, number = numbers
        return -(vector - tops).square().sum(1) - (number - tops[:, 0]).square()

    return value_of


def test_every_row_climbs_and_keeps_its_best() -> None:
    tops = torch.tensor([[0.0, 0.0], [0.3, -0.2], [-0.4, 0.1]])
    value_of, start = hills(tops), [torch.zeros(3, 2), torch.zeros(3)]
    before = value_of(start)
    best, kept = ascend(value_of, start, [StepSize(0.05), StepSize(0.05)], 60)
    assert torch.equal(best, value_of(kept))
    # A row that starts at its top stays there; the others come near theirs.
    assert float(best[0]) == 0
    assert (best[1:] > 0.05 * before[1:]).all()
    assert (start[0] == 0).all()
    none, same = ascend(value_of, start, [StepSize(0.05), StepSize(0.05)], 0)
    assert torch.equal(none, before)
    assert torch.equal(same[0], start[0])


def test_numbers_stay_within_their_limits() -> None:
    tops = torch.full((2, 3), 5.0)
    sizes = [StepSize(0.5, (-1.0, 1.0)), StepSize(0.5)]
    _, (vector, number) = ascend(hills(tops), [torch.zeros(2, 3), torch.zeros(2)], sizes, 50)
    assert (vector == 1).all()
    assert (number > 1).all()


def test_what_is_no_number_is_never_the_best() -> None:
    def value_of(numbers: list[torch.Tensor]) -> torch.Tensor:
        (number,) = numbers
        return torch.where(number > 0.5, torch.nan, 1.0) * number

    best, (kept,) = ascend(value_of, [torch.zeros(4)], [StepSize(0.2)], 10)
    assert (best >= 0).all()
    assert (kept <= 0.5).all()


def test_numbers_side_by_side_move_as_each_would_alone() -> None:
    tops = [torch.full((3, 2, 2), 0.9), torch.tensor([0.7, -0.8, 0.5]), torch.full((3, 4), -0.6)]
    sizes = [StepSize(0.05, (-1.0, 0.2)), StepSize(0.1), StepSize(0.05, (-1.0, 0.2))]

    def below(number: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        return -(number - top).reshape(3, -1).square().sum(1)

    def value_of(numbers: list[torch.Tensor]) -> torch.Tensor:
        return sum(map(below, numbers, tops), torch.zeros(3))

    start = [torch.zeros_like(top) for top in tops]
    # So few steps that none overshoots: then the best of all is the best of each.
    best, together = ascend(value_of, start, sizes, 2)
    for number, top, size, first in zip(together, tops, sizes, start, strict=True):

        def alone_of(numbers: list[torch.Tensor], top: torch.Tensor = top) -> torch.Tensor:
            return below(numbers[0], top)

        _, (alone,) = ascend(alone_of, [first], [size], 2)
        torch.testing.assert_close(number, alone)
        assert not number.requires_grad
    assert not best.requires_grad


def test_no_row_is_no_trouble() -> None:
    best, (kept,) = ascend(lambda n: n[0].sum((1, 2)), [torch.zeros(0, 2, 3)], [StepSize(1.0)], 2)
    assert (len(best), kept.shape) == (0, (0, 2, 3))
