"""Boards say what the metrics say, of packages that are there and of those that are not."""

import json
import sys
from types import SimpleNamespace

import pytest

from lipcert.errors import UsageError
from lipcert.train.boards import opened, parse
from lipcert.train.metrics import Metrics

RECORDS = [{"epoch": k, "loss": None if k == 0 else 2.0 - k, "text": "0.3"} for k in range(3)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_absent_is_named_with_its_extra(tmp_path, monkeypatch, name):
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"--log {name}: .*lipcert\[{name}\]"):
        opened([name], tmp_path, {})


def test_names_are_checked_and_each_counts_once():
    assert parse(["wandb", "tensorboard", "wandb"]) == ("tensorboard", "wandb")
    with pytest.raises(UsageError, match="--log board: choose among tensorboard, wandb, mlflow"):
        parse(["board"])


def events(folder):
    """What a reader of the events sees: the steps and values of each scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in reader.Scalars(name)]
        for name in reader.Tags()["scalars"]
    }


def test_tensorboard_reads_what_the_metrics_say_and_forgets_what_is_done_again(tmp_path):
    first = Metrics(tmp_path, opened(["tensorboard"], tmp_path, {}))
    for record in RECORDS:
        first.add(record)
    assert events(tmp_path)["loss"] == [(1, 1.0), (2, 0.0)]
    again = Metrics(tmp_path, opened(["tensorboard"], tmp_path, {}))
    again.resume(1)
    again.add({"epoch": 2, "loss": 0.5})
    again.close()
    assert events(tmp_path)["loss"] == [(1, 1.0), (2, 0.5)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]


class Recorder:
    """Stands for wandb and for mlflow: what they are told, in order."""

    def __init__(self):
        self.told = []
        self.id, self.info = "w1", SimpleNamespace(run_id="m1")

    def init(self, **given):
        self.told.append(("init", given))
        return self

    def log(self, figures, step):
        self.told.append(("log", step, figures))

    def finish(self):
        self.told.append(("finish",))

    def start_run(self, **given):
        self.told.append(("start", given))
        return self

    def log_params(self, parameters):
        self.told.append(("parameters", parameters))

    def log_metrics(self, figures, step):
        self.told.append(("log", step, figures))

    def end_run(self):
        self.told.append(("finish",))


def run_of(name, folder, monkeypatch, *, resume):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)
    metrics = Metrics(folder, opened([name], folder, {"loss": "bcp"}))
    if resume:
        metrics.resume(1)
    for record in RECORDS[2 if resume else 0 :]:
        metrics.add(record)
    metrics.close()
    return recorder.told


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_boards_get_every_number_of_every_epoch(tmp_path, monkeypatch, name):
    told = run_of(name, tmp_path / "tuned", monkeypatch, resume=False)
    assert [entry for entry in told if entry[0] == "log"] == [
        ("log", 0, {}), ("log", 1, {"loss": 1.0}), ("log", 2, {"loss": 0.0}),
    ]  # fmt: skip
    assert told[-1] == ("finish",)
    assert {"loss": "bcp"} in [told[0][1].get("config"), told[1][1]]
    assert "tuned" in told[0][1].values()


@pytest.mark.parametrize(("name", "expected"), [("wandb", "w1"), ("mlflow", "m1")])
def test_a_run_that_is_continued_goes_on_where_it_was(tmp_path, monkeypatch, name, expected):
    run_of(name, tmp_path, monkeypatch, resume=False)
    told = run_of(name, tmp_path, monkeypatch, resume=True)
    assert expected in told[0][1].values()
    assert [entry[1] for entry in told if entry[0] == "log"] == [2]
    # Parameters were told, and MLflow refuses to change them.
    assert not [entry for entry in told if entry[0] == "parameters"]
    (tmp_path / "boards.json").write_text("{")
    with pytest.raises(UsageError, match=r"boards\.json: is damaged"):
        run_of(name, tmp_path, monkeypatch, resume=True)
