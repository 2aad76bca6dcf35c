"""Random ONNX files certified by all methods and attacked in onnxruntime, as many as asked.

LIPCERT_FUZZ_FILES=2000 pytest -m benchmark tests/benchmarks/test_benchmark_files.py -s

Every seed is one file, and gives the same in every run. ``LIPCERT_FUZZ_FIRST`` is the first seed:
where a run was stopped, or another one beside it begins.
"""

import os
import time
from pathlib import Path

import pytest
from file_fuzz import Tally, fuzz

pytestmark = pytest.mark.benchmark

FILES = int(os.environ.get("LIPCERT_FUZZ_FILES", "2000"))
FIRST = int(os.environ.get("LIPCERT_FUZZ_FIRST", "0"))
_EVERY = 60.0


def test_no_certificate_of_a_file_is_broken(tmp_path: Path) -> None:
    tally, printed = Tally(), time.monotonic()
    try:
        for seed in range(FIRST, FIRST + FILES):
            fuzz(seed, tmp_path, tally)
            if time.monotonic() - printed >= _EVERY:
                printed = time.monotonic()
                print(f"seed {seed}: {len(tally.broken)} broken", flush=True)
    finally:
        # What was done counts even where the run is stopped.
        print(tally, flush=True)
    assert not tally.broken
