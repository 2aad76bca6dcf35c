"""Samples on disk, and a run that holds none of them."""

import gc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run.test_pipeline import DIGITS, OPTIONS, FakeCertifier, model, path

from lipcert.certificate import Sample
from lipcert.records import read
from lipcert.run import Execution, certify_dataset, kept
from lipcert.run.kept import Kept, KeptSamples, Labels

__all__ = ["model", "path"]  # fixtures
ONE = Sample(0, 1, 1, "certified", 1.5, 0.25, 2.0, "local", 0.5, ("0.1",), rungs={"local": 0.5})


@given(st.lists(st.tuples(st.sampled_from(["set", "drop"]), st.integers(0, 12)), max_size=30))
def test_it_is_a_dictionary(steps):
    found, expected = Kept(8), {}
    for number, (step, index) in enumerate(steps):
        if step == "set":
            found[index] = expected[index] = replace(ONE, index=index, margin=float(number))
        else:
            assert found.pop(index, None) == expected.pop(index, None)
    assert found == expected
    assert len(found) == len(expected)
    assert list(found) == sorted(expected)
    with pytest.raises(KeyError):
        found[99]


def test_samples_come_in_the_order_that_is_asked_for():
    made = Kept(4)
    made.update({index: replace(ONE, index=index) for index in range(4)})
    some = KeptSamples(made, [2, 0, 3])
    assert [sample.index for sample in some] == [2, 0, 3]
    assert (len(some), some[-1].index, [s.index for s in some[:2]]) == (3, 3, [2, 0])


def test_labels_are_those_of_the_chosen_samples_alone():
    labels = Labels(np.array([3, 1, 4, 1]), np.array([3, 0]))
    assert dict(labels) == {0: 3, 3: 1}
    assert (labels.get(1), labels.get(7), len(labels)) == (None, None, 2)


def test_a_long_run_holds_no_samples_in_memory(model, tmp_path, monkeypatch):
    """Of 360 samples no more than some batches are there at any time, and the results are those
    of a short run."""
    monkeypatch.setattr(kept, "FEW", 100)
    most = 0

    class Counting(FakeCertifier):
        def __call__(self, pixels, labels, indices):
            nonlocal most
            gc.collect(0)
            most = max(most, sum(type(one) is Sample for one in gc.get_objects()))
            return super().__call__(pixels, labels, indices)

    execution = Execution(output=tmp_path, batch_size=10)
    indices = np.arange(360)
    result = certify_dataset(
        model, DIGITS, indices, OPTIONS, execution, make_certifier=Counting().make
    )
    assert not isinstance(result.samples, tuple)
    assert most < 100
    assert [sample.index for sample in result.samples] == indices.tolist()
    found = read(tmp_path)
    assert found.certificate["summary"] == result.summary
    assert [s["index"] for s in found.samples] == indices.tolist()
    again = certify_dataset(
        model, DIGITS, indices, OPTIONS, Execution(output=tmp_path, resume=True, batch_size=10),
        make_certifier=FakeCertifier().make,
    )  # fmt: skip
    assert again.certificate.samples_sha256 == result.certificate.samples_sha256
