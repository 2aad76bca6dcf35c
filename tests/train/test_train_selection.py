"""The four criteria, and texts that are none of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.errors import UsageError
from lipcert.train.selection import Selection

SHARES = st.floats(0, 1)


@pytest.mark.parametrize("text", ["certified", "clean", "clean>=0.75", "certified>=0.5"])
def test_texts_come_back(text):
    assert Selection.parse(text).text == text


@pytest.mark.parametrize("text", ["", "robust", "clean>0.5", "clean>=75", "clean>=1.5", "clean>="])
def test_other_texts_are_refused_with_the_forms(text):
    with pytest.raises(UsageError, match=r"--select .*clean>=0.75"):
        Selection.parse(text)


@given(SHARES, SHARES, SHARES, SHARES, st.floats(0, 1))
def test_a_reached_accuracy_comes_before_any_that_is_not(a, b, c, d, least):
    score = Selection("clean", least).score
    if a >= least > c:
        assert score(a, b) >= score(c, d)
    if a >= least and c >= least and b > d + 1e-3:
        assert score(a, b) > score(c, d)
    if a < least and c < least and a > c:
        assert score(a, b) > score(c, d)


@given(SHARES, SHARES, SHARES)
def test_more_certified_is_better_and_accuracy_breaks_ties(clean, certified, other):
    score = Selection().score
    if clean > other:
        assert score(clean, certified) >= score(other, certified)
    if certified > other + 1e-3:
        assert score(clean, certified) > score(1.0, other)
