"""What a fine-tuning is asked to do, and what is refused before anything is computed."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from lipcert.data import Dataset
from lipcert.data.keys import splits_in
from lipcert.data.layouts import Expected
from lipcert.data.load import FILES
from lipcert.errors import UsageError
from lipcert.options import Options
from lipcert.run import DataSource, Execution, Model, ModelSource, Preprocessing
from lipcert.run.model import expected_by
from lipcert.train import boards, checkpoint, metrics
from lipcert.train.boards import BoardName
from lipcert.train.export import MODEL, RECIPE, WEIGHTS
from lipcert.train.presets import Wanted
from lipcert.train.processes import ProcessGroup
from lipcert.train.recipe import Recipe

BEFORE = "before"
# What a run leaves in its folder.
_FILES = (checkpoint.FILE, metrics.FILE, MODEL, WEIGHTS, RECIPE, "journal*.jsonl",
          "certificate*.json", "samples*.jsonl", "*.npz", "events.out.tfevents.*")  # fmt: skip


@dataclass(frozen=True)
class FineTuning:
    """What is asked for.

    ``model``, ``weights``, ``arch``, ``output_name``: see ``open_source``. ``data`` names the test
    images, and with its split ``train`` the training images, unless ``train_data`` does.
    ``recipe``: a whole one, or what is wanted of one. ``options``: how both files are certified at
    the end. ``certify``: whether they are, the one that came in only to ``compare``. ``boards``:
    where the metrics go beside the folder. ``check``: so many validation images are certified after
    every epoch; None: none.
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
    boards: tuple[BoardName, ...] = ()
    check: int | None = None
    compare: bool = True
    processes: ProcessGroup = field(default_factory=ProcessGroup)

    @property
    def folder(self) -> Path:
        if self.execution.output is None:
            raise UsageError("--output: name a folder for the tuned model")
        return self.execution.output


def check_output(job: FineTuning) -> None:
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
    for name in job.boards:
        boards.package(name)


def prepare_folder(job: FineTuning) -> None:
    """Make it; remove an earlier run, if asked."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {job.folder}: cannot be made: {error.strerror}") from error
    if not (job.execution.overwrite and job.processes.first):
        return
    for folder in (job.folder, job.folder / BEFORE, job.folder / boards.TENSORBOARD):
        for pattern in _FILES:
            for path in folder.glob(pattern):
                path.unlink()


def training_data(job: FineTuning) -> Dataset:
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
    return source.load(split="train", expected=expected(job))


def _has_splits(path: Path) -> bool:
    """Whether a file, if it is one, has arrays of a training split."""
    if path.suffix.lower() == ".npz" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return "train" in splits_in(n.removesuffix(".npy") for n in archive.namelist())
        except (OSError, zipfile.BadZipFile):
            return True  # reading it says what is wrong with it
    return path.suffix.lower() not in FILES


def expected(job: FineTuning) -> Expected | None:
    if job.model is None:
        return None
    return expected_by(ModelSource(job.model, job.weights, job.arch, job.output_name))


def check_labels(model: Model, data: Dataset) -> None:
    largest = int(data.labels.max())
    if largest >= model.classes:
        raise UsageError(
            f"{model.name}: has {model.classes} outputs, but {data.source} has labels up to "
            f"{largest}; give the data that the model was trained for"
        )


def check_test_data(job: FineTuning, model: Model) -> None:
    """Refuse, before the training and not after it, test images that the model does not take. Of
    one data set's splits the training images tell."""
    if job.certify and job.train_data is not None and job.processes.first:
        model.on_images(job.data.load(expected=expected(job)).images.shape[1:])
