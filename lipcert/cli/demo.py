"""``lipcert demo``: a first certificate, from the installed package alone."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Annotated

import typer

from lipcert.cli.shared import Debug
from lipcert.options import Epsilon, Options


def demo(
    limit: Annotated[int, typer.Option(help="Certify only so many of the 360 images.")] = 100,
    debug: Debug = False,
) -> None:
    """Certify the small network of 8×8 digits that comes with lipcert, at eps 0.3; needs no file.

    Example:

      lipcert demo
    """
    from rich.console import Console

    from lipcert.report.table import table
    from lipcert.run import DataSource, Execution, Job, ModelSource, run_job
    from lipcert.run.progress import ConsoleWatch

    with (
        as_file(files("lipcert") / "data" / "digits.onnx") as model,
        ConsoleWatch(Console(stderr=True)) as watch,
    ):
        job = Job(
            ModelSource(model),
            DataSource("digits", limit=limit),
            Options(eps=(Epsilon.parse("0.3"),)),
            execution=Execution(workers=None),
        )
        result = run_job(job, watch)
    console = Console()
    console.print(table(result.certificate, width=console.width))
    typer.echo("Your own model: lipcert certify model.onnx --data DATA --eps EPS", err=True)
