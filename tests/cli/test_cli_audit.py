"""``lipcert audit`` as a user meets it."""

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from forging import claimed, opened, refit, save
from lipcert_process import ROOT, lipcert_process, the_failure

from lipcert.cli.main import main
from lipcert.report import json_file


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    shutil.copy(ROOT / "examples" / "digits.onnx", folder)
    arguments = ("digits.onnx", "--data", "digits", "--eps", "0.1", "--limit", "4")
    run = lipcert_process(
        "certify", *arguments, "--method", "local", "--output", "results", "--quiet", cwd=folder
    )
    assert run.returncode == 0, run.stderr
    return folder


def test_an_audit_prints_a_table_and_leaves_its_findings(here):
    run = lipcert_process("audit", "results", "--samples", "2", "--json", cwd=here)
    assert run.returncode == 0, run.stderr
    record = json.loads(run.stdout)
    jsonschema.validate(record, json_file.schema("audit"))
    assert record == json.loads((here / "results" / "audit.json").read_text())
    assert record["agreement"]
    assert len(record["samples"]) == 2
    assert "Audit of digits.onnx on digits test" in run.stderr
    assert "2 of 4 samples" in run.stderr
    assert "pixels [0,1]" in run.stderr


def test_a_contradiction_is_exit_code_4_with_the_sample(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(here)
    shutil.copytree("results", tmp_path / "made", ignore=shutil.ignore_patterns("audit.json"))
    certificate, samples = opened(tmp_path / "made")
    claimed(samples[0], certificate, 10 * samples[0]["radius"])
    save(tmp_path / "made", refit(certificate, samples), samples)
    to = tmp_path / "elsewhere.json"
    arguments = ["audit", str(tmp_path / "made" / "certificate.json"), "--samples", "all"]
    assert main([*arguments, "--model", "digits.onnx", "--to", str(to), "--restarts", "8"]) == 4
    told = capsys.readouterr()
    assert told.out.startswith("Audit of digits.onnx on digits test")
    assert f"CONTRADICTED  sample {samples[0]['index']}: radius" in told.err
    last = told.err.strip().splitlines()[-1]
    said = f"error: the audit contradicts the certificate: sample {samples[0]['index']}: "
    assert said in last
    assert not json.loads(to.read_text())["agreement"]
    assert not (tmp_path / "made" / "audit.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "nowhere: there is no such certificate"),
        (["results", "--samples", "0"], 2, "--samples '0'"),
        (["results", "--samples", "some"], 2, "--samples 'some'"),
        (["results", "--seed", "-1"], 2, "--seed"),
        (["results", "--restarts", "0"], 2, "--restarts 0"),
        (["results", "--model", "absent.onnx"], 2, "absent.onnx: there is no such file"),
        (["results", "--model", "results/samples.jsonl"], 3, "is not the file that"),
        (["results", "--data", "mnist.npz"], 2, "mnist.npz: there is no such file"),
    ],
)
def test_bad_input_is_one_line(arguments, code, message, here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert main(["audit", *arguments]) == code
    told = capsys.readouterr().err
    assert message in the_failure(told)


@pytest.fixture(scope="module")
def proven(here) -> Path:
    arguments = ("digits.onnx", "--data", "digits", "--eps", "0.1", "--limit", "4")
    run = lipcert_process(
        "certify", *arguments, "--save-proofs", "--output", "proven", "--verbose", cwd=here
    )
    assert run.returncode == 0, run.stderr
    assert "proofs: 3 of 3 claims" in run.stderr
    assert (here / "proven" / "proofs.npz").stat().st_size < 10_000
    return here


def test_proofs_confirm_every_certified_sample(proven):
    arguments = ("--samples", "all", "--proofs", "--strict", "--json")
    run = lipcert_process("audit", "proven", *arguments, cwd=proven)
    assert run.returncode == 0, run.stderr
    record = json.loads(run.stdout)
    jsonschema.validate(record, json_file.schema("audit"))
    assert record["proofs"]["file"] == "proofs.npz"
    assert 0 < record["proofs"]["failure_probability"] <= 1e-9
    assert record["counts"] == {"confirmed": 4, "not contradicted": 0, "contradicted": 0}
    certified = [one for one in record["samples"] if one["verdict"] == "certified"]
    assert len(certified) == 3
    assert all(one["proven_radius"] >= 0.1 for one in certified)
    assert all(one["findings"][0]["by"].startswith("its proof: margins") for one in certified)


def test_what_has_no_proof_is_named_and_strict_fails(proven, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(proven)
    shutil.copytree("proven", tmp_path / "less")
    path = tmp_path / "less" / "proofs.npz"
    with np.load(path) as arrays:
        kept = dict(arrays)
    # The first sample's proof is for less than it claims.
    kept["eps"][0] = 0.01
    np.savez_compressed(path, **kept)
    arguments = ["audit", str(tmp_path / "less"), "--model", "digits.onnx", "--samples", "all"]
    assert main([*arguments, "--proofs"]) == 0
    told = capsys.readouterr().err
    assert f"not confirmed  sample {kept['index'][0]}: no change within 0.1" in told
    assert "its proof is for 0.01 only" in told
    assert main([*arguments, "--proofs", "--strict"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--strict: 1 of 4 samples are not confirmed: {kept['index'][0]}" in told


def test_proofs_that_are_missing_or_damaged(proven, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(proven)
    assert main(["audit", "results", "--model", "digits.onnx", "--proofs"]) == 2
    assert "certify with --save-proofs" in capsys.readouterr().err
    shutil.copytree("proven", tmp_path / "cut")
    path = tmp_path / "cut" / "proofs.npz"
    path.write_bytes(path.read_bytes()[:-100])
    arguments = ["audit", str(tmp_path / "cut"), "--model", "digits.onnx", "--proofs"]
    assert main(arguments) == 3
    assert "proofs.npz: is damaged" in capsys.readouterr().err
    arguments = ["certify", "digits.onnx", "--data", "digits", "--eps", "0.1", "--save-proofs"]
    assert main(arguments) == 2
    assert "--save-proofs: name a folder" in capsys.readouterr().err
    assert main([*arguments, "--output", "x", "--norms", "estimate"]) == 2
    assert "--norms estimate certifies nothing" in capsys.readouterr().err


def test_help_has_examples_and_is_quick(here):
    run = lipcert_process("audit", "--help", cwd=here)
    assert run.returncode == 0
    assert "lipcert audit results/certificate.json --model model.onnx" in run.stdout
    assert "not contradicted" in run.stdout
