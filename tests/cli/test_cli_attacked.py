"""What a run with an attack leaves behind: an interval, a cascade, layers, counterexamples."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest
from lipcert_process import ROOT, lipcert_process

from lipcert.data import load_dataset
from lipcert.report import json_file

MODEL = ROOT / "examples" / "digits.onnx"
CERTIFY = (
    "certify", "digits.onnx", "--data", "digits", "--eps", "0.1,0.5", "--limit", "30",
    "--effort", "fast",
)  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    shutil.copy(MODEL, folder)
    run = lipcert_process(*CERTIFY, "--save-counterexamples", "--output", "results", cwd=folder)
    assert run.returncode == 0, run.stderr
    (folder / "shown.txt").write_text(run.stdout)
    return folder


@pytest.fixture(scope="module")
def certificate(here) -> dict:
    found = json.loads((here / "results" / "certificate.json").read_text())
    jsonschema.validate(found, json_file.schema("certificate"))
    return found


@pytest.fixture(scope="module")
def samples(here) -> list[dict]:
    lines = (here / "results" / "samples.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for sample in found:
        jsonschema.validate(sample, json_file.schema("sample"))
    return found


def test_the_deployed_model_gets_every_counterexample_wrong_within_its_distance(here, samples):
    falsified = [sample for sample in samples if sample["verdict"] == "falsified"]
    with np.load(here / "results" / "counterexamples.npz") as arrays:
        index, image = arrays["index"], arrays["image"]
    assert index.tolist() == [sample["index"] for sample in falsified]
    assert len(index) >= 3
    assert image.dtype == np.float32
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    original = load_dataset("digits").pixels(index)
    for sample, one, x in zip(falsified, image, original, strict=True):
        (logits,) = session.run(None, {session.get_inputs()[0].name: one[None]})
        assert logits.argmax() != sample["label"]
        distance = np.linalg.norm((one.astype(np.float64) - x).ravel())
        assert 0 < distance <= sample["attack_radius"] <= 0.5


def test_the_interval_is_certified_to_not_falsified(here, certificate, samples):
    summary, shown = certificate["summary"], (here / "shown.txt").read_text()
    for eps in ("0.1", "0.5"):
        certified, upper = summary["certified_count"][eps], summary["upper_count"][eps]
        broken = sum(0 < sample.get("attack_radius", 9) <= float(eps) for sample in samples)
        assert certified <= upper == summary["clean_correct"] - broken
        assert summary["upper_accuracy"][eps] == upper / 30
        end = "none open" if upper == certified else f"{upper} not"
        assert f"({certified} certified, {end}" in shown
    assert summary["upper_count"]["0.5"] < summary["clean_correct"]


def test_the_cascade_accounts_for_every_sample_and_second(certificate, samples):
    cascade = {rung["rung"]: rung for rung in certificate["cascade"]}
    assert list(cascade)[:4] == ["prediction", "local", "attack", "dual"]
    verdicts = certificate["summary"]["verdicts"]
    assert sum(rung["decided"] for rung in cascade.values()) == 30 - verdicts.get("unknown", 0)
    assert cascade["prediction"]["decided"] == verdicts.get("misclassified", 0)
    assert cascade["attack"]["decided"] == verdicts["falsified"]
    spent = sum(rung["seconds"] for rung in cascade.values())
    assert spent == pytest.approx(sum(sample["seconds"] for sample in samples))
    assert 0 < spent <= certificate["seconds"]


def test_the_layers_are_those_of_the_model(certificate, samples):
    layers = certificate["layers"]
    assert [layer["operator"] for layer in layers][-1] == "Dense"
    assert layers[-1]["eliminated"] is None
    assert len(samples[0]["eliminated"]) == len(layers) - 1
    shares = [layer["eliminated"] for layer in layers[:-1]]
    assert max(shares) > 0
    for number, layer in enumerate(layers[:-1]):
        counts = [sample["eliminated"][number] for sample in samples]
        assert shares[number] == pytest.approx(sum(counts) / 30 / layer["neurons"])


def test_reports_show_all_of_it(here, certificate, samples):
    page = lipcert_process("report", "results", cwd=here).stdout
    text = re.sub(r"<[^>]+>", " ", page)
    for part in (
        "Cascade", "prediction", "Layers", certificate["layers"][0]["sink"], "Counterexamples",
        "not falsified", "L2 distance ≤",
    ):  # fmt: skip
        assert part in text
    falsified = [sample["index"] for sample in samples if sample["verdict"] == "falsified"]
    for index in falsified[:8]:
        assert f'alt="counterexample to sample {index}"' in page
        assert f'alt="sample {index}, of class' in page
    markdown = lipcert_process("report", "results", "--format", "markdown", cwd=here).stdout
    assert re.search(r"\| prediction \| 30 \| \d+ \| [\d.]+ \|", markdown)
    assert re.search(r"eps 0\.5 \| \\\[[\d.]+ %, [\d.]+ %\\\] \(\d+ certified", markdown)
    card = lipcert_process("report", "results", "--format", "model-card", cwd=here).stdout
    assert "Not falsified by an attack, L2 eps 0.5 (% of 30, an upper bound)" in card


def test_the_library_keeps_them_too(here, tmp_path):
    import lipcert

    digits = load_dataset("digits")
    model, index = lipcert.load(MODEL), np.arange(12)
    result = lipcert.certify(
        model, digits.pixels(index), digits.labels[index], "1", effort="fast",
        output=tmp_path, save_counterexamples=True,
    )  # fmt: skip
    falsified = [sample.index for sample in result.samples if sample.verdict == "falsified"]
    with np.load(tmp_path / "counterexamples.npz") as arrays:
        assert arrays["index"].tolist() == falsified
    assert falsified


def test_counterexamples_need_an_attack(here):
    more = ("--save-counterexamples", "--output", "x", "--method", "local")
    run = lipcert_process(*CERTIFY, *more, cwd=here)
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    assert re.search("--method local runs no attack.*--method auto", line)
