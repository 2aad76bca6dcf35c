"""The quick function of a schema never accepts what the validator refuses."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lipcert.records.accepting import accepts
from lipcert.records.schemas import schema

SAMPLE = {
    "index": 3, "label": 1, "prediction": 1, "verdict": "certified", "margin": 1.5,
    "radius": 0.5, "lipschitz": 2.0, "method": "local", "seconds": 0.25,
    "certified": ["0.1", "0.3"], "failure_probability": 1e-12, "attack_radius": 0.75,
    "deployed_error": 1e-6, "rungs": {"local": 0.125, "attack": 0.125}, "decided_by": "local",
    "eliminated": [0, 3],
}  # fmt: skip
FAST = accepts(schema("sample"))
SLOW = Draft202012Validator(schema("sample"))
values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.just(2**54), st.floats(-2, 2),
    st.sampled_from(["", "certified", "estimated", "error", "ESTIMATE", "0.1"]),
    st.lists(st.sampled_from(["0.1", "0.3", 1, -1, True]), max_size=3),
    st.dictionaries(st.sampled_from(["local", "dual"]), st.floats(-1, 1), max_size=2),
)  # fmt: skip
names = st.sampled_from([*schema("sample")["properties"], "other"])


@given(st.dictionaries(names, values, max_size=3), st.sets(names, max_size=1))
def test_what_it_accepts_is_what_the_validator_accepts(changes, removed):
    record = {k: v for k, v in (copy.deepcopy(SAMPLE) | changes).items() if k not in removed}
    if FAST(record):
        SLOW.validate(record)


def test_it_accepts_what_runs_write():
    assert FAST(SAMPLE)
    estimate = {k: v for k, v in SAMPLE.items() if k not in ("certified", "deployed_error")}
    estimate |= {"assurance": "ESTIMATE", "verdict": "estimated", "radius": None,
                 "lipschitz": None, "radius_estimate": 0.5, "estimated": ["0.1"]}  # fmt: skip
    assert FAST(estimate)
    assert FAST(SAMPLE | {"margin": None, "verdict": "error", "prediction": -1, "message": "no"})


@pytest.mark.parametrize(
    "change",
    [{"index": True}, {"index": 1.0}, {"label": -1}, {"certified": ["0.1", "0.1"]},
     {"estimated": []}, {"eliminated": [2**54]}, {"rungs": {"local": -1.0}}, {"new": 1},
     {"failure_probability": 1}, {"assurance": "ESTIMATE"}],
)  # fmt: skip
def test_it_leaves_the_rest_to_the_validator(change):
    assert not FAST(SAMPLE | change)


@pytest.mark.parametrize("word", ["format", "$ref", "anyOf", "dependentRequired"])
def test_a_keyword_that_it_does_not_know_accepts_nothing(word):
    assert not accepts({"type": "object", "properties": {"a": {word: {}}}})({"a": 1})
    assert accepts({"type": "object", "properties": {"a": {word: {}}}})({})
