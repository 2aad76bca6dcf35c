"""Class weights: what may be asked for, and that their mean over the training images is 1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipcert.errors import UsageError
from lipcert.train.class_weights import ClassWeights


@given(st.lists(st.integers(0, 3), min_size=1), st.sampled_from(["balanced", "1,2,0.5,4"]))
def test_the_mean_over_the_images_is_one(labels, text):
    found = ClassWeights.parse(text).of(np.array(labels), 4)
    assert found[labels].mean() == pytest.approx(1)
    assert (found >= 0).all()


def test_balanced_gives_every_class_the_same_share_and_numbers_their_ratios():
    labels = np.array([0] * 8 + [1] * 2)
    found = ClassWeights.parse("balanced").of(labels, 3)
    assert found[0] * 8 == pytest.approx(found[1] * 2) == pytest.approx(5)
    assert found[2] == 0
    found = ClassWeights.parse("1, 3, 3").of(labels, 3)
    assert found[1] / found[0] == pytest.approx(3) == found[2] / found[0]
    assert ClassWeights.parse("1,3,3").text == "1,3,3"


@pytest.mark.parametrize("text", ["", "even", "1,-1", "0,0", "nan,1", "inf,1", "1,,2"])
def test_what_are_no_weights_is_refused(text):
    with pytest.raises(UsageError, match=r"--class-weights .*balanced"):
        ClassWeights.parse(text)


def test_weights_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(UsageError, match="gives 2 numbers, but the model has 3 classes"):
        ClassWeights.parse("1,2").of(np.array([0, 1, 2]), 3)
    with pytest.raises(UsageError, match="no training image counts"):
        ClassWeights.parse("0,0,1").of(np.array([0, 1]), 3)
