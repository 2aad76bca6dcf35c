"""Presets: whole recipes for every situation, which give way to what is asked for."""

import json
from pathlib import Path
from typing import get_args

import pytest

from lipcert.cli.main import main
from lipcert.errors import UsageError
from lipcert.options import Epsilon
from lipcert.train.presets import PresetName, Situation, Wanted
from lipcert.train.selection import Selection

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "examples" / "finetune-digits" / "own.onnx"
EPS = Epsilon.parse("0.3")
SMALL, PHOTOGRAPHS = Situation(False, False, True), Situation(True, False, True)


def wanted(preset: PresetName = "standard", **given: object) -> Wanted:
    return Wanted(EPS, preset, given)


@pytest.mark.parametrize("preset", get_args(PresetName))
@pytest.mark.parametrize("situation", list(Situation.all()))
def test_every_situation_has_a_whole_recipe(preset, situation):
    found = wanted(preset).recipe(situation)
    assert found.eps == EPS
    assert found.warmup + found.ramp < found.epochs
    assert (found.minutes is None) == (preset == "published")
    # Isometries need no bound of norms, and their loss knows it.
    assert (found.loss == "offset") == situation.patches


def test_times_and_epochs():
    times = {name: wanted(name).recipe(SMALL).minutes for name in ("quick", "standard")}
    assert times == {"quick": 3, "standard": 15}
    assert wanted("standard").recipe(PHOTOGRAPHS).minutes == 60
    assert wanted("published").recipe(PHOTOGRAPHS).epochs == 800
    # Epochs that are asked for are not cut short by a clock that was not; both together limit.
    assert wanted(epochs=12).recipe(SMALL).minutes is None
    assert wanted(epochs=12, minutes=2.0).recipe(SMALL).minutes == 2
    assert wanted(minutes=2.0).recipe(SMALL).epochs == wanted().recipe(SMALL).epochs


def test_photographs_keep_their_accuracy_and_small_images_have_some_to_spare():
    assert wanted().recipe(PHOTOGRAPHS).loss == "emma"
    assert wanted().recipe(PHOTOGRAPHS).eps_factor == 1
    assert wanted().recipe(SMALL).loss == "gloro"
    assert wanted().recipe(SMALL).eps_factor == 1.1


def test_what_came_in_for_photographs_takes_many_long_steps():
    found, scratch = (wanted().recipe(Situation(True, False, came)) for came in (True, False))
    assert (found.batch_size, found.rate) == (64, 4e-3)
    assert found.batch_size < scratch.batch_size
    assert found.rate > scratch.rate
    assert found.ramp < scratch.ramp


def test_what_is_asked_for_outranks_the_preset():
    found = wanted(
        "quick",
        loss="bcp",
        rate=0.5,
        epochs=8,
        warmup=2.0,
        select=Selection.parse("clean"),
        ema=None,
    ).recipe(SMALL)
    assert (found.loss, found.rate, found.select.text) == ("bcp", 0.5, "clean")
    # A quarter of what the warm-up leaves; what is None is the preset's.
    assert found.ramp == 1.5
    assert found.ema == wanted("quick").recipe(SMALL).ema
    assert wanted(ramp=1.0).recipe(SMALL).ramp == 1


def test_what_no_situation_allows_is_refused_before_anything_is_read():
    with pytest.raises(UsageError, match="--lr"):
        wanted(rate=-1.0).check()
    with pytest.raises(UsageError, match="--warmup 3 and --ramp 0"):
        wanted(epochs=2, warmup=3.0).check()


def test_defaults_alone_make_a_network_certify(tmp_path, monkeypatch):
    """A network that was trained for accuracy alone, no option of training given."""
    monkeypatch.chdir(tmp_path)
    given = ["--data", "digits", "--eps", "0.3", "--threads", "1", "--quiet"]
    certify = ["--limit", "60", "--effort", "fast", "--preset", "quick"]
    assert main(["finetune", str(OWN), *given, *certify]) == 0
    found = json.loads((tmp_path / "own-tuned" / "recipe.json").read_text())
    assert found["preset"] == "quick"
    before, after = found["results"]["before"], found["results"]["after"]
    gained = after["certified"] - before["certified"]
    assert gained > max(0.0, before["clean"] - after["clean"])
    assert found["seconds"] < 60 * found["recipe"]["minutes"] * 1.2


def test_batches_are_no_larger_than_the_images(tmp_path):
    given = ["--data", "digits", "--eps", "0.3", "--epochs", "1", "--train-limit", "60", "--quiet"]
    folder = tmp_path / "few"
    assert main(["finetune", str(OWN), *given, "--no-certify", "--output", str(folder)]) == 0
    assert json.loads((folder / "recipe.json").read_text())["recipe"]["batch_size"] == 54
