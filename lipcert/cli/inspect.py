"""``lipcert inspect``: what a model file holds, and what its layers cost."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli import parse
from lipcert.cli.shared import ARCH_HELP, AllowCode, Debug, ShowConfig
from lipcert.errors import CannotCertify
from lipcert.options import Epsilon, NormMethod, Options


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An ONNX file, or .safetensors with --arch.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="A .safetensors file that replaces the ONNX file's weights.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help=ARCH_HELP)] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="Of one image, such as 3,32,32: for --arch, or a file that leaves it free."
        ),
    ] = None,
    output_name: Annotated[
        str | None, typer.Option(help="Which one of several outputs is certified.")
    ] = None,
    norms: Annotated[
        NormMethod, typer.Option(help="How operator norms are bounded; estimate bounds nothing.")
    ] = "randomised",
    no_norms: Annotated[
        bool, typer.Option("--no-norms", help="Leave out the norms, which can take long.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say what is being done.")] = False,
    allow_code: AllowCode = False,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Show a model's operators, shapes and operator norms, and whether it can be certified.

    Examples:

      lipcert inspect model.onnx

      lipcert inspect large.onnx --no-norms
    """
    from rich.console import Console

    from lipcert.report.inspection import model_tables, operator_table
    from lipcert.run import ModelSource
    from lipcert.run.inspection import inspect_model, operators_of
    from lipcert.run.progress import ConsoleWatch

    # What was found is what is asked for: on stdout, unless the JSON goes there.
    console, shown = Console(stderr=True), Console(stderr=json)
    source = ModelSource(model, weights, arch, output_name)
    shape = parse.shape("--input-shape", input_shape)
    # No radius matters to the norms; the options ask for one.
    options = None if no_norms else Options(eps=(Epsilon.parse("0"),), norms=norms)

    with ConsoleWatch(console, bar=not quiet) as watch:
        watch.stage(f"reading the operators of {model}")
        operators = operators_of(source, shape)
        watch.stop()
        if operators:
            shown.print(operator_table(operators))
        record = {"operators": operators}
        try:
            found = inspect_model(source, options, input_shape=shape, watch=watch)
        except CannotCertify:
            if json:
                typer.echo(dumps(record, indent=2))
            raise
    for table in model_tables(found):
        shown.print(table)
    if json:
        typer.echo(dumps(record | found, indent=2))
