"""Trees of sums, and what they round: against exact fractions, in hostile numbers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from sums import TREES, run

from lipcert.numbers import SumOrder, SumTree
from lipcert.rounding import SINGLE


@pytest.mark.parametrize("name", TREES)
def test_depths_count_the_additions_of_each_term(name):
    tree = SumTree(TREES[name](21))
    met = [0] * 21

    def added(one: list[int], other: list[int]) -> list[int]:
        for k in one + other:
            met[k] += 1
        return one + other

    assert sorted(tree.fold(lambda k: [k], added)) == list(range(21))
    assert list(tree.depths) == met
    assert tree.terms == 21


def test_what_is_left_of_a_tree_is_the_tree_of_what_is_left():
    tree = SumTree(TREES["blocked"](8, 4))
    assert tree.program == (0, 1, -1, 2, -1, 3, -1, 4, 5, -1, 6, -1, 7, -1, -1)
    kept = [False, True, False, True, True, False, False, False]
    assert tree.within(kept) == (1, 3, -1, 4, -1)
    assert tree.within([False, True, *[False] * 6]) == (1,)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("kind", ["random", "alike", "cancelling", "spread"])
def test_no_sum_errs_by_more_than_its_partial_sums_say(name, kind):
    """``E ≤ u Σ |s_v| / (1 − u d)``, and the sum of magnitudes is the exact one."""
    rng, n = np.random.default_rng(7), 40
    order = SumOrder((SumTree(TREES[name](n)),))
    for _ in range(20):
        values = rng.standard_normal(n).astype(np.float32)
        if kind == "alike":
            values = np.abs(values) + 1
        elif kind == "cancelling":
            values[n // 2 :] = -values[: n // 2] * np.float32(1 + 1e-6)
        elif kind == "spread":
            values *= np.float32(2) ** rng.integers(-20, 20, n)
        exact = [Fraction(float(v)) for v in values]
        sizes: list[Fraction] = []

        def added(one: Fraction, other: Fraction, sizes=sizes) -> Fraction:
            sizes.append(abs(one + other))
            return one + other

        whole = order.trees[0].fold(exact.__getitem__, added)
        found = order.partial_sums(
            lambda k, values=values: (torch.tensor([float(values[k])]).double(), torch.tensor(True))
        )
        assert float(found) == pytest.approx(float(sum(sizes)), rel=1e-12)
        u = Fraction(SINGLE.unit)
        error = abs(Fraction(float(run(order.trees[0].program, values))) - whole)
        assert error <= u * sum(sizes) / (1 - u * order.depth)


def test_additions_of_what_is_0_for_sure_round_nothing():
    order = SumOrder((SumTree(TREES["sequential"](4)), SumTree(TREES["pairwise"](4))))
    live = torch.tensor([True, False, False, True])

    def term(k: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if k == 1 else (torch.tensor([2.0]).double() * live[k], live[k])

    assert order.partial_sums(term).tolist() == [4.0]
    assert order.depths == (3, 3, 2, 2)
    assert order.depth == 3
