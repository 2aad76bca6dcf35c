"""The budget: no coin twice, nothing beyond what was allowed, never more risk than the run's."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lipcert
from lipcert.errors import InternalError
from lipcert.norms import Budget, Projections
from lipcert.norms.budget import PROBES

LIKE = torch.ones(3, 40, dtype=torch.float64)
SAMPLES = torch.tensor([4, 0, 7])


def budget(probability: float = 1e-3, samples: int = 10) -> Budget:
    return Budget(12345, probability=probability, samples=samples)


def test_more_than_was_allowed_raises() -> None:
    run = budget()
    account = run.account(1.0, preparations=2, draws=3, shared_draws=1)
    allowance = run.open(SAMPLES)
    first = allowance.preparation(account)
    for number in (8, 2, 5):
        first.norm(number)
    with pytest.raises(InternalError, match="more than the 3 draws"):
        first.norm(6)
    # One sample has used both of its preparations, the others only one.
    allowance.select(torch.tensor([1])).preparation(account)
    with pytest.raises(InternalError, match="more than the 2 preparations"):
        allowance.preparation(account)
    allowance.select(torch.tensor([0, 2])).preparation(account)
    shared = run.shared(account)
    shared.norm(0)
    with pytest.raises(InternalError, match="more than the 1 draws"):
        shared.norm(1)


def test_projections_are_draws_too() -> None:
    run = budget()
    account = run.account(1.0, preparations=1, draws=2, events=50)
    preparation = run.open(SAMPLES).preparation(account)
    preparation.normals(4, (3,))
    preparation.cauchy(4, (3,))
    with pytest.raises(InternalError, match="more than the 2 draws"):
        preparation.cauchy(4, (3,))


@pytest.mark.parametrize("guessed", [False, True])
def test_a_sample_has_the_same_numbers_alone_and_among_others(guessed: bool) -> None:
    """Each at places of its own: some of the others', all, or none."""
    own = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]) > 0

    def series(rows: Tensor) -> Projections:
        run = Budget(7, probability=1e-9, samples=4)
        account = run.account(1.0, preparations=1, draws=2, events=50)
        allowance = run.open(torch.tensor([5, 0, 9, 3])).select(rows)
        return allowance.guesses.projections(2) if guessed else allowance.preparation(account)

    together = series(torch.arange(4))
    for _ in range(2):
        found = together.cauchy_of(6, own)
    assert not bool(found.masked_fill(own[:, None], 0).any())
    for row, places in enumerate(own[:3]):
        alone = series(torch.tensor([row]))
        for _ in range(2):
            expected = alone.cauchy(6, (int(places.sum()),))
        assert torch.equal(found[row][:, places], expected[0])


def test_a_coin_twice_raises() -> None:
    run = budget()
    account = run.account(0.5, preparations=2, draws=3, shared_draws=2)
    coins = run.open(SAMPLES).preparation(account)
    norm = coins.norm(1)
    with pytest.raises(InternalError, match="draw 1 of a preparation were issued before"):
        coins.norm(1)
    norm.probes(LIKE)
    with pytest.raises(InternalError, match="probes of a norm were issued before"):
        norm.probes(LIKE)
    run.shared(account)
    with pytest.raises(InternalError, match="all samples share were issued before"):
        run.shared(account)
    with pytest.raises(InternalError, match="twice"):
        run.open(torch.tensor([3, 3]))
    with pytest.raises(InternalError, match="twice at once"):
        run.open(SAMPLES).select(torch.tensor([0, 0])).preparation(account)


def test_a_norm_has_the_same_coins_whatever_was_asked_before() -> None:
    def probes(*numbers: int) -> dict[int, Tensor]:
        run = budget()
        shared = run.shared(run.account(1.0, preparations=1, draws=1, shared_draws=3))
        return {number: shared.norm(number).probes(LIKE[:1]) for number in numbers}

    every, last = probes(0, 1, 2), probes(2)
    assert torch.equal(every[2], last[2])
    assert not torch.equal(every[1], every[2])


