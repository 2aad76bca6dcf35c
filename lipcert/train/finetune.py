"""The road from a pretrained model to a tuned one with its certificate."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipcert.certification.ieee import ieee_arithmetic
from lipcert.data import Dataset, choose, relabelled
from lipcert.data.keys import splits_in
from lipcert.data.layouts import Expected
from lipcert.data.load import FILES
from lipcert.errors import UsageError
from lipcert.loading.architectures import ARCHITECTURES, PatchArchitecture
from lipcert.network import Network
from lipcert.options import Options
from lipcert.run import DataSource, Execution, Model, ModelSource, Preprocessing, open_model
from lipcert.run.devices import check_device
from lipcert.run.environment import environment, threads, training_threads
from lipcert.run.model import expected_by
from lipcert.run.progress import Watch
from lipcert.train import checkpoint, metrics
from lipcert.train.balance import balance
from lipcert.train.data import Batches, Images, held_out, natural
from lipcert.train.evaluation import certified, figures
from lipcert.train.export import MODEL, RECIPE, WEIGHTS, export, write_recipe
from lipcert.train.loop import Training
from lipcert.train.metrics import Metrics
from lipcert.train.objective import Objective
from lipcert.train.plan import Plan
from lipcert.train.presets import Situation, Wanted
from lipcert.train.processes import ProcessGroup
from lipcert.train.recipe import Recipe
from lipcert.train.source import Source, make_trainable, open_source
from lipcert.train.thresholds import start_thresholds
from lipcert.train.trainable import Trainable
from lipcert.train.watch import TrainingWatch
from lipcert.version import VERSION

BEFORE = "before"
# What a run leaves in its folder.
_FILES = (checkpoint.FILE, metrics.FILE, MODEL, WEIGHTS, RECIPE, "journal*.jsonl",
          "certificate*.json", "samples*.jsonl", "*.npz", "events.out.tfevents.*")  # fmt: skip
WIDENED = "the file computes in float16: it is trained in float32, and the tuned file is of float32"
BALANCED = "the norms of its layers are made equal first, which leaves its function as it is"
# So many images tell where thresholds start, and as few as all their activations take 1 GiB.
_THRESHOLD_IMAGES, _THRESHOLD_NUMBERS, _FEWEST_IMAGES = 2000, 2**28, 64
_COMPARED_IMAGES = 8

Record = dict[str, Any]


@dataclass(frozen=True)
class FineTuning:
    """What is asked for.

    ``model``, ``weights``, ``arch``, ``output_name``: see ``open_source``. ``data`` names the test
    images, and with its split ``train`` the training images, unless ``train_data`` does.
    ``recipe``: a whole one, or what is wanted of one. ``options``: how both files are certified at
    the end. ``certify``: whether they are.
    """

    model: Path | None
    weights: Path | None
    arch: str | None
    data: DataSource
    train_data: str | None
    preprocessing: Preprocessing
    recipe: Recipe | Wanted
    options: Options
    execution: Execution
    certify: bool = True
    output_name: str | None = None
    tensorboard: bool = False
    processes: ProcessGroup = field(default_factory=ProcessGroup)

    @property
    def folder(self) -> Path:
        if self.execution.output is None:
            raise UsageError("--output: name a folder for the tuned model")
        return self.execution.output


def finetune(job: FineTuning, watch: TrainingWatch, certify_watch: Watch | None = None) -> Record:
    """Train, export, certify before and after; the record that ``recipe.json`` holds.

    Processes other than the first return after the training, with an empty record. Raises
    ``KeyboardInterrupt``, whose message tells how to go on, where it is interrupted.
    """
    _check_output(job)
    device = check_device(job.processes.device(job.execution.device))
    if job.processes.first:
        watch.stage("reading the training data and the model")
    training_data, labelling = _training_data(job), job.data.labelling
    named = job.arch is not None and ":" not in job.arch
    if named:  # it gets as many outputs as the data have classes
        training_data = relabelled(training_data, labelling)
    recipe = _recipe(job, training_data)
    source = open_source(
        job.model, job.weights, job.arch, job.preprocessing, training_data, recipe.seed,
        job.output_name,
    )  # fmt: skip
    if not named:
        training_data = relabelled(training_data, labelling, source.model.classes)
    trainable, rewritten = make_trainable(source.model, recipe, training_data)
    balanced = (BALANCED,) if balance(trainable) else ()
    network = trainable.network()
    _check_labels(source.model, training_data)
    _check_test_data(job, source.model)
    with threads(job.execution.threads or training_threads(network)):
        train, validation = held_out(training_data, recipe.validation, recipe.seed, recipe.limit)
        if len(train) < recipe.batch_size:
            raise UsageError(
                f"--batch-size {recipe.batch_size}: only {len(train)} images are left to train on; "
                f"give at most {len(train)}"
            )
        some = train.batch(np.arange(min(len(train), _threshold_images(network))))[0]
        start_thresholds(trainable, rewritten.thresholds, some, recipe.percentile)
        # No TF32 in the bound either.
        with job.processes.joined(device), ieee_arithmetic():
            training = _training(job, recipe, source, trainable, train, validation, device, watch)
            watch.say(_told(source, trainable, train, validation))
            watch.say(_summary(job, recipe))
            wide = (WIDENED,) if rewritten.widened else ()
            for note in (*source.model.loaded.notes, *wide, *balanced, *training_data.notes):
                watch.say(note)
            best = training.run(resume=job.execution.resume)
        if not job.processes.first:
            return {}
        files = export(trainable.cpu(), best, job.folder, some[:_COMPARED_IMAGES])
    record = _record(job, recipe, source, trainable, training, training_data, device) | {
        "seconds": sum(line["seconds"] for line in training.metrics.records),
        "files": files,
    }
    write_recipe(job.folder, record)
    if job.certify:
        classes = training_data.names if training_data.by_name else ()
        try:
            record["results"] = _certify(
                job, recipe, source, classes, watch, certify_watch or Watch()
            )
        except KeyboardInterrupt as stop:
            kept = f"interrupted; the tuned file is {job.folder / MODEL}: repeat the command with "
            raise KeyboardInterrupt(str(stop) or kept + "--resume to certify it") from None
        write_recipe(job.folder, record)
    return record


def _check_output(job: FineTuning) -> None:
    """Refuse, before anything is computed, what could not be written, or only over a run."""
    folder = job.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: is a file; name a folder")
    kept = [path for path in (folder / checkpoint.FILE, folder / MODEL) if path.exists()]
    if kept and not (job.execution.resume or job.execution.overwrite):
        raise UsageError(
            f"--output {folder}: holds {kept[0].name} of an earlier run; continue it with "
            "--resume, or start afresh with --overwrite"
        )
    if job.execution.resume:
        checkpoint.required(folder)
    if job.tensorboard:
        metrics.summary_writer()


def _prepare_folder(job: FineTuning) -> None:
    """Make it; remove an earlier run, if asked."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {job.folder}: cannot be made: {error.strerror}") from error
    if not (job.execution.overwrite and job.processes.first):
        return
    for folder in (job.folder, job.folder / BEFORE, job.folder / metrics.BOARD):
        for pattern in _FILES:
            for path in folder.glob(pattern):
                path.unlink()


