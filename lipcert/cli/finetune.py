"""``lipcert finetune``: from a pretrained model to one that certifies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipcert.cli import groups, shared
from lipcert.cli import training_options as options
from lipcert.cli.groups import DataReading, ModelInput, Output, grouped
from lipcert.cli.parse import texts
from lipcert.cli.shared import (
    DATA_HELP,
    EXPECTS,
    SAMPLES,
    AllowCode,
    Debug,
    RecipeFile,
    ShowConfig,
)
from lipcert.cli.training_options import TrainingOptions
from lipcert.errors import InternalError, UsageError
from lipcert.options import Effort, Epsilon, Options

if TYPE_CHECKING:
    from rich.console import Console

    from lipcert.train.boards import BoardName
    from lipcert.train.class_weights import ClassWeights
    from lipcert.train.job import FineTuning

_MODEL = EXPECTS
_DATA = SAMPLES
_AIM = "What to train for"
_HOW = "How to train"
_TEST = "How to certify the result"
_RUN = "How to run"
_OUT = "What to write"


@grouped(
    expectation=groups.expectation, reading=groups.reading, training=options.training,
    telling=groups.telling,
)  # fmt: skip
def finetune(
    *,
    data: Annotated[
        str,
        typer.Option(
            help=f"{DATA_HELP} The split train is trained on and the split test certified; for a "
            "file without splits see --train-data.",
            rich_help_panel=_DATA,
        ),
    ],
    eps: Annotated[
        str,
        typer.Option(
            help="L2 radius to certify, in the unit of the data, for images pixels of [0,1], such "
            "as 0.5 or 36/255.",
            rich_help_panel=_AIM,
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]",
            help="An ONNX file; or weights, .safetensors or a state dict (.pt), with --arch; left "
            "out, --arch from scratch.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="lip-patch or lip-patch-wide, isometries for short budgets; liresnet, linear "
            "residual blocks; 2c2f, 4c3f, 6c2f or 8c2f; from scratch or for weights; or "
            "package.module:factory for weights.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A .safetensors file that replaces the ONNX file's weights.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(
            help="Which one of several outputs is trained and certified.", rich_help_panel=_MODEL
        ),
    ] = None,
    expectation: ModelInput,
    train_data: options.TrainData = None,
    train_limit: options.TrainLimit = None,
    validation: options.Validation = 0.1,
    augment: options.Augment = "auto",
    class_weights: options.ClassWeights = None,
    reading: DataReading,
    training: TrainingOptions,
    sweep: options.Sweep = None,
    check: options.Check = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="A folder for model.onnx, model.safetensors, recipe.json, the metrics and both "
            "certificates; if not given, MODEL-tuned here.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify/--no-certify",
            help="Certify the exported file, and the one before it.",
            rich_help_panel=_TEST,
        ),
    ] = True,
    limit: Annotated[
        int,
        typer.Option(help="Certify only so many test images.", rich_help_panel=_TEST),
    ] = 1000,
    effort: Annotated[
        Effort, typer.Option(help="What auto may spend on a sample.", rich_help_panel=_TEST)
    ] = "standard",
    failure_probability: Annotated[
        float,
        typer.Option(
            help=shared.CHANCE_HELP,
            rich_help_panel=_TEST,
        ),
    ] = 1e-9,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the checkpoint there.", rich_help_panel=_OUT),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the run there.", rich_help_panel=_OUT),
    ] = False,
    log: Annotated[
        list[str],
        typer.Option(
            help="Show the metrics there too: tensorboard, wandb or mlflow, each an extra of the "
            "installation.",
            rich_help_panel=_OUT,
        ),
    ] = [],  # noqa: B006
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print recipe.json, or sweep.json, on stdout.", rich_help_panel=_OUT
        ),
    ] = False,
    telling: Output,
    allow_code: AllowCode = False,
    config: RecipeFile = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads; by default few for a small network.", rich_help_panel=_RUN),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:1.", rich_help_panel=_RUN)
    ] = "cpu",
) -> None:
    """Train a pretrained model, or one from scratch, until it certifies; certify what is exported.

    Examples:

      lipcert finetune model.onnx --data mnist --eps 0.5

      lipcert finetune model.onnx --data cifar10 --eps 36/255 --preset quick --select "clean>=0.7"

      lipcert finetune --arch lip-patch --data cifar10 --eps 36/255 --minutes 90 --output tuned

      lipcert finetune model.onnx --data mnist --eps 0.5 --sweep 0,0.25,0.5

      lipcert finetune model.onnx --config recipe.toml

      torchrun --nproc-per-node 4 --no-python lipcert finetune model.onnx --data cifar10
      --eps 36/255 --output tuned
    """
    asked = Epsilon.parse(eps)
    if limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 is needed")
    if check is not None and check < 1:
        raise UsageError(f"--check {check}: at least 1 is needed")

    # torch comes with these; without them --help answers at once.
    from lipcert.run import Execution
    from lipcert.train.job import FineTuning
    from lipcert.train.processes import ProcessGroup

    processes = ProcessGroup.of_environment()
    wanted = training(
        eps=asked, validation=validation, augment=augment, limit=train_limit,
        class_weights=_class_weights(class_weights),
    )  # fmt: skip
    job = FineTuning(
        model=model,
        weights=weights,
        arch=arch,
        data=reading.source(data, limit=limit),
        train_data=train_data,
        preprocessing=expectation.preprocessing(),
        recipe=wanted,
        options=Options(eps=(asked,), effort=effort, failure_probability=failure_probability),
        execution=Execution(
            threads=threads,
            device=device,
            output=output or _folder(model, arch),
            resume=resume,
            overwrite=overwrite,
        ),
        certify=certify,
        output_name=output_name,
        boards=_boards(log),
        check=check,
        processes=processes,
    )
    quiet = telling.quiet or not processes.first
    _tell(*_run(job, sweep, telling.console(quiet=quiet), quiet), quiet, json and processes.first)


def _run(
    job: FineTuning, kappas: str | None, console: Console, quiet: bool
) -> tuple[dict[str, Any], bool]:
    """The record of the training, or of the sweep, and whether it is one of a sweep."""
    from lipcert.cli.watch import LoggingTrainingWatch, LoggingWatch
    from lipcert.train.finetune import finetune as run
    from lipcert.train.sweep import parse, sweep

    try:
        with (
            LoggingTrainingWatch(console, quiet=quiet) as watch,
            LoggingWatch(console, bar=not quiet) as certify_watch,
        ):
            if kappas is None:
                return run(job, watch, certify_watch), False
            return sweep(job, parse(kappas), watch, certify_watch), True
    except KeyboardInterrupt as stop:
        if job.processes.first:
            typer.echo(f"lipcert: {str(stop) or 'interrupted'}", err=True)
        raise typer.Exit(130) from stop


def _tell(record: dict[str, Any], swept: bool, quiet: bool, json: bool) -> None:
    """The table of what was found, the record if asked for; samples that failed end it."""
    from rich.console import Console

    from lipcert.cli.summary import sweep_table, table
    from lipcert.train.export import recipe_text

    shown = sweep_table(record) if swept else table(record.get("results", {}))
    if not quiet and (record.get("points") or record.get("results")):
        Console(stderr=json).print(shown)
    if json:
        typer.echo(recipe_text(record), nl=False)
    results = record["points"] if swept and record else record.get("results", {}).values()
    if failed := sum(one.get("errors", 0) for one in results if isinstance(one, dict)):
        raise InternalError(
            f"{failed} samples failed inside lipcert as the result was certified and have no "
            "verdict; all else is kept, and --resume tries them again"
        )


def _class_weights(text: str | None) -> ClassWeights | None:
    from lipcert.train.class_weights import ClassWeights

    return None if text is None else ClassWeights.parse(text)


def _boards(names: Sequence[str]) -> tuple[BoardName, ...]:
    from lipcert.train.boards import parse

    return parse(texts(names))


def _folder(model: Path | None, arch: str | None) -> Path:
    """Where the results go without ``--output``."""
    name = model.stem if model is not None else (arch or "model").rpartition(":")[2]
    return Path(f"{name}-tuned")
