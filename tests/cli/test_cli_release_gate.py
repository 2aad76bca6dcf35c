"""Gates, reports, comparisons, data and doctor, each through a process of its own."""

import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from lipcert_process import ROOT, environment, lipcert_process, the_failure
from report import made

from lipcert.report import json_file
from lipcert.report.numbers import percent

CERTIFY = (
    "certify",
    "digits.onnx",
    "--data",
    "digits",
    "--eps",
    "0.1,0.3",
    "--limit",
    "24",
    "--method",
    "local",
)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with a model, its results, and other results to go with them."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copy(ROOT / "examples" / "digits.onnx", folder)
    run = lipcert_process(*CERTIFY, "--output", "results", "--quiet", cwd=folder)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    made.save(folder / "full", made.full())
    made.save(folder / "estimate", made.estimated())
    other = made.plain(200)
    other.certificate["data"]["sha256"] = "f" * 64
    made.save(folder / "other", other)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "certificate.json").write_text('{"lipcert": "0.1.0"}')
    return folder


def certificate(here: Path) -> dict:
    return json.loads((here / "results" / "certificate.json").read_text())


def test_a_run_s_files_are_what_the_schemas_say(here):
    jsonschema.validate(certificate(here), json_file.schema("certificate"))
    for line in (here / "results" / "samples.jsonl").read_text().splitlines():
        jsonschema.validate(json.loads(line), json_file.schema("sample"))


def test_a_gate_that_holds_ends_with_0_and_says_why(here):
    run = lipcert_process("gate", "results", "--min-certified", "0.1=0", cwd=here)
    verdict, line = run.stdout.splitlines()
    count = certificate(here)["summary"]["certified_count"]["0.1"]
    assert run.returncode == 0
    assert run.stderr == ""
    share = f"{count}/24 = {percent(count, 24)} ≥ 0 %"
    assert verdict == "PASS: 1 of 1 gates held"
    assert line.startswith(f"pass  certified accuracy at eps 0.1: {share}; Clopper-Pearson")


def test_a_gate_that_fails_ends_with_1_and_a_warning_with_0(here):
    failed = lipcert_process(
        "gate", "results/certificate.json", "--min-clean", "1", "--min-certified", "0.1=1",
        "--warn-radius-median", "9", "--json", cwd=here,
    )  # fmt: skip
    outcomes = json.loads(failed.stdout)
    assert failed.returncode == 1
    assert [outcome["status"] for outcome in outcomes] == ["fail", "fail", "warn"]
    (line,) = failed.stderr.splitlines()
    assert line.startswith("lipcert: 2 of 3 gates failed; the first is certified accuracy at eps")
    assert "< 100 %" in line
    warned = lipcert_process("gate", "results", "--warn-clean", "100%", cwd=here)
    assert warned.returncode == 0
    verdict, line = warned.stdout.splitlines()
    assert verdict == "WARN: no gate failed, 1 of 1 warn"
    assert line.startswith("WARN  clean accuracy: ")


def test_quiet_says_only_what_failed(here):
    run = lipcert_process("gate", "results", "--min-clean", "1", "--quiet", cwd=here)
    assert (run.returncode, run.stdout) == (1, "")
    assert len(run.stderr.splitlines()) == 1


def test_a_baseline_is_the_run_itself_and_an_estimate_never_passes(here):
    same = ("--baseline", "results/certificate.json", "--max-drop", "0pp")
    run = lipcert_process("gate", "results", *same, cwd=here)
    assert (run.returncode, run.stdout.count("0.00 pp ≤ 0 pp")) == (0, 2)
    estimate = lipcert_process("gate", "estimate", "--min-clean", "0", cwd=here)
    assert (estimate.returncode, estimate.stdout) == (3, "")
    assert "ESTIMATE" in estimate.stderr


