"""The examples, run step by step."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lipcert_process import ROOT, environment
from report import made

EXAMPLES = ROOT / "examples"


# What stands in for pip: it installs nothing but lipcert, which is there.
PIP = """#!/bin/sh
[ "$*" = "install git+REPOSITORY" ] || { echo "pip $*: not in a test" >&2; exit 1; }
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A user's repository: a model, and lipcert installed."""
    shutil.copy(EXAMPLES / "digits.onnx", tmp_path / "model.onnx")
    (tmp_path / ".bin").mkdir()
    lipcert = f'#!/bin/sh\nexec "{sys.executable}" -m lipcert "$@"\n'
    for name, script in (("lipcert", lipcert), ("pip", PIP)):
        command = tmp_path / ".bin" / name
        command.write_text(script)
        command.chmod(0o755)
    return tmp_path


def shell(project: Path, script: str, variables: dict[str, str]) -> subprocess.CompletedProcess:
    path = f"{project / '.bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        # As GitHub and GitLab run their steps.
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=project,
        capture_output=True,
        text=True,
        env=environment(PATH=path, **variables),
        timeout=120,
        check=False,
    )


def run_workflow(project: Path, workflow: dict, **variables: str) -> list[int]:
    """The exit codes of the steps that run something, each in a shell of its own; after a failure
    only those that run always. Steps that use an action are left to GitHub."""
    assert {"name", True, "jobs"} <= set(workflow), "YAML reads the key on as true"
    (job,) = workflow["jobs"].values()
    assert job["runs-on"]
    codes: list[int] = []
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert set(step) <= {"name", "run", "uses", "with", "if", "env"}
        assert step.get("if", "always()") == "always()"
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
        elif "if" in step or not any(codes):
            levels = (workflow, job, step)
            set_there = {k: str(v) for level in levels for k, v in level.get("env", {}).items()}
            ran = shell(project, step["run"], set_there | variables)
            assert "Traceback" not in ran.stderr
            codes.append(ran.returncode)
    return codes


def the_workflow() -> str:
    return (EXAMPLES / "github-workflow.yml").read_text()


def test_the_github_workflow_runs_step_by_step(project, tmp_path):
    workflow = yaml.safe_load(the_workflow())
    summary = tmp_path / "summary.md"
    codes = run_workflow(project, workflow, GITHUB_STEP_SUMMARY=str(summary))
    (job,) = workflow["jobs"].values()
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    assert codes == [0] * len(scripts)
    assert any("lipcert certify" in script for script in scripts)
    assert "✅ pass" in summary.read_text()
    shown = re.findall(r"--to (\S+)", " ".join(scripts))
    assert all((project / file).stat().st_size > 100 for file in shown)
    kept = [step["with"]["path"].split() for step in job["steps"] if "with" in step
            if "path" in step["with"]]  # fmt: skip
    assert all((project / path).exists() for paths in kept for path in paths)


def test_the_workflow_fails_where_a_gate_does_and_still_reports(project, tmp_path):
    workflow = yaml.safe_load(the_workflow())
    stricter = {"LIPCERT_MIN_CLEAN": "1", "LIPCERT_METHOD": "global"}
    summary = str(tmp_path / "s.md")
    codes = run_workflow(project, workflow, GITHUB_STEP_SUMMARY=summary, **stricter)
    assert codes == [0, 0, 1, 0]
    statement = json.loads((project / "report" / "attestation.json").read_text())
    assert statement["predicate"]["result"] == "FAILED"
    assert "<failure" in (project / "report" / "gates.xml").read_text()


def test_a_workflow_that_is_wrong_is_found_out(project):
    text = the_workflow()
    for right, wrong in (
        ("certify model", "certfy model"),
        ("install git+REPOSITORY", "install lipcrt"),
    ):
        codes = run_workflow(project, yaml.safe_load(text.replace(right, wrong)))
        assert any(codes)
    with pytest.raises(AssertionError):
        run_workflow(project, yaml.safe_load(text.replace("uses:", "use:")))


