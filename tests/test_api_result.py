"""What ``lipcert.certify`` returns: shown, saved, gated, reported."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report.test_table_and_schemas import certificate, samples

import lipcert
from lipcert.certificate import summarise
from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, LipcertError, UsageError
from lipcert.report import json_file
from lipcert.result import Result

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "digits.onnx"


@pytest.fixture
def result() -> Result:
    rows = [row for row in samples() if row.verdict != "error"]
    made = certificate(
        summary=summarise(rows, ["0.1", "36/255"], estimate=False),
        samples_sha256=json_file.samples_digest(rows, estimate=False),
    )
    return Result(made, tuple(rows))


def test_its_repr_is_one_line(result):
    assert repr(result) == (
        "<Result model.onnx on digits test: 3 samples, clean 66.66 %, "
        "certified accuracy 33.33 % at eps 36/255>"
    )
    estimate = Result(certificate(kind="estimate"), tuple(samples(estimate=True)))
    assert "ESTIMATE" in repr(estimate)
    assert "certified" not in repr(estimate).lower()


def test_a_notebook_shows_a_table_in_which_nothing_of_a_name_acts(result):
    result.certificate.model["name"] = "<script>alert(1)</script>"
    shown = result._repr_html_()
    assert shown.startswith("<table>")
    assert "33.33 % (1 of 3)" in shown
    assert "<script" not in shown


def test_it_is_gated_as_on_the_command_line(result):
    outcomes = result.gate(min_certified=[0.5], min_clean="60%")
    assert [(o.gate, o.status) for o in outcomes] == [
        ("certified accuracy at eps 36/255", "fail"), ("clean accuracy", "pass"),
    ]  # fmt: skip
    assert result.gate(min_certified=0.25)[0].status == "pass"
    with pytest.raises(UsageError, match="min_certifed: is no threshold; did you mean min_certif"):
        result.gate(min_certifed=0.5)
    with pytest.raises(UsageError, match=r"such as min_certified=0\.60"):
        result.gate()
    with pytest.raises(CannotCertify, match="ESTIMATE"):
        Result(certificate(kind="estimate"), tuple(samples(estimate=True))).gate(min_clean=0.5)


def test_a_report_is_text_and_a_file(result, tmp_path):
    outcomes = result.gate(min_certified=0.5)
    page = result.report(to=tmp_path / "report.html", outcomes=outcomes)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert "FAIL" in page
    assert json.loads(result.report("badge"))["message"] == "33.33 %"
    with pytest.raises(UsageError, match="cannot be written"):
        result.report(to=tmp_path / "no" / "such.html")


def test_it_is_audited_and_what_was_changed_is_found(tmp_path):
    path, digits = EXAMPLE, load_dataset("digits")
    data, chosen = tmp_path / "data.npz", np.arange(3)
    np.savez(data, images=digits.pixels(chosen), labels=digits.labels[chosen])
    found = lipcert.certify(lipcert.load(path), str(data), eps=["0.1"], method="local")
    assert isinstance(found, Result)
    sound = found.audit(path, str(data), samples="all")
    assert len(sound.samples) == 3
    assert not sound.contradictions
    larger = [replace(s, radius=6 * s.radius) if s.radius else s for s in found.samples]
    forged = Result(
        replace(
            found.certificate,
            samples_sha256=json_file.samples_digest(larger, estimate=False),
            summary=summarise(larger, ["0.1"], estimate=False),
        ),
        tuple(larger),
    )
    assert forged.audit(path, str(data), samples="all").contradictions
    with pytest.raises(LipcertError):
        found.audit(tmp_path / "absent.onnx", str(data))


def test_without_pandas_it_says_what_to_do(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        result.to_pandas()


def test_pandas_gets_a_row_a_sample(result, monkeypatch):
    """pandas is large and no dependency: what it is asked for is looked at."""
    asked = {}
    frame = SimpleNamespace(from_records=lambda rows, index: asked.update(rows=rows, index=index))
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=frame))
    result.to_pandas()
    assert [row["verdict"] for row in asked["rows"]] == [s.verdict for s in result.samples]
    assert all(asked["index"] in row for row in asked["rows"])


def test_a_folder_that_cannot_be_made_is_told(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        result.save(tmp_path / "file" / "below")
    folder = result.save(tmp_path / "new" / "one")
    assert json.loads((folder / "certificate.json").read_text())["summary"] == result.summary
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 3