def test_coins_of_a_norm_that_was_not_found_may_be_asked_for_again() -> None:
    run = budget()
    shared = run.shared(run.account(1.0, preparations=1, draws=1, shared_draws=2))
    first = shared.norm(1).probes(LIKE[:1])
    shared.give_back(1)
    assert torch.equal(shared.norm(1).probes(LIKE[:1]), first)
    with pytest.raises(InternalError, match="draw 1 of a preparation were issued before"):
        shared.norm(1)


def test_more_samples_than_the_run_has_raise() -> None:
    run = budget(samples=4)
    run.open(SAMPLES)
    # Those that are begun again are no more.
    run.open(SAMPLES)
    with pytest.raises(InternalError, match="more samples than the 4"):
        run.open(torch.tensor([1, 2]))
    with pytest.raises(InternalError, match="negative"):
        run.open(torch.tensor([-1]))


def test_accounts_share_one_probability() -> None:
    run = budget()
    run.account(0.5, preparations=1, draws=1)
    with pytest.raises(InternalError, match="more than its failure probability"):
        run.account(0.6, preparations=1, draws=1)


def test_there_are_no_coins_where_nothing_may_fail() -> None:
    run = budget(probability=0.0)
    account = run.account(1.0, preparations=1, draws=1, shared_draws=1)
    allowance = run.open(SAMPLES)
    with pytest.raises(InternalError, match="nothing may fail"):
        allowance.preparation(account).norm(0)
    with pytest.raises(InternalError, match="nothing may fail"):
        run.shared(account).norm(0)
    assert run.spent_shared == 0
    assert not allowance.spent.any()
    allowance.guesses.start(LIKE)


@given(
    st.floats(1e-200, 0.999),
    st.integers(1, 40),
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 10**6)),
        min_size=1,
        max_size=4,
    ),
)
def test_all_that_can_be_spent_is_no_more_than_the_run_may(
    probability: float, samples: int, accounts: list[tuple[int, int, int, int]]
) -> None:
    run = Budget(0, probability=probability, samples=samples)
    opened = [
        run.account(1 / len(accounts) * (1 - 1e-12), preparations=preparations, draws=draws,
                    shared_draws=shared, events=events)
        for preparations, draws, shared, events in accounts
    ]  # fmt: skip
    allowance = run.open(torch.arange(samples))
    for account in opened:
        run.shared(account)
        for _ in range(account.preparations):
            allowance.preparation(account)
    # The largest sum that any order of rounding makes of it.
    spent = run.spent_shared + sum(allowance.spent.tolist())
    assert spent <= probability
    assert spent >= probability * (1 - 1e-6)


def test_a_sample_spends_what_it_was_issued() -> None:
    run = budget(probability=0.12, samples=3)
    one = run.account(0.5, preparations=2, draws=5, shared_draws=4)
    other = run.account(0.5, preparations=4, draws=1, events=7)
    allowance = run.open(SAMPLES)
    allowance.preparation(one)
    allowance.select(torch.tensor([2, 0])).preparation(other)
    allowance.select(torch.tensor([2])).preparation(other)
    # Half of one account is what all samples share, and was not issued.
    expected = torch.tensor([0.005 + 0.005, 0.005, 0.005 + 0.01], dtype=torch.float64)
    assert torch.allclose(allowance.spent, expected, rtol=1e-9)
    assert torch.equal(allowance.select(torch.tensor([1])).spent, allowance.spent[1:2])
    assert run.spent_shared == 0
    run.shared(one)
    assert math.isclose(run.spent_shared, 0.03, rel_tol=1e-9)


def test_where_no_sample_draws_the_shared_norms_have_it_all() -> None:
    run = budget(probability=0.12)
    account = run.account(1.0, preparations=3, draws=0, shared_draws=4)
    allowance = run.open(SAMPLES)
    allowance.preparation(account)
    assert not allowance.spent.any()
    assert math.isclose(account.shared, 0.03, rel_tol=1e-9)


