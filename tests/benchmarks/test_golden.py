"""The golden runs themselves: what they keep, and that they name every difference."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden import IGNORED, compare, flat, kept

SCRIPT = Path(__file__).parent / "golden.py"


def golden(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LIPCERT_SHARED_DIR": str(cwd / "none")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_run_is_equal_to_itself_and_a_changed_one_is_named(tmp_path):
    for folder in ("one", "two"):
        ran = golden("write", folder, "--only", "digits.local-float64", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    same = golden("compare", "one", "two", cwd=tmp_path)
    assert (same.returncode, same.stdout.splitlines()[0]) == (
        0, "1 cases, 0 differences, the largest relative change 0.00e+00",
    )  # fmt: skip
    path = tmp_path / "two" / "digits.local-float64.json"
    record = json.loads(path.read_text())
    assert record["exit"] == 0
    assert record["samples"][0]["radius"] > 0
    assert not IGNORED & {key.split(".")[-1] for key, _ in flat(record)}
    record["samples"][0]["radius"] *= 1.001
    path.write_text(json.dumps(record))
    changed = golden("compare", "one", "two", cwd=tmp_path)
    assert changed.returncode == 1
    assert "digits.local-float64: samples[0].radius: " in changed.stdout
    assert "(+1.00e-03)" in changed.stdout


@pytest.mark.parametrize(
    ("before", "after", "differences"),
    [
        ({"a": 1.0}, {"a": 1.0}, 0),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": 0}]}, 1),
        ({"a": 1, "b": 2}, {"b": 2}, 1),
        ({"a": []}, {"a": [1, 2]}, 3),
        ({"a": True}, {"a": 2}, 1),
        ({"a": "certified"}, {"a": "unknown"}, 1),
    ],
)
def test_every_difference_counts(tmp_path, before, after, differences):
    for name, record in (("one", before), ("two", after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "case.json").write_text(json.dumps(record))
    assert compare(tmp_path / "one", tmp_path / "two", "") == differences
    assert compare(tmp_path / "one", tmp_path / "two", "another") == 0


def test_a_case_that_is_missing_is_a_difference(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "case.json").write_text('{"a": 1, "b": 2}')
    assert compare(tmp_path / "one", tmp_path / "two", "") == 2


def test_of_seconds_only_the_rungs_are_kept():
    record = {"seconds": 3.0, "radius": 0.5, "rungs": {"local": 0.1, "dual": 0.2}}
    assert kept([record]) == [{"radius": 0.5, "rungs": ["local", "dual"]}]
