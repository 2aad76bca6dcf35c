"""The archive of the sources holds the whole project, and so does the wheel what it needs."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", ".github", "examples", "lipcert", "tests")
BESIDE = (".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "constraints.txt", "pyproject.toml")
BUILD = """
import sys
sys.path.insert(0, ".ci")
import backend
getattr(backend, sys.argv[1])(sys.argv[2])
"""


def of_the_project() -> set[str]:
    found = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
    made = {"__pycache__", ".hypothesis"}
    return {
        str(path.relative_to(ROOT)) for path in found if not made.intersection(path.parts)
    } | set(BESIDE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project alone, so that no run leaves its traces in it."""
    pytest.importorskip("setuptools", minversion="77")
    for name in of_the_project():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path / "copy"


def built(copy: Path, kind: str) -> Path:
    place = copy.parent / "built"
    command = [sys.executable, "-c", BUILD, kind, str(place)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = place.iterdir()
    return archive


def test_nothing_of_the_project_is_missing_in_the_sources(copy: Path) -> None:
    with tarfile.open(built(copy, "build_sdist")) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert of_the_project() <= there


def test_the_wheel_has_the_package_the_examples_and_their_licences(copy: Path) -> None:
    with zipfile.ZipFile(built(copy, "build_wheel")) as archive:
        there = set(archive.namelist())
    package = {name for name in of_the_project() if name.startswith("lipcert/")}
    assert package <= there
    shared = {name.partition("/data/share/lipcert/")[2] for name in there}
    examples = {name for name in of_the_project() if name.startswith("examples/")}
    assert examples | {"constraints.txt"} <= shared
    assert any(name.endswith("licenses/lipcert/data/digits.LICENSE") for name in there)
    assert not any(name.startswith(("tests/", "backend")) for name in there)
