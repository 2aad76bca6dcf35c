"""``lipcert certify``: how many samples of a dataset are certified at a radius."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lipcert.cli import parse
from lipcert.cli.gates import (
    add_to_summary,
    fail_where_one_failed,
    gated,
    lines,
    outcomes_of,
    read_baseline,
)
from lipcert.cli.shared import Debug, ShowConfig
from lipcert.errors import UsageError
from lipcert.gate import Thresholds, by_eps
from lipcert.options import Deployed, Effort, Epsilon, Method, NormMethod, Options

_MODEL = "What the model expects"
_DATA = "Which samples"
_HOW = "How to certify"
_RUN = "How to run"
_OUT = "What to write"


@gated
def certify(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An ONNX file, or .safetensors with --arch.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, fashion-mnist, cifar10, cifar100, an .npz file, a folder of "
            "images, or package.module:factory.",
            rich_help_panel=_DATA,
        ),
    ],
    eps: Annotated[
        list[str],
        typer.Option(
            help="L2 radius in pixels of [0,1], such as 0.5 or 36/255; repeat it, or put commas "
            "between.",
            rich_help_panel=_HOW,
        ),
    ],
    thresholds: Thresholds,
    method: Annotated[
        Method,
        typer.Option(
            help="auto: an attack and every bound, the tightest radii; local: the published local "
            "Lipschitz bound; global: the product of norms.",
            rich_help_panel=_HOW,
        ),
    ] = "auto",
    effort: Annotated[
        Effort, typer.Option(help="What auto may spend on a sample.", rich_help_panel=_HOW)
    ] = "standard",
    norms: Annotated[
        NormMethod,
        typer.Option(
            help="How operator norms are bounded; estimate bounds nothing.",
            rich_help_panel=_HOW,
        ),
    ] = "randomised",
    failure_probability: Annotated[
        float,
        typer.Option(
            help="Of the whole run, over lipcert's own coins; 0 means deterministic.",
            rich_help_panel=_HOW,
        ),
    ] = 1e-9,
    seed: Annotated[
        int, typer.Option(help="Of the coins, and of --random.", rich_help_panel=_HOW)
    ] = 0,
    deployed: Annotated[
        Deployed,
        typer.Option(
            help="The format whose rounding is covered, in any summation order; real: none.",
            rich_help_panel=_HOW,
        ),
    ] = "float32",
    pixel_domain: Annotated[
        bool,
        typer.Option(
            "--pixel-domain",
            help="Only images count: points of the ball with every pixel in [0, 1].",
            rich_help_panel=_HOW,
        ),
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A .safetensors file that replaces the ONNX file's weights.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="package.module:factory, which builds the model.", rich_help_panel=_MODEL
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="One number a channel, subtracted after --range.", rich_help_panel=_MODEL
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="One number a channel, divided by.", rich_help_panel=_MODEL),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            help="The model's numbers for black and white, such as 0,255; 0,1 if not given.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="The order in which the model reads an image: CHW, HWC, CWH …",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of the dataset.", rich_help_panel=_DATA)] = "test",
    limit: Annotated[
        int | None, typer.Option(help="Only so many samples.", rich_help_panel=_DATA)
    ] = None,
    random: Annotated[
        bool,
        typer.Option(
            "--random", help="With --limit: a random subset, not the first.", rich_help_panel=_DATA
        ),
    ] = False,
    indices: Annotated[
        Path | None,
        typer.Option(help="A file that lists the samples to take.", rich_help_panel=_DATA),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where published datasets lie on disk.", rich_help_panel=_DATA),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing.", rich_help_panel=_DATA)
    ] = False,
    data_layout: Annotated[
        Literal["auto", "nchw", "nhwc"],
        typer.Option(help="The axes of image arrays.", rich_help_panel=_DATA),
    ] = "auto",
    data_range: Annotated[
        str | None,
        typer.Option(
            help="The numbers for black and white in arrays, such as -1,1.", rich_help_panel=_DATA
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="A folder for certificate.json, samples.jsonl and the journal.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the journal there.", rich_help_panel=_OUT),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the results there.", rich_help_panel=_OUT),
    ] = False,
    save_counterexamples: Annotated[
        bool,
        typer.Option(
            "--save-counterexamples",
            help="Write counterexamples.npz there: the points that falsify samples.",
            rich_help_panel=_OUT,
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print certificate.json on stdout.", rich_help_panel=_OUT),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Say only what failed.", rich_help_panel=_OUT),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say what is being done.", rich_help_panel=_OUT)
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(help="A file for every message, with times.", rich_help_panel=_OUT),
    ] = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples at once; by default 32, fewer where memory runs out.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads; by default few for a small network.", rich_help_panel=_RUN),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.", rich_help_panel=_RUN)] = "cpu",
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: only the i-th of n parts, 1/n to n/n.", rich_help_panel=_RUN),
    ] = None,
    allow_implausible: Annotated[
        bool,
        typer.Option(
            "--allow-implausible",
            help="Go on though the clean accuracy is no better than guessing.",
            rich_help_panel=_RUN,
        ),
    ] = False,
) -> None:
    """Certify a model on a dataset: at how many samples does no change within eps alter the class?

    Examples:

      lipcert certify model.onnx --data digits --eps 0.1

      lipcert certify model.onnx --data cifar10 --eps 36/255,72/255 --limit 1000
      --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010 --output results

      lipcert certify model.onnx --data digits --eps 0.1 --min-certified 0.60
    """
    asked = tuple(Epsilon.parse(text) for text in parse.texts(eps))
    # What the gates need is checked before anything is loaded.
    if thresholds and norms == "estimate":
        raise UsageError(
            "--norms estimate: bounds nothing, so no gate can hold; leave the gates out, or choose "
            "--norms randomised or deterministic"
        )
    by_eps(thresholds, [one.text for one in asked])
    baseline = read_baseline(thresholds)

    # torch comes with these; without them --help answers at once.
    from rich.console import Console

    from lipcert.cli.log import start_log
    from lipcert.cli.watch import LoggingWatch
    from lipcert.report import markdown
    from lipcert.report.json_file import certificate_text
    from lipcert.report.results import of_run
    from lipcert.report.table import table
    from lipcert.run import DataSource, Execution, Job, ModelSource, Preprocessing, Shard, run_job

    job = Job(
        model=ModelSource(model, weights, arch),
        data=DataSource(
            spec=data,
            split=split,
            data_dir=data_dir,
            offline=offline,
            layout=data_layout,
            value_range=parse.pair("--data-range", data_range),
            limit=limit,
            indices_file=indices,
            random=random,
        ),
        options=Options(
            eps=asked,
            method=method,
            effort=effort,
            norms=norms,
            failure_probability=failure_probability,
            seed=seed,
            deployed=deployed,
            pixel_domain=pixel_domain,
        ),
        preprocessing=Preprocessing(
            mean=parse.numbers("--mean", mean),
            std=parse.numbers("--std", std),
            layout=layout,
            value_range=parse.pair("--range", value_range) or (0.0, 1.0),
        ),
        execution=Execution(
            batch_size=batch_size,
            threads=threads,
            device=device,
            shard=None if shard is None else Shard.parse(shard),
            output=output,
            resume=resume,
            overwrite=overwrite,
            save_counterexamples=save_counterexamples,
            allow_implausible=allow_implausible,
        ),
    )
    console = Console(stderr=True)
    start_log(console, quiet=quiet, verbose=verbose, file=log_file)
    try:
        result = run_job(job, LoggingWatch(console, bar=not quiet))
    except KeyboardInterrupt as stop:
        typer.echo(f"lipcert: {stop or 'interrupted'}", err=True)
        raise typer.Exit(130) from stop
    if not quiet:
        console.print(table(result.certificate))
    if json:
        typer.echo(certificate_text(result.certificate), nl=False)
    results = of_run(result.certificate, result.samples)
    outcomes = outcomes_of(thresholds, results, baseline)
    if not quiet:
        for line in lines(outcomes):
            typer.echo(line, err=True)
    add_to_summary(markdown.render(results, outcomes) + "\n")
    fail_where_one_failed(outcomes)
