"""``lipcert finetune``: from a pretrained model to one that certifies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli import groups, shared
from lipcert.cli import training_options as options
from lipcert.cli.groups import DataReading, ModelInput, Output, grouped
from lipcert.cli.shared import DATA_HELP, EXPECTS, SAMPLES, AllowCode, Debug, ShowConfig
from lipcert.cli.training_options import TrainingOptions
from lipcert.errors import InternalError, UsageError
from lipcert.options import Effort, Epsilon, Options

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
            help="lip-patch or lip-patch-wide, isometries for short budgets; 4c3f, 6c2f or 8c2f; "
            "from scratch or for weights; or package.module:factory for weights.",
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
    reading: DataReading,
    training: TrainingOptions,
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
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write its events too.", rich_help_panel=_OUT),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print recipe.json on stdout.", rich_help_panel=_OUT)
    ] = False,
    telling: Output,
    allow_code: AllowCode = False,
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

      torchrun --nproc-per-node 4 --no-python lipcert finetune model.onnx --data cifar10
      --eps 36/255 --output tuned
    """
    asked = Epsilon.parse(eps)
    if limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 is needed")

    # torch comes with these; without them --help answers at once.
    from rich.console import Console

    from lipcert.cli.summary import table
    from lipcert.cli.watch import LoggingTrainingWatch, LoggingWatch
    from lipcert.run import Execution
    from lipcert.train.export import recipe_text
    from lipcert.train.finetune import FineTuning
    from lipcert.train.finetune import finetune as run
    from lipcert.train.processes import ProcessGroup

    processes = ProcessGroup.of_environment()
    quiet = telling.quiet or not processes.first
    job = FineTuning(
        model=model,
        weights=weights,
        arch=arch,
        data=reading.source(data, limit=limit),
        train_data=train_data,
        preprocessing=expectation.preprocessing(),
        recipe=training(eps=asked, validation=validation, augment=augment, limit=train_limit),
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
        tensorboard=tensorboard,
        processes=processes,
    )
    console = telling.console(quiet=quiet)
    try:
        with (
            LoggingTrainingWatch(console, quiet=quiet) as watch,
            LoggingWatch(console, bar=not quiet) as certify_watch,
        ):
            record = run(job, watch, certify_watch)
    except KeyboardInterrupt as stop:
        if processes.first:
            typer.echo(f"lipcert: {str(stop) or 'interrupted'}", err=True)
        raise typer.Exit(130) from stop
    if not quiet and "results" in record:
        Console(stderr=json).print(table(record["results"]))
    if json and processes.first:
        typer.echo(recipe_text(record), nl=False)
    figures = [one for one in record.get("results", {}).values() if isinstance(one, dict)]
    if failed := sum(one["errors"] for one in figures):
        raise InternalError(
            f"{failed} samples failed inside lipcert as the result was certified and have no "
            "verdict; all else is kept, and --resume tries them again"
        )


def _folder(model: Path | None, arch: str | None) -> Path:
    """Where the results go without ``--output``."""
    name = model.stem if model is not None else (arch or "model").rpartition(":")[2]
    return Path(f"{name}-tuned")
