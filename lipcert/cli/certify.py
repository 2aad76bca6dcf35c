"""``lipcert certify``: how many samples of a dataset are certified at a radius."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipcert.cli import groups, parse, shared
from lipcert.cli.gates import (
    add_to_summary,
    fail_where_one_failed,
    fail_where_samples_failed,
    gates,
    outcomes_of,
    read_baseline,
    show,
)
from lipcert.cli.groups import DataReading, ModelInput, Output, grouped
from lipcert.cli.shared import ARCH_HELP, DATA_HELP, EXPECTS, SAMPLES, AllowCode, Debug, ShowConfig
from lipcert.coins import parse_seed
from lipcert.errors import UsageError
from lipcert.gate import Thresholds, by_eps
from lipcert.options import Deployed, Dtype, Effort, Epsilon, Method, NormMethod, Options, Summation

if TYPE_CHECKING:
    from lipcert.report.results import Results
    from lipcert.run import RunResult


def _in(panel: str) -> Callable[..., Any]:
    """What makes the options of one panel of the help; ``flag`` is the name of one without a value,
    or one that Python cannot have."""

    def option(help: str, *, flag: str | None = None) -> Any:
        names = () if flag is None else (flag,)
        return typer.Option(*names, help=help, rich_help_panel=panel)

    return option


_model, _data = _in(EXPECTS), _in(SAMPLES)
_how, _run, _out = _in("How to certify"), _in("How to run"), _in("What to write")
_claim = _in("What to certify")


@grouped(
    expectation=groups.expectation, reading=groups.reading, telling=groups.telling,
    thresholds=gates,
)  # fmt: skip
def certify(
    *,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An ONNX file, or .safetensors with --arch.")
    ],
    data: Annotated[
        str,
        _data(DATA_HELP),
    ],
    eps: Annotated[
        list[str],
        _how(
            "L2 radius in the unit of the data, for images pixels of [0,1], such as 0.5 or 36/255; "
            "repeat it, or put commas between."
        ),
    ],
    method: Annotated[
        Method,
        _how(
            "auto: an attack and every bound, the tightest radii; local: the published local "
            "Lipschitz bound; global: the product of norms."
        ),
    ] = "auto",
    effort: Annotated[Effort, _how("What auto may spend on a sample.")] = "standard",
    norms: Annotated[
        NormMethod, _how("How operator norms are bounded; estimate bounds nothing.")
    ] = "randomised",
    failure_probability: Annotated[float, _how(shared.CHANCE_HELP)] = 1e-9,
    seed: Annotated[
        str | None,
        _how(f"{shared.SEED_HELP} --random uses it too, else 0."),
    ] = None,
    deployed: Annotated[Deployed, _how(shared.DEPLOYED_HELP)] = "float32",
    summation: Annotated[Summation, _how(shared.SUMMATION_HELP)] = "any",
    dtype: Annotated[
        Dtype, _how("The type that bounds are computed in; its own rounding is accounted for.")
    ] = "float64",
    time_per_sample: Annotated[
        float | None,
        _how("Seconds a sample, over a batch, after which auto begins nothing further."),
    ] = None,
    no_radii: Annotated[
        bool,
        _how(
            "Only decide at each --eps, and seek no larger radius: a radius is then the largest "
            "--eps that holds. Several times as fast.",
            flag="--no-radii",
        ),
    ] = False,
    pixel_domain: Annotated[
        bool,
        _how(
            "Only images count: points of the ball with every pixel in [0, 1].",
            flag="--pixel-domain",
        ),
    ] = False,
    top_k: Annotated[
        int,
        _claim("The label has to stay among so many best classes; clean accuracy counts likewise."),
    ] = 1,
    only_classes: Annotated[
        str | None,
        _claim(
            "Only these outputs compete, such as 0,3,10-19, or a file that lists them; samples of "
            "other classes are left out."
        ),
    ] = None,
    margin: Annotated[
        float,
        _claim(
            "The label's softmax probability has to stay more than so much above every other one, "
            "such as 0.2."
        ),
    ] = 0.0,
    weights: Annotated[
        Path | None, _model("A .safetensors file that replaces the ONNX file's weights.")
    ] = None,
    arch: Annotated[str | None, _model(ARCH_HELP)] = None,
    output_name: Annotated[str | None, _model("Which one of several outputs is certified.")] = None,
    expectation: ModelInput,
    split: Annotated[str, _data("Of the dataset.")] = "test",
    limit: Annotated[int | None, _data("Only so many samples.")] = None,
    random: Annotated[
        bool, _data("With --limit: a random subset, not the first.", flag="--random")
    ] = False,
    indices: Annotated[Path | None, _data("A file that lists the samples to take.")] = None,
    reading: DataReading,
    labels: shared.Labels = None,
    output: Annotated[
        Path | None, _out("A folder for certificate.json, samples.jsonl and the journal.")
    ] = None,
    resume: Annotated[bool, _out("Go on with the journal there.", flag="--resume")] = False,
    overwrite: Annotated[bool, _out("Replace the results there.", flag="--overwrite")] = False,
    save_counterexamples: Annotated[
        bool,
        _out(
            "Write counterexamples.npz there: the points that falsify samples.",
            flag="--save-counterexamples",
        ),
    ] = False,
    save_proofs: Annotated[
        bool,
        _out(
            "Write proofs.npz there: what lipcert audit --proofs needs to prove each sample anew.",
            flag="--save-proofs",
        ),
    ] = False,
    json: Annotated[bool, _out("Print certificate.json on stdout.", flag="--json")] = False,
    telling: Output,
    allow_code: AllowCode = False,
    show_config: ShowConfig = False,
    debug: Debug = False,
    batch_size: Annotated[
        int | None,
        _run(
            "Samples at once; by default 20, up to 100 with --no-radii, on a GPU what fits, fewer "
            "where memory runs out."
        ),
    ] = None,
    workers: Annotated[
        int | None, _run("Processes that share the batches; by default one a core on a CPU.")
    ] = None,
    threads: Annotated[
        int | None, _run("CPU threads of each; 1 by default, on a GPU one a core.")
    ] = None,
    device: Annotated[str, _run("auto, cpu, cuda, cuda:1, or several GPUs, cuda:0,1.")] = "cpu",
    shard: Annotated[str | None, _run("i/n: only the i-th of n parts, 1/n to n/n.")] = None,
    cluster: Annotated[
        str | None,
        _run(
            "Give the batches to a ray cluster: auto, or the host:port of its head. Needs "
            "pip install 'lipcert\\[cluster]'."
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        _run("Memory of all processes together, such as 8GiB; batches shrink to it. Linux only."),
    ] = None,
    allow_implausible: Annotated[
        bool,
        _run(
            "Go on though the clean accuracy is no better than guessing.",
            flag="--allow-implausible",
        ),
    ] = False,
    thresholds: Thresholds,
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
    from lipcert.cli.watch import LoggingWatch
    from lipcert.run import Execution, Job, ModelSource, Shard, run_job
    from lipcert.run.memory import parse_memory

    job = Job(
        model=ModelSource(model, weights, arch, output_name),
        data=reading.source(
            data,
            split=split,
            labels=labels,
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
            seed=None if seed is None else parse_seed(seed),
            deployed=deployed,
            summation=summation,
            pixel_domain=pixel_domain,
            time_per_sample=time_per_sample,
            dtype=dtype,
            top_k=top_k,
            only_classes=parse.classes("--only-classes", only_classes),
            margin=margin,
            radii=not no_radii,
        ),
        preprocessing=expectation.preprocessing(),
        execution=Execution(
            batch_size=batch_size,
            workers=workers,
            threads=threads,
            device=device,
            shard=None if shard is None else Shard.parse(shard),
            output=output,
            resume=resume,
            overwrite=overwrite,
            save_counterexamples=save_counterexamples,
            save_proofs=save_proofs,
            allow_implausible=allow_implausible,
            cluster=cluster,
            memory_limit=None if memory_limit is None else parse_memory(memory_limit),
        ),
    )
    console = telling.console()
    try:
        with LoggingWatch(console, bar=not telling.quiet) as watch:
            result = run_job(job, watch)
    except KeyboardInterrupt as stop:
        typer.echo(f"lipcert: {str(stop) or 'interrupted'}", err=True)
        raise typer.Exit(130) from stop
    _tell(result, thresholds, baseline, json=json, quiet=telling.quiet)


def _tell(
    result: RunResult, thresholds: Thresholds, baseline: Results | None, *, json: bool, quiet: bool
) -> None:
    """The gates and the table, on stderr where stdout has the certificate; then the exit code."""
    from rich.console import Console

    from lipcert.report import markdown
    from lipcert.report.json_file import certificate_text
    from lipcert.report.results import of_run
    from lipcert.report.table import table

    results = of_run(result.certificate, result.samples)
    outcomes = outcomes_of(thresholds, results, baseline)
    if not quiet:
        shown = Console(stderr=json)
        show(outcomes, shown)
        shown.print(table(result.certificate, width=shown.width))
    if json:
        typer.echo(certificate_text(result.certificate), nl=False)
    add_to_summary(markdown.render(results, outcomes) + "\n")
    fail_where_samples_failed(results)
    fail_where_one_failed(outcomes)
