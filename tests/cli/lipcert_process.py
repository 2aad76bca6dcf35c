"""The command line in a process of its own, as users meet it."""

import os
import subprocess
import sys
from pathlib import Path

import lipcert

ROOT = Path(__file__).resolve().parents[2]
# Where the lipcert that is tested lies: here, or where it was installed.
PACKAGES = Path(lipcert.__file__).resolve().parents[1]


def environment(**variables: str) -> dict[str, str]:
    """Without the settings of whoever runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LIPCERT_", "GITHUB_"))}
    return kept | {"PYTHONPATH": str(PACKAGES), "COLUMNS": "100"} | variables


def lipcert_process(
    *arguments: object, cwd: Path, timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lipcert", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=timeout,
        check=False,
    )


STAGES = ("reading ", "comparing ", "bounding ", "certifying ", "auditing ")


def the_failure(errors: str) -> str:
    """The last line; those before it say what was being done."""
    *stages, line = errors.splitlines()
    assert all(stage.startswith(STAGES) for stage in stages), errors
    return line
