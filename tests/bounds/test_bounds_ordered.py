"""What the additions of an operator add up over a ball, in an order that is known."""

import pytest
import torch
from laws import normal, seeded, uniform
from sums import TREES
from torch import Tensor

from lipcert.bounds.ordered import Moves, Ordered
from lipcert.errors import InternalError
from lipcert.network.operators import Convolution, Dense
from lipcert.numbers import SumOrder, SumTree
from lipcert.rounding import SINGLE


def operators(generator: torch.Generator) -> list[Dense | Convolution]:
    return [
        Dense.of(normal((5, 12), generator), None, (1, 12)),
        Dense.of(normal((5, 12), generator), normal((5,), generator), (3, 12)),
        Convolution.of(
            normal((4, 3, 2, 3), generator), normal((4,), generator), (1, 3, 5, 6),
            stride=(2, 1), padding=((1, 0), (1, 2)), dilation=(1, 2),
        ),
        Convolution.of(normal((6, 2, 3), generator), None, (1, 4, 7), padding=((1, 1),), groups=2),
    ]  # fmt: skip


def order_of(operator: Dense | Convolution, *names: str) -> SumOrder:
    bias = operator.bias is not None
    return SumOrder(tuple(SumTree(TREES[n](operator.terms + bias)) for n in names), bias)


def sums_at(operator: Dense | Convolution, tree: SumTree, x: Tensor) -> Tensor:
    """``Σ |s_v|`` of the values themselves, from one-hot weights."""
    total, rows = torch.zeros(len(x), *operator.out_shape, dtype=torch.float64), {}
    for k in range(operator.terms):
        mask = torch.zeros(operator.weight.shape[1:], dtype=torch.float64).reshape(-1)
        mask[k] = 1
        mask = mask.reshape(operator.weight.shape[1:])
        rows[k] = operator._forward(x, operator.weight * mask)
    if operator.bias is not None:
        rows[operator.terms] = operator.bias.expand_as(total)

    def added(one: Tensor, other: Tensor) -> Tensor:
        # What is 0 rounds nothing.
        total.add_((one + other).abs() * ((one != 0) & (other != 0)))
        return one + other

    whole = tree.fold(rows.__getitem__, added)
    torch.testing.assert_close(whole, operator.forward(x))
    return total


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["sequential", "blocked", "lanes"])
def test_no_run_adds_up_more(name, seed):
    generator = seeded(seed)
    for operator in operators(generator):
        ordered = Ordered.of(operator, order_of(operator, name))
        x0 = normal((2, *operator.in_shape), generator)
        x0[:, ..., ::4] = 0
        width = 0.1 * uniform(x0.shape, generator) * (x0 != 0)
        radius = torch.full((2,), 0.2, dtype=torch.float64)
        moves = Moves(x0, torch.zeros_like(x0), width, radius, x0 != 0)
        bound = ordered.additions(moves)
        for step in range(8):
            way = (2 * uniform(x0.shape, generator) - 1) * width
            if step % 2:
                way = width * way.sign()
            length = way.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x0.dim() - 1))
            x = x0 + way * (0.2 / length).clamp(max=1)
            assert bool((sums_at(operator, ordered.order.trees[0], x) <= bound).all())


def test_at_a_point_it_is_the_sum_itself():
    """Nothing is charged that no run has."""
    generator = seeded(5)
    for operator in operators(generator):
        ordered = Ordered.of(operator, order_of(operator, "blocked"))
        x0, none = normal((2, *operator.in_shape), generator), torch.zeros(2).double()
        still = torch.zeros_like(x0)
        found = ordered.additions(Moves(x0, still, still, none, x0 != 0))
        torch.testing.assert_close(found, sums_at(operator, ordered.order.trees[0], x0))


def test_the_worst_of_several_trees_counts_and_a_memo_never_lowers_it():
    generator = seeded(6)
    operator = operators(generator)[0]
    both = Ordered.of(operator, order_of(operator, "sequential", "pairwise"))
    x0 = normal((2, *operator.in_shape), generator)
    still, none = torch.zeros_like(x0), torch.zeros(2).double()
    for live in (x0 != 0, x0 > 0, x0 != 0):
        found = both.additions(Moves(x0 * live, still, still, none, live))
        for tree in both.order.trees:
            alone = Ordered.of(operator, SumOrder((tree,)))
            # Compared afresh, where nothing is remembered.
            assert bool(
                (alone.additions(Moves(x0 * live, still, still, none, live)) <= found).all()
            )


def test_fewer_live_values_may_take_what_more_of_them_needed():
    generator = seeded(8)
    operator = operators(generator)[0]
    ordered, x0 = Ordered.of(operator, order_of(operator, "lanes")), normal((1, 1, 12), generator)
    x0[..., 6:] = 0
    still, none = torch.zeros_like(x0), torch.zeros(1).double()
    wide = ordered.additions(Moves(x0, still, still, none, torch.ones_like(x0) > 0))
    narrow = ordered.additions(Moves(x0, still, still, none, x0 != 0))
    again = ordered.additions(Moves(x0, still, still, none, torch.ones_like(x0) > 0))
    assert bool((narrow <= wide).all())
    torch.testing.assert_close(again, wide)


def test_a_bias_of_another_node_passes_through_the_additions_after_it():
    operator = Dense.of(normal((2, 3), seeded(0)), None, (1, 3))
    order = SumOrder((SumTree((0, 3, -1, 1, -1, 2, -1)),), True)
    assert Ordered.of(operator, order).later == 3
    assert Ordered.of(operator, SumOrder((SumTree((0, 1, -1, 2, -1)),))).later == 0


def test_an_order_of_other_terms_is_refused():
    operator = Dense.of(normal((2, 3), seeded(0)), None, (1, 3))
    with pytest.raises(InternalError, match="order of other sums"):
        Ordered.of(operator, SumOrder((SumTree((0, 1, -1)),)))


def test_constants_are_exact_where_the_format_has_them():
    weight = normal((2, 3), seeded(0))
    tree = SumOrder((SumTree((0, 1, -1, 2, -1)),))
    assert not Ordered.of(Dense.of(weight, None, (1, 3)), tree).exact(SINGLE)
    assert Ordered.of(Dense.of(weight.float().double(), None, (1, 3)), tree).exact(SINGLE)
