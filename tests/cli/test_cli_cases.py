"""Small inputs after public bug reports: every command gives what its user would expect.

The cases are no part of the project; where they are absent this is skipped. What is expected is an
exit code, and what is said, for those commands that do not simply succeed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lipcert.cli.main import main

SHARED = Path(os.environ.get("LIPCERT_SHARED_DIR", "absent"))
CASES = sorted(path.name for path in (SHARED / "cases").glob("*") if path.is_dir())
# By case, and by the number of the command: the exit code, and what is said.
EXPECTED: dict[str, dict[int, tuple[int, str]]] = {
    "affine-not-read": {
        5: (3, "QuantizeLinear"),
        7: (3, "1 obstacle.*jumps"),
        8: (3, "onnxruntime's optimiser"),
        9: (0, "clean accuracy"),
    },
    "bgr-caffe": {
        0: (0, "with --channels bgr"),
        1: (2, "--channels bgr"),
        2: (0, r"clean accuracy *│ 100\.00 %"),
    },
    "binary-one-output": {
        0: (0, "class 1 where it is above 0.5,"),
        1: (0, r"clean accuracy *│ 100\.00 %"),
        2: (0, "class 1 where it is above 0,"),
        3: (0, r"clean accuracy *│ 100\.00 %"),
        4: (2, "--train-data"),
    },
    "float16": {0: (0, "float16"), 2: (0, "float16")},
    "folders-0-to-10": {
        0: (0, r"clean accuracy *│ 100\.00 %"),
        1: (0, r"clean accuracy *│ 100\.00 %"),
    },
    "free-height-width": {
        0: (3, "leaves height, width open.*--input-shape"),
        1: (0, "free extents of the input 'image' are those of the data"),
        2: (3, "--input-shape"),
    },
    "npz-as-people-have-them": {7: (2, "--labels")},
    "several-outputs": {0: (3, "--output-name"), 1: (3, "--output-name"), 4: (0, "cut off")},
    "tabular-signals-volumes": {
        0: (0, "the data's own unit"),
        1: (3, "with --range=-6,9, 48 of 48"),
        7: (2, "--data-layout nchw or --data-layout nhwc"),
        8: (0, "with --layout HWC, 48 of 48"),
    },
    "transform-input": {
        0: (0, "begins with a scale of 0.8"),
        1: (0, r"of 48 samples would be classified"),
    },
}
pytestmark = pytest.mark.skipif(not CASES, reason="LIPCERT_SHARED_DIR names no folder with cases/")


def commands(folder: Path) -> list[str]:
    return [line for line in (folder / "command.txt").read_text().splitlines() if line.strip()]


@pytest.mark.parametrize("name", CASES)
def test_a_case_gives_what_its_user_would_expect(name, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cases" / name
    shutil.copytree(SHARED / "cases" / name, folder)
    folder.chmod(0o755)
    for part in ("models", "data"):
        (tmp_path / part).symlink_to(SHARED / part)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("LIPCERT_DATA_DIR", str(SHARED / "data"))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    package = str(Path(sys.modules["lipcert"].__file__).parents[1])
    given = os.environ | {"PYTHONPATH": package}
    made = subprocess.run([sys.executable, "make.py"], capture_output=True, text=True, env=given,
                          check=False)  # fmt: skip
    assert made.returncode == 0, made.stderr
    for number, line in enumerate(commands(folder)):
        words = shlex.split(line)
        if words[0] == "lipcert":
            code = main(words[1:])
            told = capsys.readouterr()
            said = " ".join((told.out + told.err).split())
        else:  # under another environment
            line = line.replace("PYTHONPATH=shim", f"PYTHONPATH=shim:{package}")
            line = re.sub(r"\blipcert (?=certify|finetune|doctor)", "python -m lipcert ", line)
            line = line.replace("python ", f"{sys.executable} ")
            ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=given,
                                 check=False)  # fmt: skip
            code, said = ran.returncode, " ".join((ran.stdout + ran.stderr).split())
        expected, pattern = EXPECTED.get(name, {}).get(number, (0, ""))
        assert code == expected, f"{line}: {said}"
        assert re.search(pattern, said), f"{line}: {said}"
        assert "Traceback" not in said
        assert "internal error" not in said


def test_what_is_expected_is_of_cases_that_there_are():
    assert set(EXPECTED) <= set(CASES)
