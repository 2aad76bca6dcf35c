"""Validations: every process takes its part, and a check certifies what would be handed back."""

import numpy as np
import pytest
import torch
from test_train_loop import EXAMPLE, training
from train_models import recipe

from lipcert.data import load_dataset
from lipcert.options import Epsilon, Options
from lipcert.run import Execution, ModelSource, Preprocessing, certify_dataset, open_model
from lipcert.train.data import held_out
from lipcert.train.objective import Objective
from lipcert.train.processes import ProcessGroup
from lipcert.train.source import make_trainable
from lipcert.train.validation import Check, validated
from lipcert.train.watch import TrainingWatch


@pytest.fixture(scope="module")
def made():
    asked = recipe(eps=Epsilon.parse("0.3"), activation="keep", bound="global", sparsity=0.0)
    data = load_dataset("digits", split="train")
    model = open_model(ModelSource(EXAMPLE), Preprocessing())
    trainable, _ = make_trainable(model, asked, data)
    return Objective(trainable, asked), model, held_out(data, 0.1, 0, 320)[1]


def test_a_check_says_what_certify_says_of_the_same_images(made):
    objective, model, images = made
    # Weights other than the file's: it is these that are certified.
    with torch.no_grad():
        objective.trainable.tensors[-1].add_(0.01)
    check = Check(model, Epsilon.parse("0.3"), 8, Execution(threads=1))
    found = check(objective, images, "cpu")
    some = images.some(8)
    clean, estimate = validated(objective, some, 0.3, ProcessGroup(), "cpu")
    assert found["checked_images"] == 8
    assert found["checked_estimate"] == estimate <= clean
    assert found["checked_difference"] == found["checked_certified"] - estimate
    # The product of norms is looser than auto.
    assert estimate <= found["checked_certified"] <= clean
    options = Options(eps=(Epsilon.parse("0.3"),), effort="fast")
    before = certify_dataset(model, some.data, some.indices, options, Execution(threads=1))
    radii = [sample.radius for sample in before.samples]
    assert found["checked_certified"] == pytest.approx(np.mean(np.array(radii) >= 0.3), abs=0.13)


def test_processes_share_a_validation(made):
    objective, _, images = made

    class Counted(ProcessGroup):
        def total(self, values):
            parts.append(values.clone())
            return values

    parts = []
    whole = validated(objective, images, 0.3, ProcessGroup(), "cpu")
    for rank in range(3):
        validated(objective, images, 0.3, Counted(rank, 3), "cpu")
    _, clean, robust, count = torch.stack(parts).sum(0).tolist()
    assert count == len(images)
    assert (clean / count, robust / count) == pytest.approx(whole)


def test_every_record_has_the_check_and_the_line_says_the_difference(tmp_path, made, capsys):
    told = []

    class Kept(TrainingWatch):
        def epoch(self, record):
            told.append(record)

    run = training(tmp_path, Kept(), activation="keep", epochs=1, ramp=0.0)
    run.check = Check(made[1], Epsilon.parse("0.3"), 4, Execution(threads=1))
    run.run(resume=False)
    assert len(told) == 2
    for record in told:
        difference = record["checked_certified"] - record["checked_estimate"]
        assert record["checked_difference"] == difference
