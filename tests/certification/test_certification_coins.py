"""Coins that nobody can know beforehand: a model built against the coins of a known seed."""

import json
import math
from pathlib import Path

import pytest
import torch
from laws import normal, seeded

import lipcert
from lipcert.certification import Certifier
from lipcert.coins import Coins, parse_seed
from lipcert.data import load_dataset
from lipcert.errors import UsageError
from lipcert.gate import evaluate
from lipcert.gate.thresholds import Thresholds
from lipcert.network import Network, NetworkBuilder
from lipcert.network.activations import relu
from lipcert.network.operators import Dense
from lipcert.options import Epsilon, Options

SIZE = 160
MODEL = Path(__file__).parents[2] / "examples" / "digits.onnx"


def splitmix_vectors(seed: int, stream: int, call: int) -> torch.Tensor:
    """The directions of a generator of 64 bits in the open: splitmix64, then Box and Muller."""
    golden, first, second = (
        word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
    )

    def mix(word: torch.Tensor) -> torch.Tensor:
        word = word + golden
        word = (word ^ ((word >> 30) & (2**34 - 1))) * first
        word = (word ^ ((word >> 27) & (2**37 - 1))) * second
        return word ^ ((word >> 31) & (2**33 - 1))

    key = mix(mix(mix(torch.tensor([seed])) + stream) + call)
    bits = mix(key[:, None] + torch.arange(1, SIZE + 1) * golden)
    uniform = ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53 + 2.0**-54
    length, angle = (
        (-2 * uniform[:, : SIZE // 2].log()).sqrt(),
        2 * math.pi * uniform[:, SIZE // 2 :],
    )
    return torch.cat([length * angle.cos(), length * angle.sin()], 1)[0]


def against_the_coins(x: torch.Tensor) -> Network:
    """Both logits move by ``‖Δx‖`` along the first layer's top singular vector, to which all coins
    of seed 0 for sample 0 are orthogonal; ``x`` lies on the kink of every neuron."""
    coins = torch.stack([splitmix_vectors(0, 0, call) for call in range(4, 16)], 1)
    basis, _ = torch.linalg.qr(torch.cat([coins, normal((SIZE, SIZE - 12), seeded(1))], 1))
    right = basis.flip(1)
    ones = torch.ones(SIZE, 1, dtype=torch.float64)
    left, _ = torch.linalg.qr(torch.cat([ones, normal((SIZE, SIZE - 1), seeded(2))], 1))
    left[:, 0] = left[:, 0].abs()
    values = torch.linspace(0.9, 0.3, SIZE, dtype=torch.float64)
    values[0] = 1.0
    weight = left * values @ right.mT
    builder = NetworkBuilder((SIZE,))
    node = builder.operator(Dense.of(weight, -weight @ x[0], (SIZE,)), 0)
    last = torch.stack([-left[:, 0], left[:, 0]])
    bias = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return builder.build(
        builder.operator(Dense.of(last, bias, (SIZE,)), builder.activation(relu(), node))
    )


def test_a_model_built_against_a_known_seed_gets_no_norm_below_the_truth() -> None:
    x = torch.full((1, SIZE), 0.5, dtype=torch.float64)
    certifier = Certifier(
        against_the_coins(x), Options((Epsilon.parse("0.1"),), method="local"), samples=1
    )
    (sample,) = certifier(x, torch.tensor([0]), [0])
    assert sample.lipschitz is not None
    assert sample.lipschitz >= math.sqrt(2)
    # The margin is 1 and falls by 2 for each unit of the radius.
    assert sample.radius is not None
    assert sample.radius <= 0.5


@pytest.mark.parametrize("method", ["global", "local"])
def test_a_sample_spends_what_the_budget_issued(method: str) -> None:
    x = torch.full((1, SIZE), 0.5, dtype=torch.float64)
    levels = tuple(map(Epsilon.parse, ("0.1", "0.2", "0.3")))
    options = Options(levels, method=method, failure_probability=1e-6)
    certifier = Certifier(against_the_coins(x), options, samples=1)
    (sample,) = certifier(x, torch.tensor([0]), [0])
    (account,) = certifier.budget.accounts
    # The product of norms has none of a sample's own.
    assert (account.draws > 0) == (method == "local")
    prepared = sample.failure_probability / account.preparation if account.draws else 0.0
    assert prepared == pytest.approx(round(prepared), rel=1e-12)
    assert (prepared > 0) == (method == "local")
    assert prepared <= account.preparations
    assert certifier.global_failure_probability + sample.failure_probability <= 1e-6


def some(output: Path | None = None, **options: object) -> lipcert.Result:
    data = load_dataset("digits")
    model = lipcert.load(MODEL)
    arguments = {"eps": 0.2, "method": "local"} | options
    return lipcert.certify(
        model, data.images[:3], data.labels[:3], output=output, **arguments  # type: ignore[arg-type]
    )  # fmt: skip


def numbers(result: lipcert.Result) -> list[object]:
    return [(s.index, s.verdict, s.radius, s.lipschitz, s.margin) for s in result.samples]


def test_fresh_coins_are_recorded_and_their_seed_repeats_the_run() -> None:
    first, second = some(), some()
    coins = first.certificate.coins
    assert coins is not None
    assert coins["source"] == "system"
    assert second.certificate.coins is not None
    assert coins["seed"] != second.certificate.coins["seed"]
    again = some(seed=coins["seed"])
    assert numbers(again) == numbers(first)
    assert again.certificate.coins is not None
    assert again.certificate.coins["source"] == "seed"
    assert "without knowledge" in again.certificate.coins["assurance"]


def test_a_resumed_run_goes_on_with_the_coins_of_its_journal(tmp_path: Path) -> None:
    whole = some(tmp_path)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]))
    resumed = some(tmp_path, resume=True)
    assert numbers(resumed) == numbers(whole)
    assert resumed.certificate.coins == whole.certificate.coins
    assert json.loads(lines[0])["coins"]["source"] == "system"


def test_gates_warn_of_a_given_seed_and_of_nothing_else() -> None:
    thresholds = Thresholds.parse(min_certified=("0.0",))
    for seed, expected in ((None, []), (5, ["coins"])):
        outcomes = evaluate(thresholds, some(seed=seed).certificate.to_json())
        assert [o.gate for o in outcomes if o.status == "warn"] == expected


def test_without_randomised_norms_there_are_no_coins() -> None:
    assert some(norms="deterministic").certificate.coins is None


def test_the_key_depends_on_the_seed_and_on_everything_it_is_mixed_with() -> None:
    coins = Coins("seed", 7)
    keys = {
        coins.key(model="a", data="b"), coins.key(model="b", data="a"),
        Coins("seed", 8).key(model="a", data="b"),
        Coins("seed", 7 + 2**64).key(model="a", data="b"),
    }  # fmt: skip
    assert len(keys) == 4
    assert all(0 <= key < 2**128 for key in keys)


@pytest.mark.parametrize("text", ["-1", "", "0x", "1.5", str(2**128), "seed"])
def test_a_seed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="whole number from 0"):
        parse_seed(text)