def _training_data(job: FineTuning) -> Dataset:
    """With the labels that the files have; the model's are known later."""
    spec = job.train_data or job.data.spec
    if job.train_data is None and not _has_splits(Path(spec)):
        raise UsageError(
            f"--data {spec}: holds the test images; name the training images with --train-data"
        )
    known = spec == job.data.spec
    source = job.data if known else replace(job.data, spec=spec, value_range=None, labels=None)
    if not (known or Path(spec).is_file()):
        source = replace(source, layout="auto")
    return source.load(split="train", expected=_expected(job))


def _has_splits(path: Path) -> bool:
    """Whether a file, if it is one, has arrays of a training split."""
    if path.suffix.lower() == ".npz" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return "train" in splits_in(n.removesuffix(".npy") for n in archive.namelist())
        except (OSError, zipfile.BadZipFile):
            return True  # reading it says what is wrong with it
    return path.suffix.lower() not in FILES


def _expected(job: FineTuning) -> Expected | None:
    if job.model is None:
        return None
    return expected_by(ModelSource(job.model, job.weights, job.arch, job.output_name))


def _check_labels(model: Model, data: Dataset) -> None:
    largest = int(data.labels.max())
    if largest >= model.classes:
        raise UsageError(
            f"{model.name}: has {model.classes} outputs, but {data.source} has labels up to "
            f"{largest}; give the data that the model was trained for"
        )


def _check_test_data(job: FineTuning, model: Model) -> None:
    """Refuse, before the training and not after it, test images that the model does not take. Of
    one data set's splits the training images tell."""
    if job.certify and job.train_data is not None and job.processes.first:
        model.on_images(job.data.load(expected=_expected(job)).images.shape[1:])


def _recipe(job: FineTuning, data: Dataset) -> Recipe:
    if isinstance(job.recipe, Recipe):
        return job.recipe
    wanted = ARCHITECTURES.get(job.arch or "")
    patches, pretrained = isinstance(wanted, PatchArchitecture), job.model is not None
    found = job.recipe.recipe(Situation(natural(data), patches, pretrained))
    if job.recipe.given.get("batch_size") is not None:
        return found
    # No preset asks for larger batches than there are images.
    count = min(len(data), found.limit or len(data))
    world = job.processes.world
    most = (count - round(count * found.validation)) // world * world
    return replace(found, batch_size=max(1, min(found.batch_size, most)))


