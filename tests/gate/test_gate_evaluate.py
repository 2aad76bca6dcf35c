import copy

import pytest
from report import made

from lipcert.errors import CannotCertify, UsageError
from lipcert.gate import Thresholds, compare, evaluate, require_same_samples, worst

ROWS = made.samples(200)
CERTIFICATE = made.certificate(ROWS)


def outcomes(certificate=CERTIFICATE, rows=ROWS, old=None, **asked):
    return evaluate(Thresholds.parse(**asked), certificate, rows, old)


def counted(count: int, n: int, **data) -> dict:
    """A certificate that certifies ``count`` of ``n`` at its one eps."""
    made_up = copy.deepcopy(CERTIFICATE)
    made_up["options"]["eps"] = ["36/255"]
    made_up["data"] |= {"size": n, "chosen": n} | data
    made_up["summary"] |= {"n": n, "certified_count": {"36/255": count}, "clean_correct": n}
    return made_up


def test_every_gate_has_an_outcome_in_the_order_of_the_options():
    found = outcomes(
        old=CERTIFICATE, min_certified=["0.1"], min_clean="0.5", min_radius_median="0.01",
        baseline="old", max_drop="0pp", max_seconds_per_sample="1",
    )  # fmt: skip
    assert [outcome.gate for outcome in found] == [
        "certified accuracy at eps 0.3",
        "clean accuracy",
        "median certified radius",
        *(f"drop of certified accuracy at eps {eps}" for eps in made.EPS),
        "seconds per sample",
    ]
    assert worst(found) == "pass"
    assert found[-1].message == "0.125 s ≤ 1 s"


def test_598_of_1000_is_no_60_per_cent():
    (failed,) = outcomes(counted(598, 1000), min_certified=["0.60"])
    assert (failed.status, failed.message) == ("fail", "598/1000 = 59.80 % < 60 %")
    (passed,) = outcomes(counted(600, 1000), min_certified=["0.60"])
    assert (passed.status, passed.message) == ("pass", "600/1000 = 60.00 % ≥ 60 %")


def test_a_subset_shows_its_interval_and_may_be_gated_on_its_lower_end():
    subset = counted(620, 1000, size=10_000)
    (shown,) = outcomes(subset, min_certified=["0.60"])
    assert shown.status == "pass"
    assert "Clopper-Pearson 95 %: 58.90 % to 65.02 %" in shown.message
    (gated,) = outcomes(subset, min_certified=["0.60"], gate_on="lower")
    assert gated.status == "fail"
    assert gated.message.endswith("lower end 58.90 % < 60 %")
    (wide,) = outcomes(subset, min_certified=["0.60"], gate_on="lower", confidence="0.5")
    assert wide.status == "pass"


def test_the_lower_end_is_never_skipped_for_a_whole_set():
    (gated,) = outcomes(counted(620, 1000), min_certified=["0.60"], gate_on="lower")
    assert gated.status == "fail"


def test_eps_may_be_written_in_another_way_and_must_be_there():
    (found,) = outcomes(min_certified=["1/10=0.5"])
    assert found.gate.endswith("eps 0.1")
    with pytest.raises(UsageError, match=r"0\.2 is not certified; choose one of 0\.1, 36/255"):
        outcomes(min_certified=["0.2=0.5"])
    with pytest.raises(UsageError, match="twice"):
        outcomes(min_certified=["0.5", "3/10=0.5"])


def test_an_eps_that_fails_and_one_that_warns_are_one_gate_each():
    found = outcomes(min_certified=["0.5"], warn_certified=["0.3=0.7", "0.1=0.99"])
    assert [(o.gate[-3:], o.status) for o in found] == [("0.3", "fail"), ("0.1", "warn")]


def test_a_drop_is_held_against_percentage_points():
    old, new = counted(620, 1000), counted(612, 1000)
    (held,) = outcomes(new, old=old, baseline="old", max_drop="0.8pp")
    assert (held.status, held.message[:17]) == ("pass", "0.80 pp ≤ 0.8 pp ")
    (failed,) = outcomes(new, old=old, baseline="old", max_drop="0.5pp", warn_drop="0.1pp")
    assert failed.message == "0.80 pp > 0.5 pp (from 620/1000 to 612/1000)"
    assert failed.status == "fail"
    (gained,) = outcomes(old, old=new, baseline="old", max_drop="0pp")
    assert gained.message.startswith("-0.80 pp ≤ 0 pp")


def test_options_that_differ_from_the_baseline_are_named():
    old, new = counted(620, 1000), counted(612, 1000)
    old["options"] |= {"effort": "fast", "pixel_domain": True}
    old["model"]["preprocessing"] |= {"value_range": [0.0, 255.0]}
    (held,) = outcomes(new, old=old, baseline="old", max_drop="0.8pp")
    assert held.status == "pass"
    assert held.message.endswith(
        "; the baseline has another effort (fast, now standard), another pixel-domain (on, now "
        "off), another range (0.0,255.0, now 0.0,1.0))"
    )


