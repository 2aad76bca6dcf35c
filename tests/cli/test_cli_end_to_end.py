"""The command as a user meets it, on a small network for the embedded digits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from cli.lipcert_process import the_failure
from onnx import TensorProto, helper, numpy_helper

import lipcert
from lipcert.cli.main import main
from lipcert.data import load_dataset
from lipcert.report import json_file

SLOW_DATA = """
import time
from dataclasses import replace
from lipcert.data import Dataset, load_dataset

class Slow(Dataset):
    def pixels(self, indices):
        time.sleep(0.05)
        return super().pixels(indices)

def digits(split):
    fast = load_dataset("digits", split=split)
    return Slow(fast.name, fast.split, fast.images, fast.labels, fast.classes, fast.source)

class Broken(Dataset):
    def pixels(self, indices):
        raise RuntimeError("a defect\\nof two lines")

def broken(split):
    fast = digits(split)
    return Broken(fast.name, fast.split, fast.images, fast.labels, fast.classes, fast.source)
"""


def save_model(path: Path, *, tail: str = "Softmax") -> Path:
    """A hidden layer of random features, and the least-squares fit on the training digits."""
    digits = load_dataset("digits", split="train")
    x = digits.images.reshape(len(digits), -1).astype(np.float64)
    random = np.random.default_rng(0)
    first, shift = random.normal(size=(48, 64)) / 8, random.normal(size=48) / 8
    hidden = np.maximum(x @ first.T + shift, 0)
    hidden = np.concatenate([hidden, np.ones((len(x), 1))], 1)
    gram = hidden.T @ hidden + np.eye(49)
    fit = np.linalg.solve(gram, hidden.T @ np.eye(10)[digits.labels]).T
    arrays = {"W0": first, "b0": shift, "W": fit[:, :-1], "b": fit[:, -1]}
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "W0", "b0"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "W", "b"], ["z"], transB=1),
        helper.make_node(tail, ["z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("files")
    save_model(made / "model.onnx")
    save_model(made / "strange.onnx", tail="Sin")
    (made / "text.onnx").write_text("no model")
    (made / "slow.py").write_text(SLOW_DATA)
    np.savez(made / "many.npz", x=np.zeros((30, 1, 8, 8), np.uint8), y=np.arange(30))
    return made


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def start(folder: Path, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lipcert", *arguments],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(lipcert.__file__).parents[1])},
        # A shell that runs the tests in the background may have switched interrupts off.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def valid(output: Path, suffix: str = "") -> tuple[dict, list[dict]]:
    """The certificate and the samples in a folder, both checked against their schemas."""
    certificate = json.loads((output / f"certificate{suffix}.json").read_text())
    jsonschema.validate(certificate, json_file.schema("certificate"))
    lines = (output / f"samples{suffix}.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    for sample in samples:
        jsonschema.validate(sample, json_file.schema("sample"))
    return certificate, samples


def timeless(samples: list[dict]) -> list[dict]:
    times = ("seconds", "rungs", "sha256")
    return [{k: v for k, v in sample.items() if k not in times} for sample in samples]


SLOW = (
    "certify", "model.onnx", "--data", "slow:digits", "--eps", "0.05,1/10", "--limit", "60",
    "--batch-size", "2", "--method", "local",
)  # fmt: skip


def stop_midway(folder: Path, output: Path, how: signal.Signals, *options: str) -> tuple[int, str]:
    process = start(folder, *SLOW, *options, "--output", str(output))
    journal = output / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory) -> list[dict]:
    output = tmp_path_factory.mktemp("whole") / "run"
    process = start(folder, *SLOW, "--output", str(output), "--json")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    certificate, samples = valid(output)
    assert json.loads(out) == certificate
    # The table gives way to the JSON; every stage has its line.
    assert "certified accuracy at eps 1/10" in errors
    stages = ("reading the data: slow:digits", "reading the model: model.onnx", "comparing the",
              "bounding operator norms", "certifying 60 samples, eps 0.05, 1/10")  # fmt: skip
    places = [errors.index(f"\n{stage}" if place else stage) for place, stage in enumerate(stages)]
    assert places == sorted(places)
    assert certificate["summary"]["n"] == 60
    assert certificate["summary"]["clean_accuracy"] > 0.8
    assert certificate["model"]["stripped"]
    return samples


@pytest.mark.parametrize(
    ("workers", "how"), [("1", signal.SIGINT), ("2", signal.SIGINT), ("2", signal.SIGTERM)]
)
def test_an_interrupted_run_keeps_its_samples_and_says_how_to_go_on(
    folder, tmp_path, uninterrupted, workers, how
):
    code, errors = stop_midway(folder, tmp_path / "run", how, "--workers", workers)
    assert code == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    kept = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()[1:]
    by_index = {sample["index"]: sample for sample in timeless(uninterrupted)}
    for sample in timeless([json.loads(line) for line in kept]):
        assert sample == by_index.pop(sample["index"])


def test_a_killed_run_resumes_to_the_same_samples(here, tmp_path, uninterrupted, capsys):
    output = tmp_path / "run"
    code, _ = stop_midway(here, output, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (output / "certificate.json").exists()
    kept = len((output / "journal.jsonl").read_text().splitlines()) - 1
    assert 0 < kept < 60
    assert main([*SLOW, "--output", str(output), "--resume", "--quiet"]) == 0
    _, samples = valid(output)
    assert timeless(samples) == timeless(uninterrupted)
    assert [sample["index"] for sample in samples] == list(range(60))


def test_shards_together_are_the_whole_run(here, tmp_path, uninterrupted, capsys):
    output = ["--output", str(tmp_path / "run"), "--quiet"]
    for number in (1, 2, 3):
        assert main([*SLOW, *output, "--shard", f"{number}/3"]) == 0
        certificate, samples = valid(tmp_path / "run", f".{number}-of-3")
        assert certificate["data"]["shard"] == f"{number}/3"
        assert [sample["index"] for sample in samples] == list(range(number - 1, 60, 3))
    assert main([*SLOW, *output, "--resume"]) == 0
    certificate, samples = valid(tmp_path / "run")
    assert certificate["data"]["shard"] is None
    # Other batches sum in another order, so numbers may differ in their last digits.
    for sample, whole in zip(samples, uninterrupted, strict=True):
        assert sample["certified"] == whole["certified"]
        assert sample["margin"] == pytest.approx(whole["margin"], rel=1e-4, abs=1e-6)


def test_an_estimate_says_so_everywhere_and_certifies_nothing(here, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["certify", "model.onnx", "--data", "digits", "--eps", "0.05", "--limit", "40"]
    options = ["--norms", "estimate", "--output", str(output), "--json", "--verbose"]
    assert main([*arguments, *options]) == 0
    valid(output)
    shown = capsys.readouterr()
    texts = [shown.out, shown.err, *(output / "samples.jsonl").read_text().splitlines()]
    texts.append((output / "certificate.json").read_text())
    for text in texts:
        assert "ESTIMATE" in text
        assert "certified" not in text.lower()


def test_the_library_gives_what_the_command_gives(here, tmp_path, capsys):
    output = tmp_path / "run"
    # Fresh coins move the search, and so the digits of some radii.
    arguments = ["certify", "model.onnx", "--data", "digits", "--eps", "0.05,0.1", "--seed", "0"]
    assert main([*arguments, "--limit", "40", "--output", str(output), "--quiet"]) == 0
    certificate, samples = valid(output)

    digits = load_dataset("digits")
    images, labels = digits.images[:40], digits.labels[:40]
    result = lipcert.certify(lipcert.load("model.onnx"), images, labels, [0.05, "0.1"], seed=0)
    same = json.loads(json.dumps([sample.to_json() for sample in result.samples]))
    # The coins are mixed with the digest of the data, which arrays and a named set do not share:
    # searches for radii, and what these are charged, come out within a percent.
    searched = ("radius", "deployed_error")
    for one, other in zip(timeless(same), timeless(samples), strict=True):
        assert [one.pop(key, None) or 0.0 for key in searched] == pytest.approx(
            [other.pop(key, None) or 0.0 for key in searched], rel=1e-2
        )
        assert one == other
    for key in ("certified_count", "verdicts", "clean_accuracy"):
        assert result.summary[key] == certificate["summary"][key]
    assert result.certificate.options_digest == certificate["options_digest"]


def test_inspect_shows_norms_and_product(here, capsys):
    assert main(["inspect", "model.onnx", "--json"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert {row["operator"] for row in record["operators"]} >= {"Gemm", "Relu"}
    assert record["norms"]["product"] > 0
    assert len(record["norms"]["layers"]) >= 1
    assert "product" in shown.err
    assert main(["inspect", "model.onnx"]) == 0
    shown = capsys.readouterr()
    assert "product" in shown.out
    assert {line.split()[0] for line in shown.err.splitlines()} == {"reading", "bounding"}


def test_the_demo_needs_no_file_of_the_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--limit", "20"]) == 0
    shown = capsys.readouterr()
    assert "digits.onnx on digits test" in shown.out
    assert "of 20)" in shown.out
    root = Path(__file__).resolve().parents[2]
    example, packaged = root / "examples" / "digits.onnx", root / "lipcert" / "data" / "digits.onnx"
    assert example.read_bytes() == packaged.read_bytes()


def test_the_doctor_tells_the_build_of_torch_and_whether_torchvision_is_there(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"CPU only|CUDA [\d.]+", found["torch build"])
    assert found["torchvision"]


def test_inspect_without_norms_finds_none(here, capsys):
    assert main(["inspect", "model.onnx", "--no-norms", "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert record["classes"] == 10
    assert "norms" not in record
    assert "10 logits" in shown.err
    assert "product" not in shown.err


def test_inspect_marks_an_estimate(here, capsys):
    assert main(["inspect", "model.onnx", "--norms", "estimate", "--json"]) == 0
    shown = capsys.readouterr()
    assert "ESTIMATE" in shown.out
    assert "ESTIMATE" in shown.err


def test_inspect_shows_what_is_unsupported_and_fails(here, capsys):
    assert main(["inspect", "strange.onnx", "--json"]) == 3
    shown = capsys.readouterr()
    rows = {row["operator"]: row for row in json.loads(shown.out)["operators"]}
    assert rows["Sin"]["supported"] is False
    assert rows["Gemm"]["supported"] is True
    assert "Sin" in shown.err.splitlines()[-1]


def test_a_failure_is_one_line_and_debug_adds_the_traceback(folder):
    arguments = ("certify", "absent.onnx", "--data", "digits", "--eps", "0.1")
    for extra, lines in (((), 1), (("--debug",), 5)):
        process = start(folder, *arguments, *extra)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert out == ""
        assert len(errors.splitlines()) >= lines
        assert ("Traceback" in errors) is bool(extra)


BASE = ("certify", "model.onnx", "--data", "digits", "--eps", "0.1", "--limit", "40")


@pytest.mark.parametrize(
    ("arguments", "code", "fix"),
    [
        ((), 2, r"--help"),
        (("certfy",), 2, r"--help"),
        ((*BASE, "--frobnicate"), 2, r"--frobnicate.*--help"),
        (BASE[:4], 2, r"--eps"),
        (("certify", "model.onnx", "--eps", "0.1"), 2, r"--data"),
        ((*BASE, "--eps", "large"), 2, r"large.*36/255"),
        ((*BASE, "--eps", "-0.1"), 2, r"≥ 0"),
        ((*BASE, "--eps", "1/0"), 2, r"36/255"),
        ((*BASE, "--eps", "0.1"), 2, r"twice"),
        ((*BASE, "--method", "exact"), 2, r"local.*global"),
        ((*BASE, "--norms", "guess"), 2, r"deterministic.*estimate"),
        ((*BASE, "--deployed", "int8"), 2, r"float32.*real"),
        ((*BASE, "--dtype", "float16"), 2, r"float64.*float32"),
        ((*BASE, "--failure-probability", "1.5"), 2, r"\[0, 1\)"),
        ((*BASE, "--seed", "-1"), 2, r"whole number from 0"),
        ((*BASE, "--mean", "a,b"), 2, r"--mean.*such as"),
        ((*BASE, "--std", ""), 2, r"--std.*such as"),
        ((*BASE, "--mean", "0.1,0.2,0.3"), 2, r"--mean 0\.1,0\.2,0\.3: give one finite number"),
        ((*BASE, "--range", "1,0"), 2, r"--range.*smaller first"),
        ((*BASE, "--data-range", "0"), 2, r"--data-range.*two numbers"),
        ((*BASE, "--batch-size", "0"), 2, r"--batch-size.*at least 1"),
        ((*BASE, "--workers", "0"), 2, r"--workers.*at least 1"),
        ((*BASE, "--threads", "0"), 2, r"--threads.*at least 1"),
        ((*BASE, "--device", "tpu"), 2, r"choose auto, cpu, cuda"),
        ((*BASE, "--device", "cuda:99"), 2, r"--device auto"),
        ((*BASE, "--shard", "5/4"), 2, r"such as 1/4"),
        ((*BASE, "--shard", "41/41"), 2, r"fewer shards"),
        ((*BASE, "--resume"), 2, r"--output"),
        ((*BASE, "--output", "o", "--resume", "--overwrite"), 2, r"one of them"),
        ((*BASE, "--output", "o", "--resume"), 2, r"leave --resume out"),
        ((*BASE, "--output", "text.onnx"), 2, r"name a folder"),
        ((*BASE[:-2], "--random"), 2, r"--limit"),
        ((*BASE, "--limit", "0"), 2, r"at least 1"),
        ((*BASE, "--split", "validation"), 2, r"train"),
        ((*BASE, "--indices", "absent.txt"), 2, r"absent\.txt"),
        (("certify", "absent.onnx", *BASE[2:]), 2, r"absent\.onnx"),
        (("certify", "text.onnx", *BASE[2:]), 3, r"text\.onnx"),
        (("certify", "strange.onnx", *BASE[2:]), 3, r"Sin"),
        ((*BASE[:3], "digitz", *BASE[4:]), 2, r"did you mean digits"),
        ((*BASE[:3], "many.npz", *BASE[4:]), 2, r"30 classes|labels up to 29"),
        ((*BASE, "--mean", "9", "--std", "0.1"), 3, r"--mean.*--allow-implausible"),
        (("inspect", "model.onnx", "--input-shape", "3,x"), 2, r"such as 3,32,32"),
        (("inspect", "absent.onnx"), 2, r"absent\.onnx"),
        ((*BASE, "--time-per-sample", "0"), 2, r"--time-per-sample.*above 0"),
        ((*BASE, "--time-per-sample", "soon"), 2, r"--time-per-sample.*--help"),
        ((*BASE, "--effort", "most"), 2, r"fast.*standard.*max"),
        ((*BASE, "--limit", "many"), 2, r"--limit.*--help"),
        ((*BASE, "--mean"), 2, r"--mean.*requires an argument"),
        ((*BASE, "--save-counterexamples"), 2, r"--output"),
        ((*BASE, "--method", "local", "--save-counterexamples", "--output", "o"), 2,
         r"--method auto"),
        ((*BASE, "--overwrite"), 2, r"--output"),
        ((*BASE, "--range", "a"), 2, r"--range.*such as 0"),
        ((*BASE, "--layout", "XYZ"), 2, r"layout 'XYZ'.*C, H and W"),
        ((*BASE, "--std", "0"), 2, r"std.*0"),
        ((*BASE, "--weights", "absent.safetensors"), 2, r"absent\.safetensors"),
        ((*BASE, "--weights", "model.onnx"), 3, r"model\.onnx: not a safetensors file"),
        ((*BASE, "--arch", "slow:digits"), 2, "goes with weights alone"),
        ((*BASE, "--log-file", "text.onnx/log"), 2, r"--log-file.*cannot be written"),
        ((*BASE, "--min-certified", "60"), 2, r"such as 0\.60 or 60%"),
        ((*BASE, "--min-certified", "0.5=0.6"), 2, r"not certified; choose one of 0\.1"),
        ((*BASE, "--min-clean", "high"), 2, r"such as 0\.60"),
        ((*BASE, "--max-drop", "0.5pp"), 2, r"with --baseline"),
        ((*BASE, "--baseline", "absent"), 2, r"--max-drop"),
        ((*BASE, "--baseline", "absent", "--max-drop", "1pp"), 2, r"--baseline absent"),
        ((*BASE, "--min-clean", "0.9", "--warn-clean", "0.8"), 2, r"above 0\.9"),
        ((*BASE, "--gate-on", "lower"), 2, r"--min-certified or --min-clean"),
        ((*BASE, "--norms", "estimate", "--min-clean", "0.5"), 2, r"--norms randomised"),
        (("gate", "absent", "--min-clean", "0.5"), 2, r"absent"),
        (("gate", "many.npz"), 2, r"such as --min-certified 0\.60"),
        (("gate", "many.npz", "--min-clean", "0.5"), 3, r"many\.npz"),
        (("report", "absent"), 2, r"absent"),
        (("report", "absent", "--format", "pdf"), 2, r"html.*markdown"),
        (("compare", "absent"), 2, r"'B'"),
        (("compare", "absent", "absent"), 2, r"absent"),
        (("audit", "absent"), 2, r"absent"),
        (("audit", "absent", "--samples", "0"), 2, r"at least 1, or all"),
        (("audit", "absent", "--restarts", "0"), 2, r"--restarts 0.*at least 1"),
        (("audit", "absent", "--seed", "-1"), 2, r"--seed.*from 0"),
        (("data", "fetch", "cifar11"), 2, r"cifar10"),
        (("data", "verify", "absent.npz"), 2, r"absent\.npz"),
        (("finetune", "model.onnx", "--data", "digits"), 2, r"--eps"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_that_names_the_fix(here, capsys, arguments, code, fix):
    assert main([*arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    line = the_failure(shown.err)
    assert line.startswith("lipcert: error: ")
    assert "Traceback" not in line
    assert re.search(fix, line)


def test_a_defect_is_told_from_wrong_use(here, capsys):
    assert main([*BASE[:3], "slow:broken", *BASE[4:]]) == 4
    line = the_failure(capsys.readouterr().err)
    assert line.startswith("lipcert: internal error: RuntimeError: a defect of two lines")
    assert "report this" in line
    assert "--debug" in line


def test_a_reader_that_goes_away_is_no_failure(folder):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(folder, *BASE, "--json", "--quiet", stdout=writing)
    os.close(writing)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_an_earlier_run_is_neither_replaced_nor_continued_with_other_options(
    here, tmp_path, capsys
):
    output = ("--output", str(tmp_path / "run"), "--quiet")
    assert main([*BASE, *output]) == 0
    before = valid(tmp_path / "run")
    for extra, fix in (((), "--resume"), (("--resume", "--method", "global"), "another --method")):
        assert main([*BASE, *output, *extra]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert fix in line
        assert "--overwrite" in line
        assert valid(tmp_path / "run") == before
    assert main([*BASE, *output, "--overwrite", "--method", "global"]) == 0
    assert valid(tmp_path / "run")[0]["options"]["method"] == "global"


def test_implausible_accuracy_can_be_allowed_and_is_noted(here, tmp_path, capsys):
    output = tmp_path / "run"
    wrong = ("--mean", "9", "--std", "0.1", "--allow-implausible", "--output", str(output))
    assert main([*BASE, *wrong]) == 0
    certificate, _ = valid(output)
    assert any("implausible" in note for note in certificate["notes"])
