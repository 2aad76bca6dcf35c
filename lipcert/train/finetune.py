"""The road from a pretrained model to a tuned one with its certificate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from lipcert.certification.ieee import ieee_arithmetic
from lipcert.data import Dataset, relabelled
from lipcert.errors import UsageError
from lipcert.loading.architectures import ARCHITECTURES, PatchArchitecture
from lipcert.network import Network
from lipcert.run.devices import check_device
from lipcert.run.environment import threads, training_threads
from lipcert.run.progress import Watch
from lipcert.train import boards
from lipcert.train.balance import balance
from lipcert.train.data import Batches, Images, chosen_augment, held_out, natural
from lipcert.train.export import MODEL, export, write_recipe
from lipcert.train.job import (
    FineTuning,
    check_labels,
    check_output,
    check_test_data,
    prepare_folder,
    training_data,
)
from lipcert.train.loop import Training
from lipcert.train.metrics import Metrics
from lipcert.train.objective import Objective
from lipcert.train.outcome import Record, certify, record_of, summary, told
from lipcert.train.presets import Situation
from lipcert.train.recipe import Recipe
from lipcert.train.rewriting import Rewritten
from lipcert.train.source import Source, make_trainable, open_source
from lipcert.train.thresholds import start_thresholds
from lipcert.train.trainable import Trainable
from lipcert.train.validation import Check
from lipcert.train.watch import TrainingWatch
from lipcert.version import VERSION

WIDENED = "the file computes in float16: it is trained in float32, and the tuned file is of float32"
BALANCED = "the norms of its layers are made equal first, which leaves its function as it is"
# So many images tell where thresholds start, and as few as all their activations take 1 GiB.
_THRESHOLD_IMAGES, _THRESHOLD_NUMBERS, _FEWEST_IMAGES = 2000, 2**28, 64
_COMPARED_IMAGES = 8


def finetune(job: FineTuning, watch: TrainingWatch, certify_watch: Watch | None = None) -> Record:
    """Train, export, certify before and after; the record that ``recipe.json`` holds.

    Processes other than the first return after the training, with an empty record. Raises
    ``KeyboardInterrupt``, whose message tells how to go on, where it is interrupted.
    """
    check_output(job)
    device = check_device(job.processes.device(job.execution.device))
    if job.processes.first:
        watch.stage("reading the training data and the model")
    opened = _opened(job)
    with threads(job.execution.threads or training_threads(opened.trainable.network())):
        record = _trained(job, opened, device, watch)
    if not job.processes.first:
        return {}
    write_recipe(job.folder, record)
    if job.certify:
        classes = opened.data.names if opened.data.by_name else ()
        source, recipe = opened.source, opened.recipe
        try:
            record["results"] = certify(
                job, recipe, source, classes, watch, certify_watch or Watch()
            )
        except KeyboardInterrupt as stop:
            kept = f"interrupted; the tuned file is {job.folder / MODEL}: repeat the command with "
            raise KeyboardInterrupt(str(stop) or kept + "--resume to certify it") from None
        write_recipe(job.folder, record)
    return record


@dataclass(frozen=True)
class _Opened:
    """What a training starts from; ``balanced``: whether norms of layers were made equal."""

    data: Dataset
    recipe: Recipe
    source: Source
    trainable: Trainable
    rewritten: Rewritten
    balanced: bool


def _opened(job: FineTuning) -> _Opened:
    data, labelling = training_data(job), job.data.labelling
    named = job.arch is not None and ":" not in job.arch
    if named:  # it gets as many outputs as the data have classes
        data = relabelled(data, labelling)
    recipe = _recipe(job, data)
    source = open_source(
        job.model, job.weights, job.arch, job.preprocessing, data, recipe.seed, job.output_name
    )
    for name, weight in (
        ("--distil", recipe.distil),
        ("--distil-features", recipe.distil_features),
    ):
        if weight and not source.pretrained:
            raise UsageError(
                f"{name} {weight:g}: there is no model that came in to learn from; give one, or "
                "leave it out"
            )
    if not named:
        data = relabelled(data, labelling, source.model.classes)
    trainable, rewritten = make_trainable(source.model, recipe, data)
    if recipe.distil_features:
        # Refused before anything is trained, where there are none.
        trainable.features(torch.zeros(1, *trainable.template.in_shape))
    # Of isometries the norms are equal; scaled ones would be other isometries.
    balanced = not _in_patches(job) and balance(trainable)
    check_labels(source.model, data)
    check_test_data(job, source.model)
    return _Opened(data, recipe, source, trainable, rewritten, balanced)


def _trained(job: FineTuning, opened: _Opened, device: str, watch: TrainingWatch) -> Record:
    """Train and export; the record of both, empty for processes other than the first."""
    recipe, trainable = opened.recipe, opened.trainable
    train, validation = held_out(opened.data, recipe.validation, recipe.seed, recipe.limit)
    if len(train) < recipe.batch_size:
        raise UsageError(
            f"--batch-size {recipe.batch_size}: only {len(train)} images are left to train on; "
            f"give at most {len(train)}"
        )
    some = train.batch(np.arange(min(len(train), _threshold_images(trainable.network()))))[0]
    start_thresholds(trainable, opened.rewritten.thresholds, some, recipe.percentile)
    # No TF32 in the bound either.
    with job.processes.joined(device), ieee_arithmetic():
        training = _training(job, opened, train, validation, device, watch)
        watch.say(told(opened.source, trainable, train, validation))
        watch.say(summary(job, recipe))
        for note in _notes(opened):
            watch.say(note)
        best = training.run(resume=job.execution.resume)
    if not job.processes.first:
        return {}
    files = export(trainable.cpu(), best, job.folder, some[:_COMPARED_IMAGES])
    record = record_of(job, recipe, opened.source, trainable, training, opened.data, device)
    seconds = sum(line["seconds"] for line in training.metrics.records)
    return record | {"seconds": seconds, "files": files}


def _notes(opened: _Opened) -> tuple[str, ...]:
    wide = (WIDENED,) if opened.rewritten.widened else ()
    balanced = (BALANCED,) if opened.balanced else ()
    return (*opened.source.model.loaded.notes, *wide, *balanced, *opened.data.notes)


def _recipe(job: FineTuning, data: Dataset) -> Recipe:
    if isinstance(job.recipe, Recipe):
        return job.recipe
    situation = Situation(natural(data), _in_patches(job), pretrained=job.model is not None)
    found = job.recipe.recipe(situation)
    if job.recipe.given.get("batch_size") is not None:
        return found
    # No preset asks for larger batches than there are images.
    count = min(len(data), found.limit or len(data))
    world = job.processes.world
    most = (count - round(count * found.validation)) // world * world
    return replace(found, batch_size=max(1, min(found.batch_size, most)))


def _in_patches(job: FineTuning) -> bool:
    return isinstance(ARCHITECTURES.get(job.arch or ""), PatchArchitecture)


def _training(
    job: FineTuning,
    opened: _Opened,
    train: Images,
    validation: Images,
    device: str,
    watch: TrainingWatch,
) -> Training:
    processes, recipe, model = job.processes, opened.recipe, opened.source.model
    augment = chosen_augment(recipe.augment, train.data, _in_patches(job))
    batches = Batches(
        train, recipe.batch_size, recipe.seed, augment, processes.rank, processes.world
    )
    # How many processes share a batch changes nothing but the rounding.
    identity = {
        "version": VERSION,
        "recipe": recipe.to_json(),
        "model": dict(model.loaded.files) or model.name,
        "preprocessing": model.preprocessing.to_json(),
        "data": train.data.sha256,
    }
    torch.manual_seed(recipe.seed)
    objective = _objective(opened, train)
    # Only now is everything that was asked for known to be possible.
    prepare_folder(job)
    shown = boards.opened(job.boards, job.folder, recipe.to_json()) if processes.first else ()
    check = None
    if job.check is not None:
        check = Check(model, recipe.eps, job.check, job.execution)
    return Training(
        objective,
        batches,
        validation,
        job.folder,
        identity=identity,
        processes=processes,
        device=device,
        metrics=Metrics(job.folder, shown),
        watch=watch if processes.first else TrainingWatch(),
        check=check,
    )


def _objective(opened: _Opened, train: Images) -> Objective:
    recipe, model, data = opened.recipe, opened.source.model, opened.data
    weights, teacher = None, None
    if recipe.class_weights is not None:
        found = recipe.class_weights.of(data.labels[train.indices], model.classes)
        weights = torch.from_numpy(found).float()
    if recipe.distil or recipe.distil_features:
        teacher = model.on_images(data.images.shape[1:]).to(dtype=torch.float32)
    return Objective(opened.trainable, recipe, weights, teacher)


def _threshold_images(network: Network) -> int:
    return max(_FEWEST_IMAGES, min(_THRESHOLD_IMAGES, _THRESHOLD_NUMBERS // network.size))
