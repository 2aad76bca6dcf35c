"""``lipcert finetune``: from a pretrained model to one that certifies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli import parse, shared
from lipcert.cli import training_options as options
from lipcert.cli.shared import DATA_HELP, EXPECTS, SAMPLES, AllowCode, Debug, ShowConfig
from lipcert.errors import InternalError, UsageError
from lipcert.options import Effort, Epsilon, Options

_MODEL = EXPECTS
_DATA = SAMPLES
_AIM = "What to train for"
_HOW = "How to train"
_TEST = "How to certify the result"
_RUN = "How to run"
_OUT = "What to write"


def finetune(
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
    output: Annotated[
        Path,
        typer.Option(
            help="A folder for model.onnx, model.safetensors, recipe.json, the metrics and both "
            "certificates.",
            rich_help_panel=_OUT,
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
            help="4c3f, 6c2f or 8c2f, from scratch or for weights; or package.module:factory for "
            "weights.",
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
    mean: options.Mean = None,
    std: options.Std = None,
    value_range: options.ValueRange = None,
    layout: options.Layout = None,
    channels: shared.Channels = None,
    train_data: options.TrainData = None,
    train_limit: options.TrainLimit = None,
    validation: options.Validation = 0.1,
    augment: options.Augment = "auto",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where published datasets lie on disk.", rich_help_panel=_DATA),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing.", rich_help_panel=_DATA)
    ] = False,
    data_layout: shared.DataLayout = "auto",
    data_range: shared.DataRange = None,
    image_key: shared.ImageKey = None,
    label_key: shared.LabelKey = None,
    resize: shared.Resize = None,
    classes: shared.Classes = None,
    label_map: shared.LabelMap = None,
    label_offset: shared.LabelOffset = 0,
    bound: options.Bound = "local",
    loss: options.Loss = "gloro",
    activation: options.Activation = "clipped",
    thresholds: options.Thresholds = "neuron",
    percentile: options.Percentile = 99.5,
    sparsity: options.Sparsity = 0.01,
    kappa: options.Kappa = 0.0,
    gap: options.Gap = 1.0,
    temperature: options.Temperature = "fixed",
    select: options.Select = "certified",
    eps_factor: options.EpsFactor = 1.25,
    epochs: options.Epochs = 20,
    minutes: options.Minutes = None,
    patience: options.Patience = None,
    warmup: options.Warmup = 0.0,
    ramp: options.Ramp = None,
    batch_size: options.BatchSize = 256,
    optimiser: options.Optimiser = "adam",
    lr: options.Rate = 1e-3,
    lr_end: options.LastRate = 1e-5,
    lr_schedule: options.RateSchedule = "exponential",
    weight_decay: options.WeightDecay = 0.0,
    clip_norm: options.ClipNorm = 10.0,
    ema: options.Ema = 0.995,
    power_steps: options.PowerSteps = 2,
    seed: Annotated[
        int,
        typer.Option(
            help="Of all that is random, but the coins of certificates.", rich_help_panel=_HOW
        ),
    ] = 0,
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
            help="Of a whole certificate, over lipcert's own coins; 0 means deterministic.",
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
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say only what failed.", rich_help_panel=_OUT)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say what is being done.", rich_help_panel=_OUT)
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(help="A file for every message, with times.", rich_help_panel=_OUT),
    ] = None,
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

      lipcert finetune model.onnx --data mnist --eps 0.5 --output tuned

      lipcert finetune --arch 4c3f --data mnist --eps 1.58 --activation clipped --output tuned

      torchrun --nproc-per-node 4 --no-python lipcert finetune model.onnx --data cifar10
      --eps 36/255 --output tuned
    """
    asked = Epsilon.parse(eps)
    if limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 is needed")

    # torch comes with these; without them --help answers at once.
    from rich.console import Console

    from lipcert.cli.log import start_log
    from lipcert.cli.summary import table
    from lipcert.cli.watch import LoggingTrainingWatch, LoggingWatch
    from lipcert.data import Labelling
    from lipcert.run import DataSource, Execution, Preprocessing
    from lipcert.train.export import recipe_text
    from lipcert.train.finetune import FineTuning
    from lipcert.train.finetune import finetune as run
    from lipcert.train.processes import Processes
    from lipcert.train.recipe import Recipe
    from lipcert.train.selection import Selection

    processes = Processes.of_environment()
    quiet = quiet or not processes.first
    job = FineTuning(
        model=model,
        weights=weights,
        arch=arch,
        data=DataSource(
            spec=data,
            data_dir=data_dir,
            offline=offline,
            layout=data_layout,
            value_range=parse.pair("--data-range", data_range),
            image_key=image_key,
            label_key=label_key,
            resize=shared.size("--resize", resize),
            labelling=Labelling(classes, label_map, label_offset),
            limit=limit,
        ),
        train_data=train_data,
        preprocessing=Preprocessing(
            mean=parse.numbers("--mean", mean),
            std=parse.numbers("--std", std),
            layout=layout,
            value_range=parse.pair("--range", value_range) or (0.0, 1.0),
            channels=channels,
        ),
        recipe=Recipe(
            eps=asked,
            eps_factor=eps_factor,
            bound=bound,
            loss=loss,
            activation=activation,
            thresholds=thresholds,
            percentile=percentile,
            epochs=epochs,
            warmup=warmup,
            ramp=max(0.0, epochs - warmup) / 2 if ramp is None else ramp,
            kappa=kappa,
            gap=gap,
            temperature=temperature,
            select=Selection.parse(select),
            patience=patience,
            minutes=minutes,
            sparsity=sparsity,
            batch_size=batch_size,
            optimiser=optimiser,
            rate=lr,
            last_rate=lr_end,
            rate_schedule=lr_schedule,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            power_steps=power_steps,
            ema=ema,
            validation=validation,
            augment=augment,
            limit=train_limit,
            seed=seed,
        ),
        options=Options(eps=(asked,), effort=effort, failure_probability=failure_probability),
        execution=Execution(
            threads=threads, device=device, output=output, resume=resume, overwrite=overwrite
        ),
        certify=certify,
        output_name=output_name,
        tensorboard=tensorboard,
        processes=processes,
    )
    console = Console(stderr=True)
    start_log(console, quiet=quiet, verbose=verbose, file=log_file)
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
