"""The mutation corpus at any size, from any first seed.

LIPCERT_HOSTILE_FILES=10000 pytest -m benchmark tests/benchmarks/test_benchmark_hostile.py -s
"""

import os
import time
from pathlib import Path

import pytest
from hostile import KINDS, offered

pytestmark = pytest.mark.benchmark

FILES = int(os.environ.get("LIPCERT_HOSTILE_FILES", "2000"))
FIRST = int(os.environ.get("LIPCERT_HOSTILE_SEED", "1000000"))


@pytest.mark.parametrize("name", KINDS)
def test_mutations_are_loaded_or_refused(name: str, tmp_path: Path) -> None:
    begun = time.process_time()
    outcomes = offered(name, range(FIRST, FIRST + FILES), tmp_path)
    told = ", ".join(f"{count} {kind}" for kind, count in outcomes.items())
    print(f"\n{name}: {FILES} files, {told}; {time.process_time() - begun:.0f} CPU-seconds")
    assert outcomes.total() == FILES
