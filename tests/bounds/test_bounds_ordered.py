"""What the additions of an operator add up over a ball, in an order that is known."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from laws import normal, seeded, uniform
from sums import TREES, joined
from torch import Tensor

from lipcert.bounds import Propagation
from lipcert.bounds.accumulated import accumulated
from lipcert.bounds.ordered import Moves, Ordered
from lipcert.bounds.roundoff import Roundoff
from lipcert.errors import InternalError
from lipcert.network import Network, NetworkBuilder
from lipcert.network.operators import Convolution, Dense, Diagonal
from lipcert.numbers import OUT64, SumOrder, SumTree
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
@pytest.mark.parametrize("name", ["blocked", "lanes"])
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


def test_what_another_nodes_bias_is_added_to_is_a_partial_sum():
    """2 with the bias, then 1 and 5."""
    operator = Dense.of(torch.tensor([[2.0, -1.0, 4.0]]).double(), None, (1, 3))
    ordered = Ordered.of(operator, SumOrder((SumTree((0, 3, -1, 1, -1, 2, -1)),), True))
    x, none = torch.ones(1, 1, 3).double(), torch.zeros(1).double()
    still = torch.zeros_like(x)
    assert float(ordered.additions(Moves(x, still, still, none, x != 0))) == pytest.approx(8)
    lengths = 2 + 5**0.5 + 21**0.5
    wide = ordered.additions(Moves(still, still, x * torch.inf, none + 1, x != 0))
    assert float(wide) == pytest.approx(lengths)


PLACES = {"first": 0, "second": 1, "middle": 6, "last": 12}


def with_bias(n: int, place: int) -> tuple[int, ...]:
    """One product after the other, and the bias, term ``n``, at a place among them."""
    terms = [*range(place), n, *range(place, n)]
    return joined([(k,) for k in terms])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fused", [True, False])
def test_no_run_in_the_order_errs_by_more_than_is_charged(place, fused):
    """A Gemm with its bias anywhere in the sum, which is a node of its own; products that cancel to
    all but nothing, so that partial sums are all that rounds."""
    rng, n = np.random.default_rng(5), 12
    program = with_bias(n, PLACES[place])
    worst = 0.0
    for trial in range(24):
        size = 1 + trial % n
        weight = rng.standard_normal(n).astype(np.float32)
        x = (1 + rng.random(n)).astype(np.float32)
        weight[size:], bias = 0, np.float32(rng.standard_normal() * 1e-6)
        if size > 1:
            weight[size - 1] = -(weight[: size - 1] * x[: size - 1]).sum() / x[size - 1]
        builder = NetworkBuilder((1, n))
        dense = Dense.of(torch.tensor(weight[None]).double(), None, (1, n))
        tree = SumOrder((SumTree(program),), bias=True)
        node = builder.operator(dense, 0, "gemm", tree)
        node = builder.operator(
            Diagonal.of(None, torch.tensor([bias]).double(), (1, 1)), node, "gemm"
        )
        network = builder.build(node)
        total = summed(program, weight, x, bias, fused=fused)
        exact = sum(Fraction(float(w)) * Fraction(float(v)) for w, v in zip(weight, x, strict=True))
        error = abs(Fraction(float(total)) - exact - Fraction(float(bias)))
        point = torch.tensor(x[None, None]).double()
        charged = rounding(network, point)
        assert error <= Fraction(charged)
        worst = max(worst, float(error / Fraction(charged)))
    assert worst > 0.1


def summed(program, weight, x, bias, *, fused: bool) -> np.float32:
    """In float32 along a tree; with ``fused`` products each is added exactly and rounded once."""
    stack: list[int | np.float32] = []

    def made(value: int | np.float32) -> np.float32:
        if not isinstance(value, int):
            return value
        return bias if value == len(x) else np.float32(weight[value] * x[value])

    for step in program:
        if step >= 0:
            stack.append(step)
            continue
        late, early = stack.pop(), stack.pop()
        if fused and isinstance(late, int) and late < len(x):
            product = np.longdouble(weight[late]) * np.longdouble(x[late])
            stack.append(np.float32(product + made(early)))
        else:
            stack.append(np.float32(made(early) + made(late)))
    [found] = stack
    return made(found)


def rounding(network: Network, x: Tensor) -> float:
    """What the operations of a run may round in all, at a point, its input being exact."""
    tools = Roundoff.of(network)
    centre = Propagation.of(network).centre(x)
    none = torch.zeros(1, dtype=torch.float64)
    boxes = [(value, value) for value in centre.values]
    found = accumulated(tools, centre, none, boxes, SINGLE)
    passed = OUT64.magnitude(network.operators[1], found.total[0])
    return float((found.total[-1] - passed).sum())


def test_an_order_of_other_terms_is_refused():
    operator = Dense.of(normal((2, 3), seeded(0)), None, (1, 3))
    with pytest.raises(InternalError, match="order of other sums"):
        Ordered.of(operator, SumOrder((SumTree((0, 1, -1)),)))


def test_constants_are_exact_where_the_format_has_them():
    weight = normal((2, 3), seeded(0))
    tree = SumOrder((SumTree((0, 1, -1, 2, -1)),))
    assert not Ordered.of(Dense.of(weight, None, (1, 3)), tree).exact(SINGLE)
    assert Ordered.of(Dense.of(weight.float().double(), None, (1, 3)), tree).exact(SINGLE)
