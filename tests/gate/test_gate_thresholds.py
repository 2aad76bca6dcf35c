import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.errors import UsageError
from lipcert.gate import Thresholds, levels
from lipcert.gate.outcome import AtLeast, AtMost, Level, Share, judge
from lipcert.options import Epsilon


def test_levels_are_read_exactly():
    assert levels.share("-", "0.60") == levels.share("-", "60%") == Fraction(3, 5)
    assert levels.points("-", "0.5pp") == Fraction(1, 200)
    assert levels.number("-", "36/255") == Fraction(36, 255)
    texts = ["0.6", "36/255=50%,0.5=0.4"]
    found = {eps and eps.value: value for eps, value in levels.shares_at("-", texts).items()}
    assert found == {None: Fraction(3, 5), Fraction(36, 255): Fraction(1, 2), 0.5: Fraction(2, 5)}


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"min_certified": ["60"]}, "--min-certified '60'.*60%"),
        ({"min_certified": ["0.5", "0.6"]}, "twice"),
        ({"min_certified": ["0.1=0.5,1/10=0.6"]}, "twice"),
        ({"min_certified": ["0.1=most"]}, "such as 0.60"),
        ({"min_certified": ["far=0.5"]}, "36/255"),
        ({"warn_certified": ["-0.1"]}, "--warn-certified"),
        ({"min_clean": "1e999"}, "--min-clean.*from 0 to 1"),
        ({"min_radius_median": "1/0"}, "--min-radius-median.*such as"),
        ({"min_radius_median": "nan"}, "--min-radius-median.*0.14"),
        ({"max_drop": "0.5pp"}, "--baseline"),
        ({"baseline": Path("old")}, "--max-drop 0.5pp"),
        ({"baseline": Path("old"), "max_drop": "0.5"}, "percentage points, such as 0.5pp"),
        ({"max_seconds_per_sample": "fast"}, "--max-seconds-per-sample"),
        ({"gate_on": "lower"}, "--min-certified"),
        ({"gate_on": "upper"}, "value, lower"),
        ({"min_clean": "1", "confidence": "1"}, "below 1, such as 0.95"),
        ({"warn_clean": "0"}, "nothing is below it"),
        ({"min_clean": "0.9", "warn_clean": "0.9"}, r"--min-clean 0\.9 fails first.*above 0\.9"),
        ({"min_certified": ["0.6"], "warn_certified": ["0.5"]}, "above 0.6"),
        ({"min_radius_median": "0.2", "warn_radius_median": "0.1"}, "above 0.2"),
        ({"baseline": "b", "max_drop": "1pp", "warn_drop": "2pp"}, "--max-drop 1pp fails first"),
        ({"baseline": "b", "warn_drop": "100pp"}, "nothing is above it"),
        ({"max_seconds_per_sample": "1", "warn_seconds_per_sample": "2"}, "below 1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(values, fix):
    with pytest.raises(UsageError) as caught:
        Thresholds.parse(**values)
    assert re.search(fix, str(caught.value))


def test_only_what_is_asked_for_is_a_gate():
    assert not Thresholds.parse()
    assert Thresholds.parse(warn_clean="0.01")
    both = Thresholds.parse(min_certified=["0.1=0.5"], warn_certified=["0.1=0.6", "0.7"])
    assert both.min_certified == {
        Epsilon.parse("0.1"): Level(Fraction(1, 2), Fraction(3, 5)),
        None: Level(None, Fraction(7, 10)),
    }


def relation(message: str) -> tuple[Fraction, str, Fraction]:
    left, sign, right = re.search(r"(-?[\d.]+) ?%?(?: pp)? ([<≥>≤]) (-?[\d.]+)", message).groups()
    return Fraction(left), sign, Fraction(right)


AGREES = {
    "<": lambda a, b: a < b,
    "≥": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "≤": lambda a, b: a <= b,
}
DECIMALS = st.integers(0, 10**6).map(lambda i: Fraction(i, 10**6))


@given(st.data(), DECIMALS, st.booleans())
def test_message_and_outcome_never_contradict_each_other(data, level, lower):
    n = data.draw(st.integers(1, 300))
    share = Share(data.draw(st.integers(0, n)), n, Fraction(19, 20) if lower else None, lower)
    outcome = judge("gate", share, Level(level))
    left, sign, right = relation(outcome.message)
    assert AGREES[sign](left, right)
    assert (outcome.status == "pass") == (sign == "≥") == share.holds(level)
    assert right == level * 100


@given(st.floats(0, 1e6), DECIMALS)
def test_values_are_shown_on_their_side_of_the_level(value, level):
    for measure, good in ((AtLeast(Fraction(value)), "≥"), (AtMost(Fraction(value), "", 3), "≤")):
        outcome = judge("gate", measure, Level(level))
        left, sign, right = relation(outcome.message)
        assert AGREES[sign](left, right)
        assert (outcome.status == "pass") == (sign == good)


def test_the_boundary_itself_passes():
    assert judge("g", Share(600, 1000), Level(Fraction(3, 5))).status == "pass"
    failed = judge("g", Share(598, 1000), Level(Fraction(3, 5)))
    assert (failed.status, failed.message) == ("fail", "598/1000 = 59.80 % < 60 %")
    close = judge("g", Share(59_999, 100_000), Level(Fraction(3, 5)))
    assert close.message == "59999/100000 = 59.99 % < 60 %"


def test_a_warning_names_its_own_level():
    level = Level(Fraction(1, 2), Fraction(3, 5))
    assert judge("g", Share(55, 100), level).message == "55/100 = 55.00 % < 60 %"
    assert judge("g", Share(55, 100), level).status == "warn"
    assert judge("g", Share(45, 100), level).message.endswith("< 50 %")
    assert judge("g", Share(65, 100), level).message.endswith("≥ 50 %")


def test_a_radius_is_compared_with_a_fraction_exactly():
    level = Level(Fraction(36, 255))
    below = Fraction(36 / 255)
    assert judge("g", AtLeast(below), level).status == ("pass" if below >= level.fail else "fail")
    assert judge("g", AtLeast(below), level).message.endswith("12/85")
