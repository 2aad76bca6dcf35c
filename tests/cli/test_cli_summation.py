"""A measured order of sums, from the command line to reports, shards and audits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from forging import opened, refit, save

from lipcert.cli.main import main
from lipcert.data import load_dataset

DIGITS = Path(__file__).parents[2] / "examples" / "digits.onnx"
RUN = ("certify", "digits.onnx", "--data", "some.npz", "--data-layout", "nchw", "--eps", "0.3",
       "--method", "local", "--norms", "deterministic", "--allow-implausible", "--workers", "1",
       "--quiet")  # fmt: skip
MEASURED = ("--summation", "measured")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with measured sums, one with any order, and half a run of each."""
    folder = tmp_path_factory.mktemp("summation")
    data = load_dataset("digits")
    np.savez(folder / "some.npz", images=data.images[:4], labels=data.labels[:4])
    shutil.copy(DIGITS, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*RUN, *MEASURED, "--output", "measured"]) == 0
        assert main([*RUN, "--output", "any"]) == 0
        assert main([*RUN, *MEASURED, "--output", "shards", "--shard", "1/2"]) == 0
        assert main([*RUN, "--output", "others", "--shard", "2/2"]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)


def test_the_certificate_names_the_runtime_and_says_more(folder):
    certificate, samples = opened(folder / "measured")
    plain, others = opened(folder / "any")
    assert certificate["options"]["summation"] == "measured"
    assert "summation" not in plain["options"]
    assert "summation" not in plain["model"]
    record = certificate["model"]["summation"]
    assert record["runtime"] == "onnxruntime"
    assert record["version"] == certificate["environment"]["onnxruntime"]
    assert record["processor"]
    assert {layer["order"] for layer in record["layers"]} == {"measured"}
    for one, other in zip(samples, others, strict=True):
        assert one["radius"] >= other["radius"] * (1 - 1e-3)
    both = [
        (one["deployed_error"], other["deployed_error"])
        for one, other in zip(samples, others, strict=True)
        if "deployed_error" in one
    ]
    assert both
    assert all(one < other for one, other in both)


@pytest.mark.parametrize("kind", ["markdown", "html"])
def test_reports_say_where_it_holds(folder, kind, capsys):
    assert main(["report", "measured", "--format", kind]) == 0
    told = capsys.readouterr().out
    assert "only as onnxruntime" in told
    assert "MEASURED" in told
    assert "any summation order" not in told
    assert "Certified accuracy (measured sums)".lower() in told.lower()
    assert main(["report", "any", "--format", kind]) == 0
    assert "MEASURED" not in capsys.readouterr().out


def test_an_audit_measures_again(folder, capsys):
    assert main(["audit", "measured", "--data", "some.npz", "--restarts", "1"]) == 0
    certificate, samples = opened(folder / "measured")
    record = certificate["model"]["summation"]
    for change, said in (
        ({"version": "1.0.0"}, "version 1.0.0, here"),
        ({"features": "0" * 16}, "audit it there"),
        ({"layers": [record["layers"][0] | {"sha256": "0" * 64}, *record["layers"][1:]]},
         "does not find again"),
        ({"layers": record["layers"][1:]}, "does not find again"),
    ):  # fmt: skip
        model = certificate["model"] | {"summation": record | change}
        save(folder / "forged", certificate | {"model": model}, samples)
        assert main(["audit", "forged", "--data", "some.npz", "--model", "digits.onnx"]) == 3
        assert said in capsys.readouterr().err


def test_a_runtime_is_named_exactly_where_it_was_asked_for(folder, capsys):
    certificate, samples = opened(folder / "measured")
    plain = certificate | {"options": dict(certificate["options"])}
    del plain["options"]["summation"]
    save(folder / "forged", refit(plain, samples), samples)
    assert main(["report", "forged"]) == 3
    assert "names a runtime" in capsys.readouterr().err
    certificate, samples = opened(folder / "any")
    certificate["options"]["summation"] = "measured"
    save(folder / "forged", refit(certificate, samples), samples)
    assert main(["report", "forged"]) == 3
    assert "names no runtime" in capsys.readouterr().err


def test_orders_are_not_mixed(folder, capsys):
    assert main(["merge", "shards", "others", "--output", "both"]) == 3
    assert "differs" in capsys.readouterr().err
    assert main([*RUN, "--output", "measured", "--resume"]) == 2
    assert "--summation (measured, now not given)" in capsys.readouterr().err
    journal = folder / "measured" / "journal.jsonl"
    if journal.exists():
        assert json.loads(journal.read_text().splitlines()[0])["summation"]["runtime"]
    assert main([*RUN, *MEASURED, "--output", "measured", "--resume"]) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--deployed", "float64"], "is for --deployed float32"),
        (["--save-proofs", "--output", "new"], "proofs cover sums in any order"),
        (["--cluster", "auto", "--workers", "1"], "a cluster has others"),
    ],
)
def test_what_does_not_go_with_it_is_refused(more, said, capsys):
    assert main([*RUN, *MEASURED, *more]) == 2
    assert said in capsys.readouterr().err
