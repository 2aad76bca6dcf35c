"""A sample that fails inside lipcert is told everywhere, and nothing passes."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from lipcert_process import ROOT

from lipcert.cli.main import main

# Sample 7 fails in its batch and alone; then the network itself may have it.
FAULTY = """
from lipcert.data import Dataset, load_dataset

FAILURES = 2

class Faulty(Dataset):
    def pixels(self, indices):
        global FAILURES
        if FAILURES and 7 in list(indices) and len(indices) < 24:
            FAILURES -= 1
            raise RuntimeError("=of two\\nlines")
        return super().pixels(indices)

def data(split):
    good = load_dataset("digits", split=split)
    return Faulty(good.name, good.split, good.images, good.labels, good.classes, good.source)
"""
CERTIFY = (
    "certify", "digits.onnx", "--data", "faulty_once:data", "--eps", "0.1", "--limit", "24",
    "--method", "local", "--workers", "1", "--output", "results",
)  # fmt: skip


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("failed")
    shutil.copy(ROOT / "examples" / "digits.onnx", folder)
    (folder / "faulty_once.py").write_text(FAULTY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        assert main(["certify", "digits.onnx", "--data", "digits", *CERTIFY[4:-1], "whole"]) == 0
        assert main([*CERTIFY, "--min-clean", "0"]) == 4
    return folder


@pytest.fixture
def here(failed, monkeypatch) -> Path:
    monkeypatch.chdir(failed)
    monkeypatch.syspath_prepend(failed)
    return failed


def summary(folder: Path) -> dict:
    return json.loads((folder / "certificate.json").read_text())["summary"]


def test_the_clean_accuracy_is_that_of_the_network_and_all_else_is_kept(here):
    found, whole = summary(here / "results"), summary(here / "whole")
    assert found["verdicts"]["error"] == 1
    assert found["clean_correct"] == whole["clean_correct"]
    assert found["verdicts"].get("misclassified") == whole["verdicts"].get("misclassified")
    assert found["certified_count"]["0.1"] == whole["certified_count"]["0.1"] - 1
    lines = (here / "results" / "samples.jsonl").read_text().splitlines()
    sample = json.loads(lines[7])
    assert (sample["verdict"], sample["radius"], sample["certified"]) == ("error", 0.0, [])
    assert (
        sample["prediction"]
        == json.loads((here / "whole" / "samples.jsonl").read_text().splitlines()[7])["prediction"]
    )
    assert sample["message"].startswith("RuntimeError: =of two")


def test_no_gate_passes(here, capsys):
    assert main(["gate", "results", "--min-clean", "0", "--json"]) == 4
    told = capsys.readouterr()
    first, clean = json.loads(told.out)
    assert first["status"] == "fail"
    assert "1 of 24 samples failed inside lipcert" in first["message"]
    assert clean["gate"] == "clean accuracy"
    assert told.err.count("\n") == 1
    assert "the first, 7, with RuntimeError: =of two" in told.err
    baseline = ["--baseline", "results", "--max-drop", "100pp"]
    assert main(["gate", "whole", *baseline]) == 3
    assert "baseline is incomplete" in capsys.readouterr().err
    assert main(["audit", "results", "--data", "digits", "--samples", "all", "--quiet"]) == 0


REPORTS = ["html", "markdown", "badge", "csv", "model-card"]
# Of gates alone, which need some.
GATED = ["junit", "attestation"]


@pytest.mark.parametrize(
    ("format", "gates"),
    [(name, ()) for name in REPORTS]
    + [(name, ("--min-clean", "0")) for name in (*REPORTS, *GATED)],
)
def test_every_report_says_so_on_top(here, capsys, format, gates):
    assert main(["report", "results", "--format", format, *gates]) == 0
    text = capsys.readouterr().out
    said = "1 of 24 samples failed inside lipcert"
    if format == "badge":
        badge = json.loads(text)
        assert badge["message"].endswith("1 failed")
        assert badge["color"] == "red"
    elif format == "csv":
        first, *_ = csv.DictReader(io.StringIO(text))
        assert (first["index"], first["verdict"]) == ("7", "error")
    elif format == "attestation":
        predicate = json.loads(text)["predicate"]
        assert predicate["result"] == "FAILED"
        assert said in predicate["failedTests"][0]
    else:
        before = {"html": "certified accuracy", "markdown": "| result", "junit": "clean accuracy",
                  "model-card": "model-index"}  # fmt: skip
        assert said in text
        assert text.index(said) < text.index(before[format])


@pytest.mark.parametrize("format", ["text", "markdown", "html", "json"])
def test_a_comparison_says_so(here, capsys, format):
    assert main(["compare", "whole", "results", "--format", format]) == 0
    text = capsys.readouterr().out
    assert "1 of 24 samples failed inside lipcert" in text
    if format != "json":
        assert "B: 1 of 24 samples failed" in text.split("gained")[0]


def test_it_is_told_at_the_end_and_tried_again_by_resuming(here, tmp_path, capsys):
    shutil.copytree(here / "results", tmp_path / "again")
    arguments = [*CERTIFY[:-1], str(tmp_path / "again"), "--resume"]
    assert main([*arguments, "--min-clean", "0"]) == 0
    assert "error" not in summary(tmp_path / "again")["verdicts"]
    whole = summary(here / "whole")
    assert summary(tmp_path / "again")["certified_count"] == whole["certified_count"]
    assert main(["gate", str(tmp_path / "again"), "--min-clean", "0"]) == 0
