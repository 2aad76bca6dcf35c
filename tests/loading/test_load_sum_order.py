"""The order of a machine's sums is found by running it, and what is no tree is refused."""

import numpy as np
import pytest
from sums import ONE, TREES, blocked, lanes, run, sequential

from lipcert.loading.sum_order import NoOrder, NoSum, sum_order

N = 37


def one(n: int) -> np.ndarray:
    return np.ones((n, 1), bool)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("n", [1, 2, 3, 9, N])
def test_known_orders_are_found(name, n):
    program = TREES[name](n)
    order, runs = sum_order(lambda v: np.array([run(program, v)]), one(n))
    assert [tree.program for tree in order.trees] == [program]
    assert runs <= max(1, n * n // 2)


def test_numpys_own_sums_are_found():
    order, _ = sum_order(lambda v: np.array([v.sum(dtype=np.float32)]), one(100))
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.standard_normal(100).astype(np.float32)
        assert run(order.trees[0].program, values) == values.sum(dtype=np.float32)


def fused_products(values: np.ndarray) -> np.ndarray:
    """Fused multiply-add, one product after the other: with a factor of 1 the order of the sum."""
    total = np.float64(0)
    for value in values:
        total = np.float64(ONE(np.float64(value) * 1.0 + total))
    return np.array([ONE(total)])


def test_fused_products_are_a_sequential_sum():
    order, _ = sum_order(fused_products, one(N))
    assert order.trees[0].program == sequential(N)


def aligned(values: np.ndarray) -> np.ndarray:
    """An adder of four terms and an accumulator at once, all cut off below the largest of them."""
    total = 0.0
    for k in range(0, len(values), 4):
        parts = [total, *map(float, values[k : k + 4])]
        step = max(map(abs, parts)) * 2.0**-25 or 1.0
        total = float(ONE(sum(np.trunc(part / step) * step for part in parts)))
    return np.array([ONE(total)])


def transformed(values: np.ndarray) -> np.ndarray:
    """As Winograd's convolutions: sums and differences of terms, weighted and put together."""
    half = len(values) // 2
    a, b = values[:half], values[half : 2 * half]
    rest = values[2 * half :].sum(dtype=np.float32)
    return np.array(
        [ONE(((a + b) / 2 * ONE(1.5) + (a - b) / 2 * ONE(0.5)).sum() + b.sum() / 2 + rest)]
    )


@pytest.mark.parametrize(
    "machine", [aligned, transformed, lambda v: np.array([ONE(np.abs(v).max())])]
)
def test_what_is_no_tree_of_additions_is_refused(machine):
    with pytest.raises(NoSum):
        sum_order(machine, one(N))


def test_each_output_has_its_own_tree():
    programs = [sequential(N), blocked(N, 8), sequential(N), lanes(N, 4)]
    order, _ = sum_order(lambda v: np.array([run(p, v) for p in programs]), np.ones((N, 4), bool))
    assert {tree.program for tree in order.trees} == set(programs)
    many = [blocked(N, size) for size in (2, 3, 5, 7, 11)]
    with pytest.raises(NoOrder, match="more than 4 orders"):
        sum_order(lambda v: np.array([run(p, v) for p in many]), np.ones((N, 5), bool))


def padded(valid: np.ndarray, whole, edge):
    """Outputs sum what they have of the terms: the first all of them, the others as ``edge``."""

    def machine(values: np.ndarray) -> np.ndarray:
        return np.array(
            [run(edge if k else whole, np.where(has, values, 0)) for k, has in enumerate(valid.T)]
        )

    return machine


def test_outputs_at_an_edge_leave_terms_out():
    valid = np.ones((N, 3), bool)
    valid[::3, 1] = valid[1::3, 2] = False
    order, _ = sum_order(padded(valid, blocked(N, 8), blocked(N, 8)), valid)
    assert [tree.program for tree in order.trees] == [blocked(N, 8)]
    with pytest.raises(NoOrder, match="an order of their own"):
        sum_order(padded(valid, blocked(N, 8), blocked(N, 5)), valid)


def test_runs_are_limited():
    runs = []
    with pytest.raises(NoOrder, match="more than 20 runs"):
        sum_order(lambda v: runs.append(v) or np.array([run(sequential(N), v)]), one(N), most=20)
    assert not runs
    with pytest.raises(NoOrder, match="more than 50 runs"):
        sum_order(lambda v: np.array([run(blocked(N, 4), v)]), one(N), most=50)