def test_a_level_for_the_largest_eps_and_one_for_it_by_name_are_held_against_each_other():
    with pytest.raises(UsageError, match=r"--min-certified 0\.6 fails first"):
        outcomes(counted(620, 1000), min_certified=["0.60"], warn_certified=["36/255=0.5"])


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("data", "sha256"), "f" * 64, "data digest"),
        (("data", "indices_sha256"), "f" * 64, "sample ids"),
        (("data", "shard"), "1/2", "sample ids"),
        (("options", "eps"), ["0.1", "0.3"], r"eps \(0\.1,0\.3, now 0\.1,36/255,0\.3\)"),
        (("threat_model", "norm"), "linf", "threat model"),
    ],
)
def test_a_baseline_of_other_samples_is_refused_and_the_difference_named(place, value, named):
    other = copy.deepcopy(CERTIFICATE)
    other[place[0]][place[1]] = value
    with pytest.raises(UsageError, match=f"another {named};"):
        outcomes(old=other, baseline="old", max_drop="1pp")


def test_all_differences_are_named_at_once_and_the_spelling_of_eps_is_none():
    other = copy.deepcopy(CERTIFICATE)
    other["options"]["eps"] = ["1/10", "36/255", "0.30"]
    require_same_samples(other, CERTIFICATE, "A", "B")
    other["data"]["sha256"], other["threat_model"]["norm"] = "0" * 64, "linf"
    with pytest.raises(UsageError, match="another data digest, another threat model"):
        require_same_samples(other, CERTIFICATE, "A", "B")


def test_an_estimate_never_gets_to_a_gate_and_is_no_baseline():
    estimate = made.estimated().certificate
    with pytest.raises(CannotCertify, match=r"ESTIMATE.*--norms randomised"):
        outcomes(estimate, min_clean="0")
    with pytest.raises(CannotCertify, match="the baseline is an ESTIMATE"):
        outcomes(old=estimate, baseline="old", max_drop="1pp")


def test_gates_without_what_they_need_are_refused():
    with pytest.raises(UsageError, match=r"samples\.jsonl"):
        outcomes(rows=(), max_seconds_per_sample="1")
    with pytest.raises(CannotCertify, match="no sample"):
        outcomes(counted(0, 0), min_clean="0")


def test_no_correct_sample_means_a_median_of_nothing():
    none = copy.deepcopy(CERTIFICATE)
    none["summary"]["radius"] = {"mean": None, "median": None}
    (found,) = outcomes(none, min_radius_median="0.1")
    assert found.status == "fail"


def test_pairs_gained_and_lost_are_counted_by_class_too():
    newer = copy.deepcopy(ROWS)
    sure = next(row for row in newer if "0.3" in row["certified"])
    sure["certified"] = ["0.1"]
    unsure = next(row for row in newer if row["certified"] == [] and row["radius"] > 0)
    unsure["certified"], unsure["radius"] = list(made.EPS), 0.4
    found = compare(CERTIFICATE, made.certificate(newer), ROWS, newer)
    assert found.largest == "0.3"
    assert found.lost == (sure["index"],)
    assert found.gained == (unsure["index"],)
    assert (found.changes["0.3"].gained, found.changes["0.3"].lost) == (1, 1)
    assert (found.changes["0.1"].gained, found.changes["0.1"].lost) == (1, 0)
    for eps in made.EPS:
        by_class = [changes[eps] for changes in found.by_class.values()]
        for name in ("both", "gained", "lost", "neither"):
            whole = getattr(found.changes[eps], name)
            assert sum(getattr(change, name) for change in by_class) == whole
    assert (found.clean.gained, found.clean.lost, found.clean.n) == (0, 0, 200)


def test_what_does_not_pair_is_not_compared():
    shifted = [row | {"index": row["index"] + 1} for row in ROWS]
    with pytest.raises(UsageError, match="list other samples"):
        compare(CERTIFICATE, CERTIFICATE, ROWS, shifted)
    estimate = made.estimated(200)
    with pytest.raises(CannotCertify, match="B is an ESTIMATE"):
        compare(CERTIFICATE, estimate.certificate, ROWS, estimate.samples)


def test_no_gate_passes_where_a_sample_failed_inside():
    failed = copy.deepcopy(CERTIFICATE)
    failed["summary"]["verdicts"] = {"certified": 199, "error": 1}
    first, clean = outcomes(failed, min_clean="0")
    assert (first.status, clean.status) == ("fail", "pass")
    assert first.message.startswith("1 of 200 samples failed inside lipcert and have no verdict")
    assert worst([first, clean]) == "fail"
    with pytest.raises(CannotCertify, match="the baseline is incomplete"):
        outcomes(old=failed, baseline="old", max_drop="100pp")
