"""DualVariables that earlier searches left behind."""

from __future__ import annotations

import torch

from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import DualVariables, Objectives
from lipcert.bounds.state import Layer, State
from lipcert.certification.warm_start import WarmStart


class Fresh(DualBound):
    """Starts every search at slope 7, and counts them."""

    def __init__(self) -> None:
        self.started: list[int] = []

    def start(self, state: State, objectives: Objectives) -> DualVariables:
        self.started += objectives.rows.tolist()
        return multipliers([7.0] * len(objectives))


def multipliers(values: list[float]) -> DualVariables:
    column = torch.tensor(values)
    return DualVariables({2: column[:, None].expand(-1, 3).clone()}, {2: column.clone()})


def objectives(rows: list[int]) -> Objectives:
    return Objectives(4, torch.tensor(rows), torch.zeros(len(rows), 3))


def state(radii: list[float]) -> State:
    radius = torch.tensor(radii)
    return {0: Layer(*[torch.zeros(len(radii), 3)] * 3, radius, *[torch.ones(len(radii), 3)] * 2)}


def test_multipliers_are_found_again_by_sample_and_class() -> None:
    known, guide = WarmStart.none(torch.zeros(3, 3)), Fresh()
    eps = torch.tensor([1.0, 2.0, 4.0])
    others = torch.tensor([1, 2, 2])
    known = known.renewed(objectives([0, 0, 2]), others, multipliers([1.0, 2.0, 3.0]), eps)
    asked = objectives([2, 0, 1, 0])
    found = known.start(guide, state([4.0, 0.5, 1.0, 1.0]), asked, torch.tensor([2, 2, 1, 1]))
    assert found.slopes[2][:, 0].tolist() == [3.0, 2.0, 7.0, 1.0]
    # DualVariables go with 1/ρ; only what nobody knew was started.
    shifts = torch.tensor([0.0, 2.0, 0.0, 0.0]).log().clamp(min=0)
    assert torch.allclose(found.logs[2], torch.tensor([3.0, 2.0, 7.0, 1.0]) + shifts)
    assert guide.started == [1]


def test_newer_multipliers_replace_older_ones_and_follow_their_samples() -> None:
    known, guide = WarmStart.none(torch.zeros(3, 3)), Fresh()
    eps = torch.ones(3)
    known = known.renewed(objectives([0, 1]), torch.tensor([1, 2]), multipliers([1.0, 2.0]), eps)
    known = known.renewed(
        objectives([1, 2]), torch.tensor([2, 0]), multipliers([5.0, 6.0]), 3 * eps
    )
    assert len(known.found.logs[2]) == len(known.eps) == 3
    part = known.select(torch.tensor([2, 1]))
    # Of a larger batch, whose other samples nothing is known of.
    spread = part.spread(torch.tensor([3, 0]), 4)
    one, other = part.place.tolist()
    assert spread.place.tolist() == [other, [-1] * 3, [-1] * 3, one]
    asked = part.start(guide, state([3.0, 3.0]), objectives([0, 1]), torch.tensor([0, 2]))
    assert asked.slopes[2][:, 0].tolist() == [6.0, 5.0]
    assert guide.started == []
    kept = known.start(guide, state([1.0]), objectives([0]), torch.tensor([1]))
    assert kept.slopes[2][:, 0].tolist() == [1.0]


def test_nothing_to_renew_changes_nothing() -> None:
    known = WarmStart.none(torch.zeros(2, 2))
    assert known.renewed(objectives([]), torch.zeros(0, dtype=torch.int64), multipliers([]),
                         torch.ones(2)) is known  # fmt: skip


def test_some_rows_of_multipliers_are_replaced() -> None:
    changed = multipliers([1.0, 2.0, 3.0]).replaced(torch.tensor([2, 0]), multipliers([8.0, 9.0]))
    assert changed.slopes[2][:, 1].tolist() == [9.0, 2.0, 8.0]
    assert changed.logs[2].tolist() == [9.0, 2.0, 8.0]
    same = multipliers([1.0])
    assert same.replaced(torch.zeros(0, dtype=torch.int64), multipliers([])) is same
