"""What a fine-tuning says of itself: as it begins, in ``recipe.json``, and by certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipcert.data import Dataset, choose, relabelled
from lipcert.run import ModelSource, open_model
from lipcert.run.environment import environment
from lipcert.run.progress import Watch
from lipcert.train import metrics
from lipcert.train.data import Images
from lipcert.train.evaluation import certified, figures
from lipcert.train.export import MODEL, RECIPE
from lipcert.train.job import BEFORE, FineTuning, expected
from lipcert.train.loop import Training
from lipcert.train.plan import Plan
from lipcert.train.presets import Wanted
from lipcert.train.recipe import Recipe
from lipcert.train.source import Source
from lipcert.train.trainable import Trainable
from lipcert.train.watch import TrainingWatch
from lipcert.version import VERSION

Record = dict[str, Any]


def told(source: Source, trainable: Trainable, train: Images, validation: Images) -> str:
    numbers = sum(tensor.numel() for tensor in trainable.tensors)
    frozen = trainable.frozen
    kept = f"; used as they are: {', '.join(frozen)}" if frozen else ""
    return (
        f"{source.model.name}: {len(trainable.names)} tensors with {numbers} parameters{kept}; "
        f"{len(train)} images of {train.data.source} to train on, {len(validation)} to validate "
        f"with. {metrics.NOTE}"
    )


def summary(job: FineTuning, recipe: Recipe) -> str:
    preset = f"preset {job.recipe.preset}: " if isinstance(job.recipe, Wanted) else ""
    ends = f"{recipe.epochs} epochs"
    if recipe.minutes is not None:
        ends = f"{recipe.minutes:g} minutes, {ends} at most"
    return (
        f"{preset}bound {recipe.bound}, loss {recipe.loss}, activation {recipe.activation}, rate "
        f"{recipe.rate:g}, {ends}; {RECIPE} will have all of it"
    )


def record_of(
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
        "validation": _validated(training),
        "environment": environment(device),
        "note": metrics.NOTE,
    }  # fmt: skip


def _validated(training: Training) -> Record:
    """What the validation said of the weights that are exported."""
    best = training.progress.best_epoch
    found = next((r for r in training.metrics.records if r["epoch"] == best), {})
    return {k: v for k, v in found.items() if k.startswith(("validation", "checked"))}


def certify(
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
        data.load(expected=expected(job)), data.labelling, source.model.classes, known=classes
    )
    seed = recipe.seed if data.random else None
    indices = choose(dataset, limit=data.limit, indices_file=data.indices_file, seed=seed)
    eps = recipe.eps
    # What the file that came in asks for, that which is handed back does too.
    tuned = open_model(ModelSource(job.folder / MODEL), source.model.preprocessing)
    results: Record = {"eps": eps.text, "method": job.options.method, "unit": dataset.unit}
    todo = [("after", tuned, job.folder)]
    if source.pretrained and job.compare:
        todo.append((BEFORE, source.model, job.folder / BEFORE))
    for name, model, folder in todo:
        watch.say(f"certifying {model.name}, {name} the training, on {len(indices)} images")
        result = certified(
            model, dataset, indices, job.options, job.execution, folder, certify_watch
        )
        results[name] = figures(result, eps)
    return results