def every_coin() -> dict[str, Tensor]:
    """Vectors of 40 numbers of every kind that a run can draw, by name."""
    run = budget()
    accounts = [run.account(0.5, preparations=2, draws=4, shared_draws=2) for _ in range(2)]
    allowance, found = run.open(SAMPLES), {}

    def put(name: str, values: Tensor) -> None:
        for row, vector in enumerate(values.reshape(-1, 40)):
            found[f"{name}, {row}"] = vector / vector.norm()

    for account in accounts:
        shared = run.shared(account)
        for number in range(2):
            coins, one = shared.norm(number), LIKE[:1]
            put(f"start {account.number} shared {number}", coins.start(one))
            put(f"probes {account.number} shared {number}", coins.probes(one))
        for preparation in range(2):
            issued = allowance.preparation(account)
            name = f"{account.number} {preparation}"
            put(f"normals {name}", issued.normals(1, (40,)))
            for number in (1, 2):
                coins = issued.norm(number)
                put(f"start {name} {number}", coins.start(LIKE))
                put(f"probes {name} {number}", coins.probes(LIKE))
    for number in range(3):
        put(f"guess {number}", allowance.guesses.start(LIKE, number))
        put(f"shared guess {number}", run.guesses.start(LIKE[:1], number))
        series = allowance.guesses.projections(number)
        for draw in range(3):
            put(f"projections {number} {draw}", series.normals(1, (40,)))
    return found


def test_all_streams_differ_pairwise() -> None:
    found = every_coin()
    vectors = torch.stack(list(found.values()))
    assert len(vectors) == 2 * (2 * 4 + 2 * 3 * 9) + 3 * (3 + 1 + 9)
    cosine = (vectors @ vectors.mT - torch.eye(len(vectors))).abs()
    # Independent directions in 40 dimensions: none of some 10,000 pairs is near another.
    assert cosine.max() < 0.85
    assert 0.8 / 40 < cosine.square().sum() / (len(vectors) * (len(vectors) - 1)) < 1.2 / 40
    assert torch.equal(vectors, torch.stack(list(every_coin().values())))


def test_a_probe_is_none_of_its_start() -> None:
    run = budget()
    account = run.account(1.0, preparations=1, draws=1)
    coins = run.open(SAMPLES).preparation(account).norm(0)
    start, probes = coins.start(LIKE), coins.probes(LIKE)
    assert probes.shape == (PROBES * 3, 40)
    assert ((torch.cat([start] * PROBES) * probes).sum(1).abs() < 0.9).all()


def drawn(streams: list[int], of: Callable[[Tensor], Tensor] = lambda v: v) -> dict[int, Tensor]:
    """What each of these samples draws at its second preparation, the first being that of those
    with even numbers and no others' company."""
    run = budget()
    account = run.account(1.0, preparations=2, draws=1)
    allowance = run.open(torch.tensor(streams))
    even = (torch.tensor(streams) % 2 == 0).nonzero().flatten()
    if len(even):
        allowance.select(even).preparation(account)
    coins = allowance.preparation(account).norm(0)
    probes = coins.probes(LIKE[:1].expand(len(streams), 40)).reshape(PROBES, len(streams), 40)
    return {stream: probes[:, row] for row, stream in enumerate(streams)}


def test_coins_do_not_depend_on_the_company() -> None:
    together = drawn([4, 1, 7, 0])
    for stream in (4, 1, 7, 0):
        assert torch.equal(drawn([stream])[stream], together[stream])


def test_no_other_module_makes_coins() -> None:
    """Streams, calls and probes are named in the budget and in the generator alone; audits have
    coins of their own."""
    package = Path(lipcert.__file__).parent
    makers = re.compile(r"unit_vectors|normal_numbers|cauchy_numbers|norms\.coins|PROBES")
    using = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "audit" not in path.parts and makers.search(path.read_text(encoding="utf-8"))
    }
    assert using == {"norms/budget.py", "norms/coins.py", "norms/bounds.py"}
