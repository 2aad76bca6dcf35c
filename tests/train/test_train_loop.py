"""Runs: continued bit for bit, stopped at a NaN, interrupted, shared by two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from train_models import recipe

import lipcert.train.checkpoint as checkpoint
from lipcert.data import load_dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading.reader import network_of, read
from lipcert.train.boards import opened
from lipcert.train.data import Batches, held_out
from lipcert.train.loop import Training
from lipcert.train.losses import features_apart
from lipcert.train.metrics import Metrics
from lipcert.train.objective import Objective
from lipcert.train.processes import ProcessGroup
from lipcert.train.rewriting import rewrite
from lipcert.train.selection import Selection
from lipcert.train.thresholds import start_thresholds
from lipcert.train.trainable import Trainable, features_of
from lipcert.train.watch import TrainingWatch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "digits.onnx"


class StopAt(TrainingWatch):
    """Asks the run to stop after a step, as Ctrl-C does."""

    def __init__(self, step):
        self.last, self.done = step, 0

    def step(self, figures):
        self.done += 1
        if self.done == self.last:
            self.training.stopped = True


def training(folder, watch=None, *, boards=(), device="cpu", weights=None, teacher=None, **changed):
    asked = recipe(**({"batch_size": 64, "limit": 320} | changed))
    data = load_dataset("digits", split="train")
    image = np.zeros((1, 1, 8, 8), dtype=np.float32)
    found = rewrite(EXAMPLE.read_bytes(), "digits.onnx", asked.activation, "neuron", image)
    trainable = Trainable(found.model, "digits.onnx", lambda network: network)
    train, validation = held_out(data, asked.validation, asked.seed, asked.limit)
    pixels = train.batch(np.arange(200))[0]
    start_thresholds(trainable, found.thresholds, pixels, asked.percentile)
    made = Training(
        Objective(trainable, asked, weights, teacher),
        Batches(train, asked.batch_size, asked.seed, "none"),
        validation,
        folder,
        identity={"recipe": asked.digest},
        processes=ProcessGroup(),
        device=device,
        metrics=Metrics(folder, opened(boards, folder, {})),
        watch=watch or TrainingWatch(),
    )
    if isinstance(watch, StopAt):
        watch.training = made
    return made


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    clock = {"seconds", "images_per_second"}
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@pytest.mark.parametrize("bound", ["local", "dual", "tube"])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(tmp_path, bound, stop):
    whole = training(tmp_path / "whole", bound=bound)
    expected = whole.run(resume=False)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        training(tmp_path / "parts", StopAt(stop), bound=bound).run(resume=False)
    resumed = training(tmp_path / "parts", bound=bound)
    found = resumed.run(resume=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    last, other = whole.objective.state_dict(), resumed.objective.state_dict()
    assert all(torch.equal(last[name], other[name]) for name in last)
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_the_first_record_is_the_model_as_it_came(tmp_path):
    run = training(tmp_path, activation="clipped")
    with torch.no_grad():
        pixels, labels = run.validation.batch(np.arange(len(run.validation)))
        clean = float((run.objective.trainable(pixels).argmax(1) == labels).double().mean())
    run.run(resume=False)
    first, *rest = records(tmp_path)
    assert first["epoch"] == 0
    assert first["loss"] is None
    assert first["validation_clean"] == clean >= 0.95
    assert [record["epoch"] for record in rest] == [1, 2]
    assert rest[-1]["loss"] < 3


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_state(tmp_path):
    run = training(tmp_path)

    class Poison(TrainingWatch):
        def epoch(self, record):
            if record["epoch"] == 1:
                with torch.no_grad():
                    run.objective.trainable.tensors[0][0] = torch.nan

    run.watch = Poison()
    with pytest.raises(CannotCertify, match=r"epoch 2, batch 1: the loss is nan.*checkpoint\.pt"):
        run.run(resume=False)
    # The state of before: the last epoch that ended well.
    progress, state = checkpoint.load(tmp_path, run.identity)
    assert progress.step == len(run.batches)
    weights = [v for k, v in state["averaged"].items()]
    assert all(bool(value.isfinite().all()) for value in weights)


def test_a_step_that_explodes_is_not_taken(tmp_path):
    run = training(tmp_path, rate=1e30, last_rate=1e-5)
    with pytest.raises(CannotCertify, match="lower --lr"):
        run.run(resume=False)


def test_checkpoints_of_another_run_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no checkpoint\.pt"):
        checkpoint.load(tmp_path, {})
    training(tmp_path, epochs=1).run(resume=False)
    with pytest.raises(UsageError, match="another recipe"):
        training(tmp_path, epochs=1, seed=5).run(resume=True)
    path = tmp_path / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CannotCertify, match="is damaged"):
        training(tmp_path, epochs=1).run(resume=True)


def test_a_checkpoint_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_bytes(path, b"before")

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UsageError, match="No space left"):
        checkpoint.write_bytes(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_weights_are_those_that_validated_best(tmp_path):
    run = training(tmp_path, epochs=3)
    best = run.run(resume=False)
    scores = [
        record["validation_certified_estimate"] + 1e-3 * record["validation_clean"]
        for record in records(tmp_path)
    ]
    # The model that came in is handed back where no epoch is better.
    assert run.progress.best_epoch == int(np.argmax(scores))
    assert set(best) == set(run.objective.trainable.names)


def command(folder, *launcher):
    arguments = [
        "finetune", str(EXAMPLE), "--data", "digits", "--eps", "0.3", "--epochs", "1",
        "--train-limit", "320", "--batch-size", "64", "--threads", "1", "--no-certify",
        "--output", str(folder),
    ]  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LIPCERT_")}
    process = subprocess.run(
        [sys.executable, *launcher, "-m", "lipcert", *arguments],
        capture_output=True,
        text=True,
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return records(folder)


def test_two_processes_train_as_one(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29531"]
    alone, shared = command(tmp_path / "one"), command(tmp_path / "two", *torchrun)
    assert [record["step"] for record in alone] == [record["step"] for record in shared]
    for one, two in zip(alone[1:], shared[1:], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert two["validation_clean"] == pytest.approx(one["validation_clean"], abs=0.04)
    recipes = [json.loads((tmp_path / n / "recipe.json").read_text()) for n in ("one", "two")]
    assert [r["processes"] for r in recipes] == [1, 2]
    assert recipes[0]["recipe_sha256"] == recipes[1]["recipe_sha256"]


def test_minutes_plan_the_epochs_and_a_resumed_run_keeps_the_plan(tmp_path):
    stopping = StopAt(1)
    made = training(tmp_path, stopping, minutes=0.05, epochs=1000)
    with pytest.raises(KeyboardInterrupt):
        made.run(resume=False)
    again = training(tmp_path, minutes=0.05, epochs=1000)
    again.run(resume=True)
    assert again.progress.plan is not None
    epochs, steps, _ = again.progress.plan
    assert again.progress.step == epochs * steps
    assert epochs >= 1
    assert made.progress.plan[1:] == again.progress.plan[1:]


def test_a_plan_changes_no_weight_before_the_first_step(tmp_path):
    training(tmp_path / "a", minutes=1e-3).run(resume=False)
    training(tmp_path / "b", epochs=1, ramp=0.0).run(resume=False)
    planned, plain = records(tmp_path / "a")[0], records(tmp_path / "b")[0]
    assert planned["validation_clean"] == plain["validation_clean"]
    assert planned["validation_certified_estimate"] == plain["validation_certified_estimate"]


def test_a_model_that_is_as_certified_as_it_gets_is_handed_back(tmp_path):
    """Training away from what came in loses it; the start is an epoch like any other."""
    made = training(tmp_path, activation="keep", rate=1.0, last_rate=1.0, epochs=1, ramp=0.0)
    start = made.objective.trainable.weights()
    found = made.run(resume=False)
    assert made.progress.best_epoch == 0
    assert all(torch.equal(found[name], start[name]) for name in start)
    # What was asked to be accurate enough is not met by never having been trained.
    other = training(tmp_path / "b", activation="keep", select=Selection.parse("clean>=0.9"))
    other.run(resume=False)
    assert other.progress.best_epoch > 0


def test_patience_ends_where_nothing_gets_better(tmp_path):
    # A rate of next to nothing: the first epoch after the ramp is as good as it gets.
    made = training(tmp_path, epochs=40, ramp=0.0, patience=2, rate=1e-12, last_rate=1e-12)
    made.run(resume=False)
    assert made.progress.step // len(made.batches) <= 10


def test_a_learned_temperature_moves_and_is_not_exported(tmp_path):
    made = training(tmp_path, temperature="learned", epochs=1, ramp=0.0, rate=1e-2)
    weights = made.run(resume=False)
    assert float(made.objective.sharpness.detach()) != 0
    assert set(weights) == set(made.objective.trainable.names)


def came_in():
    return network_of(read(onnx.load(EXAMPLE), "digits.onnx"), "digits.onnx").to(
        dtype=torch.float32
    )


def kept(made):
    """How far the logits are from those of the model that came in."""
    pixels = made.validation.batch(np.arange(len(made.validation)))[0]
    with torch.no_grad():
        return float((made.objective.trainable(pixels) - came_in().logits(pixels)).abs().mean())


def apart(made):
    """How far what the last layer is given has turned from that of the model that came in."""
    pixels, teacher = made.validation.batch(np.arange(len(made.validation)))[0], came_in()
    with torch.no_grad():
        found, values = made.objective.trainable.features(pixels), teacher.values(pixels)
        return float(features_apart(found, features_of(teacher, values)).mean())


def test_distillation_keeps_to_what_came_in_and_ends_with_the_ramp(tmp_path):
    changed = {"activation": "maxmin", "epochs": 6, "ramp": 6.0, "eps_factor": 1e-3, "rate": 1e-3}
    plain = training(tmp_path / "plain", **changed)
    plain.run(resume=False)
    taught = training(tmp_path / "taught", teacher=came_in(), distil=30.0, **changed)
    taught.run(resume=False)
    assert kept(taught) < 0.8 * kept(plain)
    shown = training(tmp_path / "shown", teacher=came_in(), distil_features=30.0, **changed)
    shown.run(resume=False)
    assert apart(shown) < 0.7 * apart(plain)
    # No ramp is left at the end of it.
    schedule = taught.recipe.schedule
    assert (schedule.left_at(0), schedule.left_at(3), schedule.left_at(6)) == (1, 0.5, 0)


def test_a_class_that_counts_for_nothing_is_not_learned(tmp_path):
    weights = torch.tensor([0.0] + [10 / 9] * 9)
    changed = {"activation": "keep", "epochs": 4, "ramp": 0.0, "rate": 1e-2, "loss": "bcp"}
    made = training(tmp_path / "a", weights=weights, **changed)
    made.run(resume=False)
    even = training(tmp_path / "b", **changed)
    even.run(resume=False)

    def found(run):
        pixels, labels = run.batches.images.batch(np.arange(len(run.batches.images)))
        with torch.no_grad():
            zeros = run.objective.trainable(pixels[labels == 0]).argmax(1) == 0
        return float(zeros.double().mean())

    assert found(made) < found(even)
    # Neither is part of what a run is continued from.
    assert "weights" not in made.objective.state_dict()
