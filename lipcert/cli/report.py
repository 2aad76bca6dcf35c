"""``lipcert report``: a finished run for people, CI servers, hubs and supply chains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.gates import add_to_summary, gates, outcomes_of, read_baseline
from lipcert.cli.groups import grouped
from lipcert.cli.output import deliver
from lipcert.cli.shared import Debug, ShowConfig, To
from lipcert.gate import Thresholds
from lipcert.report.formats import Format, render


@grouped(thresholds=gates)
def report(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --output of lipcert certify.")],
    format: Annotated[Format, typer.Option(help="What to make.")] = "html",
    to: To = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
    thresholds: Thresholds,
) -> None:
    """Make a report of a finished run, on stdout or in a file; gates asked for are shown in it.

    The exit code does not depend on the gates: lipcert gate is for that.

    Examples:

      lipcert report results --format html --to report.html

      lipcert report results --format junit --min-certified 0.60 --to gates.xml
    """
    from lipcert.report.reading import read_results

    baseline = read_baseline(thresholds)
    results = read_results(folder)
    text = render(format, results, outcomes_of(thresholds, results, baseline))
    deliver(text, to)
    if format == "markdown":
        add_to_summary(text + "\n")
