"""``lipcert interval``: what a network of real outputs gives anywhere in a ball."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from lipcert.cli import groups, parse, shared
from lipcert.cli.groups import ModelInput, grouped
from lipcert.cli.shared import ARCH_HELP, EXPECTS, SAMPLES, AllowCode, Debug, ShowConfig
from lipcert.coins import parse_seed
from lipcert.errors import UsageError
from lipcert.gate.levels import share
from lipcert.options import Deployed, Dtype, Effort, Epsilon, NormMethod, Options, Summation


def _option(panel: str, help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


_HOW, _OUT = "How to certify", "What to write"


@grouped(expectation=groups.expectation)
def interval(
    *,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An ONNX file, or .safetensors with --arch.")
    ],
    data: Annotated[
        Path,
        _option(SAMPLES, "A .npz or .npy file of inputs; of an .npz also an array y or targets."),
    ],
    eps: Annotated[
        list[str],
        _option(_HOW, "L2 radius in the unit of the data; repeat it, or put commas between."),
    ],
    tolerance: Annotated[
        float | None, _option(_HOW, "Certify that every output stays so near to its target.")
    ] = None,
    min_certified: Annotated[
        str | None,
        _option(_HOW, "Fail below this share of samples within --tolerance at the largest eps."),
    ] = None,
    effort: Annotated[Effort, _option(_HOW, "What may be spent on a sample.")] = "standard",
    norms: Annotated[
        NormMethod, _option(_HOW, "How operator norms are bounded; not estimate.")
    ] = "randomised",
    failure_probability: Annotated[float, _option(_HOW, shared.CHANCE_HELP)] = 1e-9,
    seed: Annotated[str | None, _option(_HOW, shared.SEED_HELP)] = None,
    deployed: Annotated[
        Deployed,
        _option(_HOW, shared.DEPLOYED_HELP),
    ] = "float32",
    summation: Annotated[Summation, _option(_HOW, shared.SUMMATION_HELP)] = "any",
    dtype: Annotated[Dtype, _option(_HOW, "The type that bounds are computed in.")] = "float64",
    pixel_domain: Annotated[
        bool,
        _option(_HOW, "Only images count: every pixel in [0, 1].", "--pixel-domain"),
    ] = False,
    weights: Annotated[
        Path | None, _option(EXPECTS, "A .safetensors file that replaces the ONNX file's weights.")
    ] = None,
    arch: Annotated[str | None, _option(EXPECTS, ARCH_HELP)] = None,
    output_name: Annotated[
        str | None, _option(EXPECTS, "Which one of several outputs is enclosed.")
    ] = None,
    expectation: ModelInput,
    targets: Annotated[Path | None, _option(SAMPLES, "A .npy file of targets.")] = None,
    limit: Annotated[int | None, _option(SAMPLES, "Only so many samples.")] = None,
    data_layout: shared.DataLayout = "auto",
    data_range: shared.DataRange = None,
    image_key: shared.ImageKey = None,
    label_key: shared.LabelKey = None,
    output: Annotated[Path | None, _option(_OUT, "A JSON file for all that was found.")] = None,
    json: Annotated[bool, _option(_OUT, "Print it on stdout.", "--json")] = False,
    quiet: Annotated[bool, _option(_OUT, "Say only what failed.", "--quiet")] = False,
    allow_code: AllowCode = False,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Enclose the outputs of a regression model: what is each of them anywhere within eps?

    Examples:

      lipcert interval model.onnx --data inputs.npz --eps 0.1

      lipcert interval model.onnx --data inputs.npz --eps 0.1 --tolerance 0.5 --min-certified 0.90
    """
    options = Options(
        eps=tuple(Epsilon.parse(text) for text in parse.texts(eps)),
        effort=effort,
        norms=norms,
        failure_probability=failure_probability,
        seed=None if seed is None else parse_seed(seed),
        deployed=deployed,
        summation=summation,
        dtype=dtype,
        pixel_domain=pixel_domain,
    )
    least = None if min_certified is None else share("--min-certified", min_certified)
    if least is not None and tolerance is None:
        raise UsageError("--min-certified: goes with --tolerance, which says what is certified")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 is needed")

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lipcert.cli.output import check_writable, deliver
    from lipcert.run import ModelSource, open_model
    from lipcert.run.intervals import dataset_of, enclose, read_inputs, rows
    from lipcert.run.progress import ConsoleWatch

    check_writable(output, "--output")
    inputs, found = read_inputs(data, targets, image_key=image_key, label_key=label_key)
    source = ModelSource(model, weights, arch, output_name)
    opened = open_model(source, expectation.preprocessing(), image_shape=inputs.shape[1:])
    samples = dataset_of(
        inputs,
        str(data),
        opened,
        layout=data_layout,
        value_range=parse.pair("--data-range", data_range),
    )
    indices = range(min(len(samples), limit or len(samples)))
    with ConsoleWatch(Console(stderr=True), bar=not quiet) as watch:
        result = enclose(
            opened, samples, indices, options, targets=found, tolerance=tolerance, watch=watch
        )
    text = dumps(result.to_json(), indent=2) + "\n"
    if output is not None:
        deliver(text, output, "--output")
    if json:
        typer.echo(text, nl=False)
    if not quiet:
        table = Table(title=Text(f"{opened.name} on {data}"), show_header=False)
        for name, value in rows(result):
            table.add_row(Text(name), Text(value))
        Console(stderr=json).print(table)
    if result.failed:
        typer.echo(f"lipcert: {result.failed}", err=True)
        raise typer.Exit(4)
    if least is not None:
        largest = options.largest.text
        count = result.record["summary"]["certified_count"][largest]
        if count * least.denominator < least.numerator * len(result.samples):
            typer.echo(
                f"lipcert: gate failed: {count} of {len(result.samples)} samples are certified "
                f"within {tolerance:g} at eps {largest}, below {min_certified}",
                err=True,
            )
            raise typer.Exit(1)
