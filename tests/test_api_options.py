"""What ``lipcert.certify`` takes in groups is what the records of a run hold."""

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import lipcert
from lipcert.api import CertifyOptions
from lipcert.errors import UsageError
from lipcert.options import Options, OptionValues
from lipcert.run import Execution
from lipcert.run.job import Running


@pytest.mark.parametrize(
    ("group", "record", "without", "wider"),
    [(OptionValues, Options, {"eps"}, {"seed"}), (Running, Execution, {"shard"}, {"output"})],
)
def test_every_field_is_an_option_of_the_same_type(group, record, without, wider):
    taken, held = get_type_hints(group), get_type_hints(record)
    assert set(taken) == {field.name for field in fields(record)} - without
    for name in set(taken) - wider:
        assert taken[name] == held[name], name


def test_all_of_them_are_taken_and_no_other(tmp_path):
    model = lipcert.load(Path(__file__).parents[1] / "examples" / "digits.onnx")
    images, labels = np.zeros((2, 1, 8, 8), np.float32), np.arange(2)
    result = lipcert.certify(
        model, images, labels, "0.1", method="local", seed="0x2", output=str(tmp_path / "out"),
        allow_implausible=True,
    )  # fmt: skip
    options = result.certificate.options
    assert (options["method"], options["seed"], options["effort"]) == ("local", 2, "standard")
    assert (tmp_path / "out" / "certificate.json").is_file()
    with pytest.raises(TypeError, match="keyword argument 'metod'; did you mean method"):
        lipcert.certify(model, images, labels, "0.1", metod="local")
    with pytest.raises(TypeError, match="keyword argument 'shard'"):
        lipcert.certify(model, images, labels, "0.1", shard="1/2")
    with pytest.raises(UsageError, match="effort='much'"):
        lipcert.certify(model, images, labels, "0.1", effort="much")
    assert {"method", "workers"} < set(CertifyOptions.__annotations__)
