"""Samples of some classes alone, behind any map of labels."""

import json

import numpy as np
import pytest

from lipcert.data import Labelling, mapped, only, relabelled
from lipcert.data.arrays import to_dataset
from lipcert.errors import UsageError


def dataset(labels):
    images = np.arange(len(labels) * 4, dtype=np.float32).reshape(-1, 1, 2, 2) / 255
    return to_dataset("some", "test", images, np.array(labels), source="here", layout="nchw")


def test_samples_of_other_classes_are_left_out_and_told():
    whole = dataset([0, 3, 1, 3, 2])
    assert only(whole, None) is whole
    assert only(whole, (0, 1, 2, 3)).labels.tolist() == [0, 3, 1, 3, 2]
    some = only(whole, (0, 3, 9))
    assert some.labels.tolist() == [0, 3, 3]
    np.testing.assert_array_equal(some.images, whole.images[[0, 1, 3]])
    assert some.notes[-1] == "2 samples of classes that --only-classes does not name are left out"
    with pytest.raises(UsageError, match="here: no sample has a label that --only-classes"):
        only(whole, (7, 8))


def test_what_is_recorded_reads_the_same_samples_again(tmp_path):
    """As an audit does: behind a map of labels what is recorded goes from the labels of the data to
    the classes that are left."""
    whole = dataset([0, 1, 2, 3, 0, 2])
    (tmp_path / "map.json").write_text(json.dumps({"0": 5, "1": 2, "2": 0}))
    first = relabelled(whole, Labelling(label_map=tmp_path / "map.json"), 6)
    assert first.labels.tolist() == [5, 2, 0, 5, 0]
    found = only(first, (0, 5))
    assert found.labels.tolist() == [5, 0, 5, 0]
    recorded = {int(label): new for label, new in found.reading["labels"].items()}
    assert recorded == {0: 5, 2: 0}
    again = mapped(whole, recorded, 6)
    np.testing.assert_array_equal(again.images, found.images)
    assert again.labels.tolist() == found.labels.tolist()
    assert again.sha256 == found.sha256
