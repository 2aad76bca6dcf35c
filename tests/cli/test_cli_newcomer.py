"""README and examples as a newcomer reads them: every command, line by line, in a fresh place.

What is shown in a block or in a line of text is run as it stands, in the order of the page, but for
what ``SHORTER`` shortens and ``ELSEWHERE`` leaves out, each with its reason.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lipcert_process import ROOT, environment

PAGES = ("README.md", "examples/README.md", "examples/finetune-digits/README.md")
# What is run in place of what is written, so that a test takes seconds.
SHORTER = {
    "lipcert demo": "lipcert demo --limit 5",
    "--eps 0.3 --limit 100": "--eps 0.3 --limit 5",
    "--epochs 60 --limit 100": "--epochs 2 --train-limit 320 --limit 5",
    "--data digits --eps 0.3 --seed 0": "--data digits --eps 0.3 --seed 0 --limit 5",
    # No pictures of CIFAR-10 are in the project.
    "--data cifar10 --eps 36/255": "--data digits --eps 36/255 --limit 20",
    "audit results --model model.onnx": "audit results --model model.onnx --samples 3",
}
# What is not run, and why.
ELSEWHERE = {
    "lipcert COMMAND --help": "COMMAND stands for each of them; test_cli_startup.py asks all",
    "pytest -m benchmark": "benchmarks take minutes",
    "pip install -c constraints.txt '.[test]'": "it is how this test came to run",
    "python examples/train_digits.py": "trains for minutes; it made examples/digits.onnx",
    "torchrun --nproc-per-node 4": "shows where options go; test_train_processes runs two of them",
    "lipcert merge shard-*": "its shards come from several machines; tests/merging joins some",
    "lipcert certify … --cluster auto": "needs machines; test_cluster.py starts some",
    "pip install '.[": "extras, which came with the tests",
}
# What a newcomer has besides: a model, an index of packages, the results of the release before.
PIP = """#!/bin/sh
echo "pip $*" >> pip.log
case "$*" in
  "install -c constraints.txt torch==2.13.0+cpu") exit "$NO_CPU_INDEX" ;;
  "install -c constraints.txt .") exit 0 ;;
  *) echo "pip $*: not in a test" >&2; exit 1 ;;
esac
"""


def commands(page: str) -> list[str]:
    """Every command of a page, in its order: of blocks, and whole ones in the text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for block, span in re.findall(r"^```sh\n(.*?)^```|`((?:lipcert|pip|pytest|python|torchrun) "
                                  r"[^`]+)`", text, re.M | re.S):  # fmt: skip
        if span:
            found.append(" ".join(span.split()))
            continue
        block = re.sub(r"^#.*\n", "", block, flags=re.M)
        lines = re.sub(r"(\\|\|\|)\n", lambda m: m[1].strip("\\") + " ", block).splitlines()
        found += [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip()]
    return found


def left_out(command: str) -> bool:
    """Beside those with a reason: the mere names of commands that need more."""
    name_alone = re.fullmatch(r"lipcert (\w+)", command)
    if name_alone and name_alone[1] not in ("demo", "doctor"):
        return True
    return any(command.startswith(start) for start in ELSEWHERE)


def shortened(command: str) -> str:
    for written, run in SHORTER.items():
        command = re.sub(rf"{re.escape(written)}(?![\w.])", run, command)
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of the project, a home without settings, and lipcert as if it were installed."""
    place = tmp_path_factory.mktemp("newcomer") / "lipcert"
    shutil.copytree(ROOT / "examples", place / "examples")
    shutil.copy(ROOT / "constraints.txt", place)
    shutil.copy(ROOT / "examples" / "digits.onnx", place / "model.onnx")
    (place / ".bin").mkdir()
    for name, script in (
        ("lipcert", f'#!/bin/sh\nexec "{sys.executable}" -m lipcert "$@"\n'),
        ("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
        ("pip", PIP),
    ):
        (place / ".bin" / name).write_text(script)
        (place / ".bin" / name).chmod(0o755)
    return place


def follow(clone: Path, folder: Path, command: str, **variables: str) -> None:
    path = f"{clone / '.bin'}{os.pathsep}{os.environ['PATH']}"
    home = clone.parent / "home"
    home.mkdir(exist_ok=True)
    given = {"NO_CPU_INDEX": "0", "PATH": path, "HOME": str(home)} | variables
    ran = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True,
        env=environment(**given), timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    assert "Traceback" not in ran.stderr


def test_the_readme_runs_line_by_line(clone):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (training,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    trained = False
    for command in commands("README.md"):
        if left_out(command):
            continue
        if "own.onnx" in command and not trained:
            (clone / "train.py").write_text(training, encoding="utf-8")
            follow(clone, clone, "python -W ignore train.py")
            trained = True
        if "--baseline last" in command:
            shutil.copytree(clone / "results", clone / "last")
        follow(clone, clone, shortened(command))
    assert (clone / "results" / "certificate.json").is_file()
    assert (clone / "report.html").is_file()
    assert (clone / "tuned" / "model.onnx").is_file()


@pytest.mark.parametrize("page", PAGES[1:])
def test_the_pages_of_the_examples_run_line_by_line(clone, page):
    inside = "finetune-digits" in page
    folder = clone / "examples" / "finetune-digits" if inside else clone
    for command in commands(page):
        if left_out(command):
            continue
        if inside and "--output tuned" in command:
            command += " --overwrite"  # the folder that it left is there already
            shutil.copytree(folder, clone / "kept")
        elif inside and "compare" in command:
            # From here on it is said of what was kept.
            shutil.rmtree(folder)
            shutil.copytree(clone / "kept", folder)
        follow(clone, folder, shortened(command))


def test_without_the_index_of_cpu_builds_nothing_large_is_downloaded(clone):
    line = next(command for command in commands("README.md") if "+cpu" in command)
    path = f"{clone / '.bin'}{os.pathsep}{os.environ['PATH']}"
    (clone / "pip.log").unlink(missing_ok=True)
    ran = subprocess.run(
        ["bash", "-e", "-c", line], cwd=clone, capture_output=True, text=True, check=False,
        env=environment(PATH=path, NO_CPU_INDEX="1"),
    )  # fmt: skip
    assert ran.returncode == 1
    assert (clone / "pip.log").read_text().splitlines() == [
        "pip install -c constraints.txt torch==2.13.0+cpu"
    ]


def test_the_cpu_build_is_the_one_that_is_tested_with():
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert any(
        f"pip install -c constraints.txt {pin}+cpu" in commands("README.md")[0] for pin in pinned
    )


def test_nothing_is_shortened_or_left_out_that_is_not_there():
    everything = "\n".join(command for page in PAGES for command in commands(page))
    for written in (*SHORTER, *ELSEWHERE):
        assert written in everything, written


def test_pages_of_examples_are_all_followed():
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("*.md")}
    assert there | {"README.md"} == set(PAGES)
