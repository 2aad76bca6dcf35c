"""The cascade's account: every sample that was decided was decided by one rung, and all costs."""

import json
import math

import pytest
import torch
from certification.made import small_case

from lipcert.certificate import Sample, cascade
from lipcert.certification import Certifier
from lipcert.certification.ledger import Ledger
from lipcert.options import Epsilon, Options


def test_shares_add_up_and_the_first_rung_that_decides_counts() -> None:
    ledger = began = Ledger.begun(4)
    ledger = ledger.passed("a", torch.arange(4), torch.tensor([True, False, False, False]))
    ledger = ledger.passed("b", torch.tensor([0, 2]), torch.tensor([True, True]))
    ledger = ledger.passed("a", torch.tensor([3]), torch.tensor([True]))
    none = torch.tensor([], dtype=torch.int64)
    ledger = ledger.passed("nobody", none, none.bool())
    assert [ledger.decided(row) for row in range(4)] == ["a", None, "b", "a"]
    rungs = [list(ledger.seconds(row)) for row in range(4)]
    assert rungs == [["a", "b"], ["a"], ["a", "b"], ["a"]]
    spent = sum(sum(ledger.seconds(row).values()) for row in range(4))
    assert spent <= ledger.since - began.since
    assert spent == pytest.approx(ledger.since - began.since, rel=0.5)
    # What was known before is so still.
    assert began.shares == {}
    assert [began.decided(row) for row in range(4)] == [None] * 4


def test_the_cascade_is_a_function_of_the_samples() -> None:
    def of(index: int, decided_by: str | None, **rungs: float) -> Sample:
        return Sample(index, 0, 0, "unknown", 1.0, 0.0, None, "local", sum(rungs.values()),
                      rungs=rungs, decided_by=decided_by)  # fmt: skip

    samples = [
        of(0, "first", first=0.5),
        of(1, "third", first=0.25, third=1.0),
        of(2, None, first=0.25, second=2.0, third=1.0),
        Sample(3, 0, -1, "error", math.nan, 0.0, None, "local", 0.0),
    ]
    found = cascade([Sample.from_json(json.loads(json.dumps(s.to_json()))) for s in samples])
    assert [tuple(rung.values()) for rung in found] == [
        ("first", 3, 1, 1.0), ("second", 1, 0, 2.0), ("third", 2, 1, 2.0),
    ]  # fmt: skip
    assert cascade([]) == []


@pytest.mark.parametrize(("method", "norms"), [
    ("auto", "randomised"), ("local", "estimate"), ("global", "randomised"),
])  # fmt: skip
def test_every_settled_verdict_has_one_rung_and_open_ones_have_none(method, norms) -> None:
    open_, falsified, settled = 0, 0, set()
    for seed, eps in ((0, "0.02"), (1, "0.1"), (2, "9")):
        network, x, labels = small_case(seed)
        options = Options(eps=(Epsilon.parse("0.001"), Epsilon.parse(eps)), method=method,
                          norms=norms)  # fmt: skip
        samples = Certifier(network, options, samples=6)(x, labels, range(6))
        for sample in samples:
            assert (sample.decided_by is None) == (sample.verdict == "unknown")
            assert sample.seconds == pytest.approx(sum(sample.rungs.values()))
            open_ += sample.decided_by is None
            settled.add(sample.decided_by)
            if sample.verdict == "misclassified":
                assert sample.decided_by == "prediction"
                assert set(sample.rungs) == {"prediction", "local" if method == "auto" else method}
            if sample.verdict == "falsified":
                assert sample.decided_by == "attack"
                falsified += 1
        rows = cascade(samples)
        assert sum(row["decided"] for row in rows) == sum(s.verdict != "unknown" for s in samples)
        assert rows[0]["rung"] == "prediction"
        assert rows[0]["samples"] == 6
        assert all(row["decided"] <= row["samples"] for row in rows)
    if method == "auto":
        assert {"prediction", "local", "attack", "dual"} <= settled
        assert falsified
    else:
        assert open_