def test_certify_gates_what_it_certifies_and_writes_the_summary(here, tmp_path):
    summary, log = tmp_path / "summary.md", tmp_path / "logs" / "run.log"
    run = lipcert_process(
        *CERTIFY, "--min-clean", "1.0", "--warn-certified", "0.99", "--json", "--verbose",
        "--log-file", log, cwd=here, GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert run.returncode == 1
    assert json.loads(run.stdout)["summary"]["n"] == 24
    assert re.search(r"^WARN  certified accuracy at eps 0\.3: ", run.stderr, re.M)
    assert re.search(r"^FAIL  clean accuracy: .*< 100 %", run.stderr, re.M)
    assert run.stderr.splitlines()[-1].startswith("lipcert: 1 of 2 gates failed; clean accuracy")
    assert "❌ fail | clean accuracy" in summary.read_text()
    # Every station, with its time.
    assert "model: digits.onnx" in run.stderr
    assert re.search(r"^\d{4}-\d\d-\d\d [\d:,]+ INFO lipcert: data: digits", log.read_text(), re.M)


def test_a_failure_is_in_the_log_file_too(here, tmp_path):
    log = tmp_path / "run.log"
    arguments = ("certify", "absent.onnx", *CERTIFY[2:], "--log-file", log)
    run = lipcert_process(*arguments, cwd=here)
    assert run.returncode == 2
    assert "absent.onnx" in run.stderr
    assert "ERROR lipcert: error: " in log.read_text()


@pytest.mark.parametrize(
    ("format", "start"),
    [
        ("html", "<!doctype html>"),
        ("markdown", "## digits.onnx on digits test"),
        ("junit", "<?xml version="),
        ("badge", '{\n  "schemaVersion": 1,'),
        ("csv", "index,label,prediction,verdict"),
        ("model-card", "---\nmodel-index:"),
        ("attestation", '{\n  "_type": "https://in-toto.io/Statement/v1",'),
    ],
)
def test_reports_of_a_real_run(here, tmp_path, format, start):
    summary = tmp_path / "summary.md"
    arguments = ("report", "results", "--format", format, "--min-certified", "0.5")
    run = lipcert_process(*arguments, cwd=here, GITHUB_STEP_SUMMARY=str(summary))
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(start)
    assert summary.exists() == (format == "markdown")


def test_a_report_may_go_to_a_file_in_a_new_folder(here, tmp_path):
    file = tmp_path / "new" / "badge.json"
    run = lipcert_process("report", "results", "--format", "badge", "--to", file, cwd=here)
    assert (run.returncode, run.stdout) == (0, "")
    assert json.loads(file.read_text())["schemaVersion"] == 1


@pytest.mark.parametrize("format", ["text", "markdown", "html", "json"])
def test_comparisons_of_a_real_run(here, format):
    shutil.copytree(here / "results", here / "newer", dirs_exist_ok=True)
    run = lipcert_process("compare", "results", "newer", "--format", format, cwd=here)
    assert (run.returncode, run.stderr) == (0, "")
    for folder in ("results", "newer"):
        assert f"digits.onnx in {folder}" in run.stdout
    assert "gained" in run.stdout


def test_data_is_listed_and_verified(here, tmp_path):
    listed = lipcert_process("data", "list", "--data-dir", tmp_path, cwd=here)
    assert listed.returncode == 0
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert ["digits", "test", "embedded"] in rows
    assert {row[0] for row in rows} == {
        "digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "gtsrb",
    }  # fmt: skip
    for command in ("verify", "fetch"):
        run = lipcert_process("data", command, "digits", cwd=here)
        assert run.returncode == 0
        assert certificate(here)["data"]["sha256"] in run.stdout


def test_data_that_is_not_there_ends_with_3_and_tells_where_to_put_it(here, tmp_path):
    run = lipcert_process(
        "data", "verify", "cifar10", "--data-dir", tmp_path, cwd=here, XDG_CACHE_HOME=str(tmp_path)
    )
    assert (run.returncode, run.stdout) == (3, "")
    assert len(run.stderr.splitlines()) == 1
    assert "--data-dir" in run.stderr


def test_the_doctor_finds_versions_devices_data_and_configuration(here):
    run = lipcert_process("doctor", cwd=here)
    assert (run.returncode, run.stderr) == (0, "")
    for part in ("lipcert", "torch", "devices", "cache", "data: cifar10 test", "configuration"):
        assert re.search(rf"^{part}  +\S", run.stdout, re.M)
    found = json.loads(lipcert_process("doctor", "--json", cwd=here).stdout)
    assert found["problems"] == []
    assert found["devices"].startswith("cpu with")


def test_the_doctor_names_what_is_broken(here, tmp_path):
    (tmp_path / "safetensors.py").write_text("raise ImportError('built for another machine')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    run = lipcert_process("doctor", cwd=here, PYTHONPATH=path)
    assert run.returncode == 3
    assert "safetensors cannot be imported" in run.stderr
    assert "pip" in run.stderr


def test_a_model_is_inspected(here):
    run = lipcert_process("inspect", "digits.onnx", "--json", cwd=here)
    assert run.returncode == 0
    assert json.loads(run.stdout)["norms"]["product"] > 0
    assert "Operator norms" in run.stderr


FAULTY = """
from lipcert.data import Dataset, load_dataset

class Faulty(Dataset):
    def pixels(self, indices):
        raise RuntimeError("of two\\nlines")

def data(split):
    good = load_dataset("digits", split=split)
    return Faulty(good.name, good.split, good.images, good.labels, good.classes, good.source)
"""


def test_a_defect_ends_with_4_in_one_line(here):
    (here / "faulty.py").write_text(FAULTY)
    arguments = ("certify", "digits.onnx", "--data", "faulty:data", "--eps", "0.1")
    run = lipcert_process(*arguments, cwd=here)
    assert (run.returncode, run.stdout) == (4, "")
    line = the_failure(run.stderr)
    assert line.startswith("lipcert: internal error: RuntimeError: of two lines")


COMMANDS = (
    ("certify",), ("gate",), ("report",), ("compare",), ("inspect",), ("doctor",),
    ("data", "list"), ("data", "fetch"), ("data", "verify"),
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example(here, command):
    run = lipcert_process(*command, "--help", cwd=here)
    assert run.returncode == 0
    assert re.search(rf"Examples?:\s+lipcert {' '.join(command)}", run.stdout)


def test_completion_for_shells_is_there(here):
    for shell, word in (("bash", "complete "), ("zsh", "compdef"), ("fish", "complete ")):
        script = lipcert_process(cwd=here, _LIPCERT_COMPLETE=f"source_{shell}")
        assert word in script.stdout
    asked = lipcert_process(
        cwd=here, _LIPCERT_COMPLETE="complete_bash", COMP_WORDS="lipcert ga", COMP_CWORD="1"
    )
    assert asked.stdout.split() == ["gate"]


def on_a_terminal(arguments: list[str], cwd: Path, **variables: str) -> str:
    """What a command writes to a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lipcert", *arguments],
        cwd=cwd,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm-256color", **variables),
    )
    os.close(slave)
    parts = []
    try:
        while part := os.read(master, 65536):
            parts.append(part)
    except OSError:  # how Linux tells that the other end is closed
        assert process.wait(timeout=60) == 0
    os.close(master)
    return b"".join(parts).decode()


def test_colours_are_for_terminals_that_want_them(here):
    colour = re.compile(r"\x1b\[(?:\d+;)*3\d")
    assert colour.search(on_a_terminal(["gate", "--help"], here))
    assert not colour.search(on_a_terminal(["gate", "--help"], here, NO_COLOR="1"))


def test_progress_shows_rate_and_time_left_on_a_terminal(here):
    shown = on_a_terminal([*CERTIFY, "--batch-size", "4"], here)
    assert re.search(r"\d+/24", shown)
    assert "/s" in shown
    assert re.search(r"\d:\d\d:\d\d", shown)


WRONG = [
    (("gate",), 2, "CERTIFICATE"),
    (("gate", "results"), 2, r"--min-certified 0\.60"),
    (("gate", "absent", "--min-clean", "0"), 2, "name the --output"),
    (("gate", ".", "--min-clean", "0"), 2, r"no certificate\.json; name"),
    (("gate", "damaged", "--min-clean", "0"), 3, "is missing"),
    (("gate", "digits.onnx", "--min-clean", "0"), 3, "is no record"),
    (("gate", "results", "--min-certified", "60"), 2, "60%"),
    (("gate", "results", "--min-certified", "36/255=0.6"), 2, "choose one of 0.1, 0.3"),
    (("gate", "results", "--min-certified", "0.3=0.6,0.30=0.5"), 2, "keep one"),
    (("gate", "results", "--min-certified", "=0.6"), 2, "36/255"),
    (("gate", "results", "--warn-clean", "high"), 2, "--warn-clean.*such as"),
    (("gate", "results", "--min-radius-median", "-1"), 2, r"such as 0\.14"),
    (("gate", "results", "--max-drop", "1pp"), 2, "--baseline"),
    (("gate", "results", "--baseline", "results"), 2, "--max-drop 0.5pp"),
    (("gate", "results", "--baseline", "results", "--max-drop", "1%"), 2, "such as 0.5pp"),
    (("gate", "results", "--baseline", "gone", "--max-drop", "1pp"), 2, "--baseline gone.*name"),
    (
        ("gate", "full", "--baseline", "other", "--max-drop", "1pp"),
        2,
        r"another data digest, another sample ids( \(.*\))?; certify both on the same samples",
    ),
    (
        ("gate", "results", "--baseline", "full", "--max-drop", "1pp"),
        2,
        r"data digest, another eps \(0\.1,36/255,0\.3, now 0\.1,0\.3\), another sample ids",
    ),
    (("gate", "full", "--baseline", "estimate", "--max-drop", "1pp"), 3, "ESTIMATE.*--norms"),
    (("gate", "estimate", "--min-certified", "0"), 3, "ESTIMATE.*--norms randomised"),
    (("gate", "results", "--gate-on", "mean", "--min-clean", "0"), 2, "'value', 'lower'"),
    (("gate", "results", "--gate-on", "lower"), 2, "goes with --min-certified"),
    (("gate", "results", "--min-clean", "0", "--confidence", "2"), 2, r"such as 0\.(95|60)"),
    (("gate", "results", "--min-certifed", "0.6"), 2, "--min-certified"),
    (("report",), 2, "DIR"),
    (("report", "absent"), 2, "name the --output"),
    (("report", "full", "--format", "pdf"), 2, "html.*junit"),
    (("report", "full", "--format", "junit"), 2, r"--min-certified 0\.60"),
    (("report", "full", "--format", "attestation"), 2, r"--min-certified 0\.60"),
    (("report", "estimate", "--format", "model-card"), 3, "ESTIMATE.*certify with"),
    (("report", "estimate", "--format", "html", "--min-clean", "0"), 3, "no gate can hold"),
    (("report", "full", "--to", "digits.onnx/report.html"), 2, "--to .*cannot be written"),
    (("compare", "full"), 2, "B"),
    (("compare", "full", "absent"), 2, "name the --output"),
    (("compare", "full", "other"), 2, "another data digest, another sample ids"),
    (("compare", "full", "estimate"), 3, "B is an ESTIMATE"),
    (("compare", "full", "full", "--format", "pdf"), 2, "text.*json"),
    (("data",), 2, "Missing command.*--help"),
    (("data", "lst"), 2, "list|--help"),
    (("data", "fetch", "cifar"), 2, "did you mean cifar10"),
    (("data", "verify", "digits", "--split", "validation"), 2, "splits test, train"),
    ((*CERTIFY, "--norms", "estimate", "--min-clean", "0"), 2, "leave the gates out"),
    ((*CERTIFY, "--min-certified", "0.2=0.5"), 2, r"choose one of 0\.1, 0\.3"),
    ((*CERTIFY, "--baseline", "gone", "--max-drop", "0pp"), 2, "--baseline gone"),
    ((*CERTIFY, "--log-file", "digits.onnx/log"), 2, "--log-file .*cannot be written"),
    (("--show-config",), 2, "lipcert certify --show-config"),
    (("certify", "digits.onnx", "--eps", "0.1"), 2, "--data.*Try 'lipcert certify --help'"),
    (("data", "fetch"), 2, "Try 'lipcert data fetch --help'"),
    (("certify", "gone.onnx", *CERTIFY[2:]), 2, "give the path of an ONNX file"),
    ((*CERTIFY, "--data", "gone.npz"), 2, r"give a file of \.npz"),
    ((*CERTIFY, "--indices", "digits.onnx"), 2, "one whole number a line"),
]


@pytest.mark.parametrize(("arguments", "code", "fix"), WRONG)
def test_wrong_use_is_one_line_that_names_the_fix(here, arguments, code, fix):
    run = lipcert_process(*arguments, cwd=here)
    assert run.returncode == code, run.stderr
    assert run.stdout == ""
    line = the_failure(run.stderr)
    assert line.startswith("lipcert: error: ")
    assert "Traceback" not in line
    assert re.search(fix, line), line


def test_debug_adds_the_traceback(here):
    run = lipcert_process("gate", "absent", "--min-clean", "0", "--debug", cwd=here)
    assert run.returncode == 2
    assert "Traceback" in run.stderr
    assert run.stderr.splitlines()[-1].startswith("lipcert: error: absent")


def test_the_version_is_there_at_once(here):
    times = []
    for _ in range(3):
        # The time of a processor: on a machine that others use too, a clock would measure them.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert lipcert_process("--version", cwd=here).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5