def _training(
    job: FineTuning,
    recipe: Recipe,
    source: Source,
    trainable: Trainable,
    train: Images,
    validation: Images,
    device: str,
    watch: TrainingWatch,
) -> Training:
    processes = job.processes
    augment = recipe.augment == "crop-flip" or (recipe.augment == "auto" and natural(train.data))
    if augment and train.data.images.ndim != 4:
        raise UsageError("--augment crop-flip: the images are flat; give --augment none")
    batches = Batches(
        train, recipe.batch_size, recipe.seed, augment, processes.rank, processes.world
    )
    # How many processes share a batch changes nothing but the rounding.
    identity = {
        "version": VERSION,
        "recipe": recipe.to_json(),
        "model": dict(source.model.loaded.files) or source.model.name,
        "preprocessing": source.model.preprocessing.to_json(),
        "data": train.data.sha256,
    }
    torch.manual_seed(recipe.seed)
    objective = Objective(trainable, recipe)
    # Only now is everything that was asked for known to be possible.
    _prepare_folder(job)
    return Training(
        objective,
        batches,
        validation,
        job.folder,
        identity=identity,
        processes=processes,
        device=device,
        metrics=Metrics(job.folder, tensorboard=job.tensorboard and processes.first),
        watch=watch if processes.first else TrainingWatch(),
    )


def _threshold_images(network: Network) -> int:
    values = sum(math.prod(node.shape) for node in network.nodes)
    return max(_FEWEST_IMAGES, min(_THRESHOLD_IMAGES, _THRESHOLD_NUMBERS // values))


def _told(source: Source, trainable: Trainable, train: Images, validation: Images) -> str:
    numbers = sum(tensor.numel() for tensor in trainable.tensors)
    frozen = trainable.frozen
    kept = f"; used as they are: {', '.join(frozen)}" if frozen else ""
    return (
        f"{source.model.name}: {len(trainable.names)} tensors with {numbers} parameters{kept}; "
        f"{len(train)} images of {train.data.source} to train on, {len(validation)} to validate "
        f"with. {metrics.NOTE}"
    )


def _summary(job: FineTuning, recipe: Recipe) -> str:
    preset = f"preset {job.recipe.preset}: " if isinstance(job.recipe, Wanted) else ""
    ends = f"{recipe.epochs} epochs"
    if recipe.minutes is not None:
        ends = f"{recipe.minutes:g} minutes, {ends} at most"
    return (
        f"{preset}bound {recipe.bound}, loss {recipe.loss}, activation {recipe.activation}, rate "
        f"{recipe.rate:g}, {ends}; {RECIPE} will have all of it"
    )


def _record(
    job: FineTuning,
    recipe: Recipe,
    source: Source,
    trainable: Trainable,
    training: Training,
    data: Dataset,
    device: str,
) -> Record:
    progress = training.progress
    return {
        "lipcert": VERSION,
        "source": source.model.to_json() | {"arch": job.arch, "pretrained": source.pretrained},
        "preset": job.recipe.preset if isinstance(job.recipe, Wanted) else None,
        "recipe": recipe.to_json(),
        "recipe_sha256": recipe.digest,
        "training_eps": recipe.training_eps,
        "planned": None if progress.plan is None else vars(Plan(*progress.plan)),
        "parameters": {name: list(t.shape) for name, t in trainable.weights().items()},
        "frozen": list(trainable.frozen),
        "data": {
            "source": data.source,
            "sha256": data.sha256,
            "trained_on": len(training.batches.images),
            "validated_with": len(training.validation),
            "augmented": training.batches.augment,
        },
        "processes": job.processes.world,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "environment": environment(device),
        "note": metrics.NOTE,
    }  # fmt: skip


def _certify(
    job: FineTuning,
    recipe: Recipe,
    source: Source,
    classes: Sequence[str],
    watch: TrainingWatch,
    certify_watch: Watch,
) -> Record:
    """The test images are loaded here, for the first time; ``classes``: the names by which the
    training images were numbered, if any."""
    data = job.data
    dataset = relabelled(
        data.load(expected=_expected(job)), data.labelling, source.model.classes, known=classes
    )
    seed = recipe.seed if data.random else None
    indices = choose(dataset, limit=data.limit, indices_file=data.indices_file, seed=seed)
    eps = recipe.eps
    # What the file that came in asks for, that which is handed back does too.
    tuned = open_model(ModelSource(job.folder / MODEL), source.model.preprocessing)
    results: Record = {"eps": eps.text, "method": job.options.method, "unit": dataset.unit}
    todo = [("after", tuned, job.folder)]
    if source.pretrained:
        todo.append((BEFORE, source.model, job.folder / BEFORE))
    for name, model, folder in todo:
        watch.say(f"certifying {model.name}, {name} the training, on {len(indices)} images")
        result = certified(
            model, dataset, indices, job.options, job.execution, folder, certify_watch
        )
        results[name] = figures(result, eps)
    return results
