"""``lipcert compare``: what changed between two runs on the same samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.output import deliver
from lipcert.cli.shared import Debug, To
from lipcert.report.formats import ComparisonFormat


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The older output folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The newer one.")],
    format: Annotated[
        ComparisonFormat, typer.Option(help="html has the scatter of the radii, json every pair.")
    ] = "text",
    to: To = None,
    debug: Debug = False,
) -> None:
    """Pair the samples of two runs: gained, lost, radii, and the change of each class.

    Example:

      lipcert compare old new --format html --to comparison.html
    """
    from lipcert.gate import compare as paired
    from lipcert.report.comparison import FORMATS
    from lipcert.report.reading import read_results

    older, newer = read_results(a), read_results(b)
    found = paired(older.certificate, newer.certificate, older.samples, newer.samples)
    # Two runs of one model are told apart by where they lie.
    names = (f"{found.names[0]} in {a}", f"{found.names[1]} in {b}")
    found = replace(found, names=names)
    deliver(FORMATS[format](found), to)
