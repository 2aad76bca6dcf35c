"""Random ONNX files: refused, or certified with radii inside which onnxruntime finds nothing.

A larger number of the same with ``LIPCERT_FUZZ_FILES=2000 pytest -m benchmark
tests/benchmarks/test_benchmark_files.py -s``.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from file_fuzz import METHODS, Tally, fuzz
from onnx_graphs import TYPES, graph, session

FILES = 40


@pytest.mark.parametrize("part", range(4))
def test_no_certificate_of_a_file_is_broken(part: int, tmp_path: Path) -> None:
    tally = Tally()
    for seed in range(part, FILES, 4):
        # The most expensive method for some.
        fuzz(seed, tmp_path, tally, methods=METHODS if seed % 3 == 0 else METHODS[:3])
    assert not tally.broken, str(tally)
    assert tally.certificates.total() > 50, str(tally)


def test_the_files_are_of_all_kinds() -> None:
    """What the sweep is there for is in it, and the same in every run."""
    traps, types, operators = Counter(), Counter(), Counter()
    for seed in range(400):
        made = graph(seed)
        traps.update(made.traps)
        types[made.model.graph.input[0].type.tensor_type.elem_type] += 1
        operators.update({node.op_type for node in made.model.graph.node})
    assert types.keys() == set(TYPES.values())
    assert min(traps[name] for name in (
        "limits", "cast", "batch axis", "extreme constant", "spectrum", "shared initializer",
        "shared value", "cancelling",
    )) >= 8, traps  # fmt: skip
    assert len(operators) > 60
    one, same = graph(7), graph(7)
    assert one.model == same.model


def test_both_levels_of_onnxruntime_run_them() -> None:
    for seed in range(10):
        made = graph(seed)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(
            made.model.graph.input[0].type.tensor_type.elem_type
        )
        x = np.full((1, *made.shape), 0.5, dtype)
        plain, fused = (
            session(made.model, optimised=level).run(None, {"x": x})[0] for level in (False, True)
        )
        assert plain.shape == fused.shape
