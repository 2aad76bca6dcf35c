"""A bounded part of the mutation corpus; all of it: test_benchmark_hostile.py."""

from pathlib import Path

import pytest
from hostile import KINDS, offered

COUNTS = {"model.onnx": 250, "data.npz": 300, "weights.safetensors": 300}


@pytest.mark.parametrize("name", KINDS)
def test_mutations_are_loaded_or_refused(name: str, tmp_path: Path) -> None:
    outcomes = offered(name, range(COUNTS[name]), tmp_path)
    assert outcomes.total() == COUNTS[name]
    assert outcomes["loaded"] < COUNTS[name]
    assert outcomes["CannotCertify"] > COUNTS[name] / 4
