"""``lipcert gate``: do the numbers of a finished certificate suffice for a release?"""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.gates import (
    add_to_summary,
    fail_where_one_failed,
    fail_where_samples_failed,
    gates,
    outcomes_of,
    read_baseline,
    show,
)
from lipcert.cli.groups import grouped
from lipcert.cli.shared import Debug, ShowConfig
from lipcert.errors import UsageError
from lipcert.gate import Thresholds


@grouped(thresholds=gates)
def gate(
    *,
    certificate: Annotated[
        Path, typer.Argument(metavar="CERTIFICATE", help="A certificate.json, or its folder.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the outcomes as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what failed.")] = False,
    show_config: ShowConfig = False,
    debug: Debug = False,
    thresholds: Thresholds,
) -> None:
    """Hold a certificate against thresholds; exit code 1 where one fails.

    The exit code is 4 where samples failed inside lipcert.

    Counts are compared exactly. An ESTIMATE never passes: it ends with exit code 3.

    Examples:

      lipcert gate results --min-certified 0.60 --warn-certified 0.65

      lipcert gate results/certificate.json --baseline old/certificate.json --max-drop 0.5pp
    """
    from rich.console import Console

    from lipcert.report import markdown
    from lipcert.report.reading import read_results

    if not thresholds:
        raise UsageError("no gate is asked for; give one such as --min-certified 0.60")
    baseline = read_baseline(thresholds)
    results = read_results(certificate)
    outcomes = outcomes_of(thresholds, results, baseline)
    if json:
        typer.echo(dumps([asdict(outcome) for outcome in outcomes], indent=2, ensure_ascii=False))
    elif not quiet:
        show(outcomes, Console())
    add_to_summary(f"## Gates: {markdown.escaped(results.title)}\n\n{markdown.gates(outcomes)}\n\n")
    fail_where_samples_failed(results)
    fail_where_one_failed(outcomes)
