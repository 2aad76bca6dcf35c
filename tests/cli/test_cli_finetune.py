"""``lipcert finetune`` as users meet it, on the embedded digits."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from lipcert_process import ROOT, environment, lipcert_process, the_failure
from PIL import Image
from safetensors.numpy import load_file

from lipcert.cli.main import main

EXAMPLE = ROOT / "examples" / "digits.onnx"
QUICK = (
    "--data", "digits", "--eps", "0.3", "--epochs", "1", "--train-limit", "320", "--batch-size",
    "64", "--threads", "1", "--limit", "3", "--effort", "fast", "--activation", "clipped",
)  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    done = lipcert_process("finetune", EXAMPLE, *QUICK, "--output", "run", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_what_is_handed_back(tuned):
    folder, done = tuned
    recipe = json.loads((folder / "recipe.json").read_text())
    assert json.loads(done.stdout) == recipe
    for name in ("model.onnx", "model.safetensors", "certificate.json", "before/certificate.json"):
        assert (folder / name).is_file()
    assert recipe["parameters"]["conv1.weight"] == [16, 1, 3, 3]
    assert recipe["recipe"]["eps"] == "0.3"
    results = recipe["results"]
    for name in ("before", "after"):
        assert results[name]["n"] == 3
        assert results[name]["certified"] <= results[name]["attack_survived"]
        assert results[name]["attack_survived"] <= results[name]["clean"]
        assert results[name]["assurance"] == "randomised"
    # Both shown side by side, and the training bound by its name.
    assert "before" in done.stderr
    assert "after" in done.stderr
    assert "ESTIMATE" in done.stderr


def test_the_certificate_is_of_the_file_that_was_exported(tuned):
    folder, _ = tuned
    recipe = json.loads((folder / "recipe.json").read_text())
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["model"]["files"]["model.onnx"] == recipe["files"]["model.onnx"]
    before = json.loads((folder / "before" / "certificate.json").read_text())
    assert set(before["model"]["files"]) == {"digits.onnx"}


def test_the_exported_file_runs_and_its_weights_load_over_it(tuned):
    folder, _ = tuned
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    [logits] = session.run(None, {"input": np.zeros((3, 1, 8, 8), np.float32)})
    assert logits.shape == (3, 10)
    weights = load_file(folder / "model.safetensors")
    assert sum(name.endswith(".theta") for name in weights) == 3
    over = (
        "certify", folder / "model.onnx", "--weights", folder / "model.safetensors", "--data",
        "digits", "--eps", "0.3", "--limit", "2", "--method", "local", "--quiet", "--json",
    )  # fmt: skip
    done = lipcert_process(*over, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_the_report_shows_the_run(tuned):
    folder, _ = tuned
    done = lipcert_process("report", folder, "--format", "html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "<h2>Training</h2>" in done.stdout
    assert "Accuracy by epoch" in done.stdout


def test_an_earlier_run_is_not_written_over(tuned, capsys):
    folder, _ = tuned
    assert main(["finetune", str(EXAMPLE), *QUICK, "--output", str(folder)]) == 2
    told = capsys.readouterr().err
    assert "--resume" in told
    assert "--overwrite" in told


def test_resuming_a_finished_run_only_certifies_again(tuned):
    folder, _ = tuned
    before = (folder / "model.onnx").read_bytes()
    again = lipcert_process("finetune", EXAMPLE, *QUICK, "--output", folder, "--resume", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--resume", "--lr", "0.1"), "another recipe (rate 0.002 there, 0.1 now)"),
        (("--resume", "--mean", "0.5"), "another preprocessing (mean None there, [0.5] now)"),
        (("--overwrite", "--batch-size", "5000"), "are left to train on"),
        (("--overwrite", "--mean", "0.5,0.5"), "mean"),
    ],
)
def test_what_cannot_be_done_leaves_an_earlier_run_as_it_was(tuned, capsys, changed, said):
    folder, _ = tuned
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["finetune", str(EXAMPLE), *QUICK, "--output", str(folder), *changed]) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_from_scratch_with_a_named_architecture_and_settings_from_a_file(tmp_path):
    (tmp_path / "lipcert.toml").write_text('arch = "4c3f"\nbound = "local"\neps = ["0.2"]\n')
    options = (
        "--data", "digits", "--epochs", "1", "--train-limit", "40", "--batch-size", "16",
        "--threads", "1", "--no-certify", "--output", "run", "--activation", "maxmin-clipped",
    )  # fmt: skip
    done = lipcert_process("finetune", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["source"]["pretrained"] is False
    assert recipe["recipe"]["eps"] == "0.2"
    assert recipe["parameters"]["conv4.weight"] == [64, 64, 4, 4]
    assert "results" not in recipe
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    [logits] = session.run(None, {"input": np.zeros((2, 1, 8, 8), np.float32)})
    assert logits.shape == (2, 10)


def test_a_network_of_isometries_goes_on_from_where_it_was(tmp_path):
    """Its weights are the same function after they were read again, to the last decision."""
    options = (
        "--arch", "lip-patch", "--data", "digits", "--eps", "0.2", "--epochs", "1", "--batch-size",
        "64", "--lr", "0.02", "--validation", "0.2", "--threads", "1", "--no-certify",
    )  # fmt: skip
    records = []
    for weights, folder in ((), "one"), (("one/model.safetensors",), "two"):
        done = lipcert_process("finetune", *weights, *options, "--output", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        records.append([json.loads(line) for line in lines])
    (_, ended), (begun, _) = records
    assert ended["validation_clean"] > 0.3
    for name in ("validation_clean", "validation_certified_estimate"):
        assert begun[name] == ended[name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((EXAMPLE, "--eps", "0"), "needs a radius above 0"),
        ((EXAMPLE, "--eps", "0.1,0.2"), "--eps"),
        ((EXAMPLE, "--eps", "0.1", "--epochs", "0"), "--epochs 0"),
        ((EXAMPLE, "--eps", "0.1", "--epochs", "3", "--ramp", "5"), "never trained for"),
        ((EXAMPLE, "--eps", "0.1", "--epochs", "3", "--warmup", "5"), "--warmup 5"),
        ((EXAMPLE, "--eps", "0.1", "--train-limit", "1"), "--train-limit 1"),
        ((EXAMPLE, "--eps", "0.1", "--validation", "1.5"), "--validation 1.5"),
        ((EXAMPLE, "--eps", "0.1", "--validation", "0"), "--validation 0"),
        ((EXAMPLE, "--eps", "0.1", "--lr", "nan"), "--lr nan"),
        ((EXAMPLE, "--eps", "0.1", "--resume"), "holds no checkpoint.pt"),
        (("--eps", "0.1"), "--arch"),
        (("--eps", "0.1", "--arch", "9c9f"), "4c3f"),
        ((EXAMPLE, "--eps", "0.1", "--device", "cuda:99"), "torch sees no"),
        ((EXAMPLE, "--eps", "0.1", "--train-data", "absent.npz"), "no such file"),
        (("absent.onnx", "--eps", "0.1"), "no such file"),
        ((EXAMPLE, "--eps", "0.1", "--batch-size", "5000"), "are left to train on"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    given = ["finetune", *map(str, arguments), "--data", "digits", "--output", "run"]
    assert main(given) == 2
    told = capsys.readouterr().err
    assert said in told
    assert the_failure(told).startswith("lipcert: error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--class-weights", "even"), "--class-weights 'even': give balanced"),
        (("--class-weights", "1,2"), "gives 2 numbers, but the model has 10 classes"),
        (("--log", "board"), "--log board: choose among tensorboard, wandb, mlflow"),
        (("--log", "wandb"), "pip install 'lipcert[wandb]'"),
        (("--check", "0"), "--check 0"),
        (("--distil", "-1"), "--distil -1"),
        (("--distil-features", "-1"), "--distil-features -1"),
        (("--sweep", "0,2"), "--sweep '0,2': give the weights of the clean loss"),
        (("--sweep", "0,0"), "each once"),
        (("--sweep", "0,1", "--loss", "emma"), "the loss emma has no κ; give --loss annealed, bcp"),
        (("--sweep", "0,1", "--kappa", "0.5"), "--kappa 0.5: goes without --sweep"),
    ],
)
def test_wrong_use_of_what_trainers_expect(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["finetune", str(EXAMPLE), *QUICK, *arguments, "--output", "run"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("option", ["--distil", "--distil-features"])
def test_from_scratch_there_is_nothing_to_distil(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    given = ["--arch", "2c2f", "--data", "digits", "--eps", "0.3", option, "1"]
    assert main(["finetune", *given, "--output", "run"]) == 2
    assert f"{option} 1: there is no model that came in" in capsys.readouterr().err


def test_a_sweep_is_a_table_of_trainings_and_keeps_every_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [*QUICK, "--sweep", "0,1", "--check", "2", "--class-weights", "balanced"]
    assert main(["finetune", str(EXAMPLE), *options, "--output", "curve", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found == json.loads((tmp_path / "curve" / "sweep.json").read_text())
    assert [point["kappa"] for point in found["points"]] == [0, 1]
    for point in found["points"]:
        recipe = json.loads((tmp_path / "curve" / point["folder"] / "recipe.json").read_text())
        assert recipe["recipe"]["kappa"] == point["kappa"]
        assert recipe["recipe"]["loss"] == "bcp"
        assert recipe["recipe"]["class_weights"] == "balanced"
        assert point["certified"] == recipe["results"]["after"]["certified"] <= point["clean"]
        assert point["validation"]["checked_images"] == 2
        # The model that came in is the same for all, and certified once.
        assert ("before" in recipe["results"]) == (point["kappa"] == 0)
    assert "κ" in told.err
    assert "auto certifies" in told.err
    # Continued, every training is found finished.
    before = (tmp_path / "curve" / "kappa-1" / "model.onnx").read_bytes()
    again = ["finetune", str(EXAMPLE), *options, "--output", "curve", "--resume", "--quiet"]
    assert main(again) == 0
    assert (tmp_path / "curve" / "kappa-1" / "model.onnx").read_bytes() == before


def test_help_holds_what_was_written_and_no_pictures(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["finetune", "--help"]) == 0
    told = capsys.readouterr().out
    # Between two colons a word is a picture to rich.
    assert "package.module:factory" in told
    assert max(map(ord, told)) < 0x1F000


def test_an_npz_file_of_test_images_is_not_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "some.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    given = ["finetune", str(EXAMPLE), "--data", "some.npz", "--eps", "0.1", "--output", "run"]
    assert main(given) == 2
    assert "--train-data" in capsys.readouterr().err


def test_test_images_that_do_not_fit_are_refused_before_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "wide.npz", images=np.zeros((4, 9, 9), np.uint8), labels=np.arange(4))
    options = ["--train-data", "digits", "--eps", "0.1", "--epochs", "1", "--output", "run"]
    assert main(["finetune", str(EXAMPLE), "--data", "wide.npz", *options]) == 2
    assert "[1, 9, 9]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_keep_what_is_done(tmp_path, sent):
    options = [*QUICK, "--epochs", "500", "--no-certify", "--output", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lipcert", "finetune", str(EXAMPLE), *options],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in said.splitlines()[-1]
    assert (Path(tmp_path) / "run" / "checkpoint.pt").is_file()


def test_8c2f_is_trained_and_certified_on_the_archive_of_tiny_imagenet(tmp_path):
    """Pictures of three colours under the names of the published archive, half as wide as there,
    as that takes a quarter of the time."""
    random = np.random.default_rng(0)
    wnids, name = ["n02124075", "n01443537", "n04067472"], "tiny-imagenet-200"

    def picture(label: int) -> bytes:
        pixels = random.integers(0, 60, (34, 34, 3)) + 150 * np.eye(3, dtype=int)[label]
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
        return stream.getvalue()

    order = sorted(wnids)
    with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
        archive.writestr(f"{name}/wnids.txt", "\n".join(wnids))
        for label, wnid in enumerate(order):
            for i in range(3):
                place = f"{name}/train/{wnid}/images/{wnid}_{i}.JPEG"
                archive.writestr(place, picture(label))
        for i in range(3):
            archive.writestr(f"{name}/val/images/val_{i}.JPEG", picture(i))
        rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63" for i, wnid in enumerate(order)]
        archive.writestr(f"{name}/val/val_annotations.txt", "\n".join(rows))
    options = (
        "--arch", "8c2f", "--data", "tiny-imagenet", "--data-dir", ".", "--eps", "0.01",
        "--epochs", "1", "--batch-size", "4", "--power-steps", "1", "--limit", "3", "--effort",
        "fast", "--failure-probability", "0", "--threads", "1", "--output", "run",
    )  # fmt: skip
    done = lipcert_process("finetune", *options, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["parameters"]["conv8.weight"] == [256, 256, 4, 4]
    assert recipe["parameters"]["logits.weight"] == [3, 256]
    assert recipe["steps"] == 2
    after = recipe["results"]["after"]
    assert (after["n"], after["errors"]) == (3, 0)
    # Two steps teach it one class, whose picture has a bound, if only a poor one.
    assert after["clean"] >= 1 / 3 - 1e-9
    rows = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert any(json.loads(row)["verdict"] in ("certified", "unknown") for row in rows)
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert certificate["data"]["class_names"] == order