def test_the_matrix_of_shards_is_merged_and_gated(project):
    jobs = yaml.safe_load((EXAMPLES / "github-shards.yml").read_text())["jobs"]
    numbers = jobs["certify"]["strategy"]["matrix"]["shard"]
    (command,) = [s["run"] for s in jobs["certify"]["steps"] if "certify" in s.get("run", "")]
    assert f"/{len(numbers)} " in command
    for number in numbers:
        line = command.replace("${{ matrix.shard }}", str(number)).strip()
        ran = shell(project, line, {"LIPCERT_METHOD": "local"})
        assert ran.returncode == 0, ran.stderr
        # As artifacts come down, each in a folder of its name.
        (project / "shards").mkdir(exist_ok=True)
        (project / "shard").rename(project / "shards" / f"shard-{number}")
    for step in jobs["merge"]["steps"]:
        if step.get("run", "").startswith("lipcert"):
            ran = shell(project, step["run"], {})
            assert ran.returncode == 0, ran.stderr
    assert json.loads((project / "results" / "certificate.json").read_text())["summary"]["n"] == 40


def test_the_slurm_array_certifies_and_goes_on(project):
    script = (EXAMPLES / "slurm-array.sh").read_text()
    few = {"LIPCERT_METHOD": "local", "LIPCERT_LIMIT": "9", "SLURM_ARRAY_TASK_COUNT": "2",
           "SLURM_CPUS_PER_TASK": "1"}  # fmt: skip
    for number in ("1", "2", "2"):  # the last one was requeued
        ran = shell(project, script, few | {"SLURM_ARRAY_TASK_ID": number})
        assert ran.returncode == 0, ran.stderr
    merge = re.search(r"when all have ended: (lipcert merge .*)", script)[1]
    ran = shell(project, merge, {})
    assert ran.returncode == 0, ran.stderr
    assert json.loads((project / "results" / "certificate.json").read_text())["summary"]["n"] == 9


def test_the_gitlab_job_runs_step_by_step(project):
    (job,) = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text()).values()
    for line in (*job["before_script"], *job["script"], *job["after_script"]):
        ran = shell(project, line, job["variables"] | {"LIPCERT_METHOD": "local"})
        assert ran.returncode == 0, ran.stderr
    for path in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert (project / path).exists()


def test_the_pre_commit_hook_gates_a_committed_certificate(project):
    content = yaml.safe_load((EXAMPLES / "pre-commit-config.yaml").read_text())
    (hook,) = content["repos"][0]["hooks"]
    assert {"id", "name", "language", "entry"} <= set(hook)
    absent = shell(project, hook["entry"], {})
    assert absent.returncode == 2
    assert re.search(hook["files"], "results/certificate.json")
    results = made.plain()
    made.save(project / "results", results)
    failed = shell(project, hook["entry"], {})
    assert (failed.returncode, failed.stdout.count("FAIL  ")) == (1, 1)
    assert failed.stdout.startswith("FAIL: 1 of 2 gates failed")
    for row in results.samples[:200]:
        if row["verdict"] != "misclassified":
            row |= {"radius": 0.4, "certified": list(made.EPS), "verdict": "certified"}
    better = made.Results(made.certificate(results.samples), results.samples)
    made.save(project / "results", better)
    held = shell(project, hook["entry"], {})
    assert (held.returncode, held.stdout.count("pass")) == (0, 2)


def test_the_python_example_runs(project):
    command = [sys.executable, str(EXAMPLES / "gate_in_python.py")]
    ran = subprocess.run(
        command, cwd=project, capture_output=True, text=True, env=environment(), check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "pass: certified accuracy" in ran.stdout or "warn: certified accuracy" in ran.stdout
    assert (project / "report.html").read_text().startswith("<!doctype html>")
