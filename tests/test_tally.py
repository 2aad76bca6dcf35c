"""A tally against the definitions of its figures, and in parts."""

import json
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.certificate import Sample
from lipcert.tally import Tally

EPS = ("0.1", "36/255", "0.5")
numbers = st.floats(0, 1)


@st.composite
def samples(draw) -> list[dict]:
    made = []
    for index in range(draw(st.integers(0, 12))):
        radius = draw(numbers)
        rungs = draw(
            st.sampled_from([{}, {"local": 0.25}, {"local": 0.5, "attack": 0.125, "dual": 1.0}])
        )
        sample = Sample(
            index, 1, draw(st.sampled_from([0, 1, 1])),
            draw(st.sampled_from(["certified", "unknown", "falsified", "misclassified", "error"])),
            draw(numbers), radius, 1.0, "local", 0.25, tuple(e for e in EPS if draw(st.booleans())),
            draw(numbers) * 1e-9, deployed_error=draw(st.none() | numbers),
            attack_radius=draw(st.none() | numbers), rungs=rungs,
            decided_by=draw(st.sampled_from([None, *rungs])),
            eliminated=draw(st.sampled_from([(), (3,), (1, 4)])), message="no memory",
        )  # fmt: skip
        made.append(json.loads(json.dumps(sample.to_json())))
    return made


def of(records) -> Tally:
    return Tally.of(records, EPS, estimate=False)


@given(samples())
def test_figures_are_what_they_say(records):
    found, right = of(records).summary(), [r for r in records if r["prediction"] == 1]
    assert found["n"] == len(records)
    assert found["clean_correct"] == len(right)
    radii = [record["radius"] for record in right]
    mean, middle = (fmean(radii), median(radii)) if radii else (None, None)
    assert found["radius"] == {"mean": mean, "median": middle}
    for eps, reach in (("0.1", 0.1), ("36/255", 36 / 255), ("0.5", 0.5)):
        assert found["certified_count"][eps] == sum(eps in r["certified"] for r in records)
        if any("attack" in r.get("rungs", ()) for r in records):
            left = [r for r in right if r.get("attack_radius", 9) > reach]
            assert found["upper_count"][eps] == len(left)
    charged = [r for r in right if "deployed_error" in r and r["margin"] > 0]
    if charged:
        assert found["deployed_error"]["median"] == median(r["deployed_error"] for r in charged)
    else:
        assert "deployed_error" not in found
    assert sum(found["verdicts"].values()) == len(records)


@given(samples(), samples())
def test_parts_joined_are_the_whole(first, second):
    parts, whole = of(first), of([*first, *second])
    parts.join(of(second))
    assert parts.summary() == whole.summary()
    assert parts.cascade() == whole.cascade()
    assert parts.eliminated([4, 8, 2]) == whole.eliminated([4, 8, 2])
    assert parts.failures() == whole.failures()
    assert parts.spent == pytest.approx(whole.spent)


def test_shares_of_eliminated_neurons_are_over_those_that_say_so():
    records = [
        {"verdict": "certified", "prediction": 1, "label": 1, "margin": 1.0,
         "failure_probability": 0.0, "index": 0, "eliminated": eliminated}
        for eliminated in ([2], [4, 1], [])
    ]  # fmt: skip
    assert of(records).eliminated([8, 2, 5]) == [6 / 16, 1 / 2, None]
