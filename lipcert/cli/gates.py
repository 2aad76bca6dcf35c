"""The options of the gates, one list for every command that has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipcert.errors import CannotCertify, InternalError, UsageError
from lipcert.gate import Outcome, Status, Thresholds, evaluate, worst
from lipcert.gate.thresholds import GateOn

if TYPE_CHECKING:
    from rich.console import Console

    from lipcert.report.results import Results

_PANEL = "Gates"


def _option(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=_PANEL, **more)


def gates(
    min_certified: Annotated[
        list[str] | None,
        _option("Fail below this certified accuracy: 0.60 at the largest eps, or 36/255=0.60."),
    ] = None,
    warn_certified: Annotated[
        list[str] | None, _option("Warn below this certified accuracy.")
    ] = None,
    min_clean: Annotated[str | None, _option("Fail below this clean accuracy.")] = None,
    warn_clean: Annotated[str | None, _option("Warn below this clean accuracy.")] = None,
    min_radius_median: Annotated[
        str | None, _option("Fail below this median certified radius of the correct samples.")
    ] = None,
    warn_radius_median: Annotated[str | None, _option("Warn below this median radius.")] = None,
    baseline: Annotated[
        Path | None,
        _option("An older certificate.json of the same samples, for --max-drop."),
    ] = None,
    max_drop: Annotated[
        str | None,
        _option("Fail where certified accuracy drops by more at any eps, such as 0.5pp."),
    ] = None,
    warn_drop: Annotated[str | None, _option("Warn where it drops by more.")] = None,
    max_seconds_per_sample: Annotated[
        str | None, _option("Fail above this mean time a sample.")
    ] = None,
    warn_seconds_per_sample: Annotated[str | None, _option("Warn above this mean time.")] = None,
    gate_on: Annotated[
        GateOn,
        _option("Compare shares by their value, or by the lower end of their interval."),
    ] = "value",
    confidence: Annotated[str, _option("Of the Clopper-Pearson interval, two-sided.")] = "0.95",
) -> Thresholds:
    """The group of options, see ``lipcert.cli.groups``."""
    return Thresholds.parse(
        min_certified=min_certified or (),
        warn_certified=warn_certified or (),
        min_clean=min_clean,
        warn_clean=warn_clean,
        min_radius_median=min_radius_median,
        warn_radius_median=warn_radius_median,
        baseline=baseline,
        max_drop=max_drop,
        warn_drop=warn_drop,
        max_seconds_per_sample=max_seconds_per_sample,
        warn_seconds_per_sample=warn_seconds_per_sample,
        gate_on=gate_on,
        confidence=confidence,
    )


def read_baseline(thresholds: Thresholds) -> Results | None:
    """The baseline that is asked for, or None. Raises as ``read_results``."""
    from lipcert.report.reading import read_results

    if thresholds.baseline is None:
        return None
    try:
        return read_results(thresholds.baseline)
    except (UsageError, CannotCertify) as error:
        raise type(error)(f"--baseline {error}") from error


def outcomes_of(
    thresholds: Thresholds, results: Results, baseline: Results | None
) -> list[Outcome]:
    """The outcomes of the gates asked for; none where none is."""
    if not thresholds:
        return []
    older = baseline.certificate if baseline else None
    return evaluate(thresholds, results.certificate, results.samples, older)


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """What people read of the outcomes: the verdict of all, then a line each, in colour where the
    console has some. Nothing where no gate was asked for."""
    from rich.text import Text

    if not outcomes:
        return
    overall = worst(outcomes)
    counts = {status: sum(o.status == status for o in outcomes) for status in _WORDS}
    said = {
        "fail": f"{counts['fail']} of {len(outcomes)} gates failed",
        "warn": f"no gate failed, {counts['warn']} of {len(outcomes)} warn",
        "pass": f"{len(outcomes)} of {len(outcomes)} gates held",
    }
    console.print(Text(f"{overall.upper()}: {said[overall]}", style=f"bold {_COLOURS[overall]}"))
    for o in outcomes:
        line = Text(_WORDS[o.status], style=_COLOURS[o.status])
        console.print(line.append(f"  {o.gate}: {o.message}", style="default"), soft_wrap=True)


def fail_where_one_failed(outcomes: Sequence[Outcome]) -> None:
    """End with exit code 1 and one line on stderr where a gate failed."""
    failed = [outcome for outcome in outcomes if outcome.status == "fail"]
    if failed:
        first = f"{failed[0].gate}: {failed[0].message}"
        count = f"{len(failed)} of {len(outcomes)} gates failed"
        typer.echo(
            f"lipcert: {count}; {'the first is ' if len(failed) > 1 else ''}{first}", err=True
        )
        raise typer.Exit(1)


def fail_where_samples_failed(results: Results) -> None:
    """Raises ``InternalError`` for samples that failed inside lipcert, after all else is said and
    kept."""
    failed = [sample for sample in results.samples if sample["verdict"] == "error"]
    if failed:
        first = f"the first, {failed[0]['index']}, with {failed[0].get('message')}"
        raise InternalError(f"{results.failures}; {first}")


def add_to_summary(text: str) -> None:
    """Append to the summary of a GitHub step, where there is one."""
    from lipcert.report.markdown import append_summary

    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        append_summary(Path(path), text)


_WORDS: dict[Status, str] = {"pass": "pass", "warn": "WARN", "fail": "FAIL"}
_COLOURS: dict[Status, str] = {"pass": "green", "warn": "yellow", "fail": "red"}
