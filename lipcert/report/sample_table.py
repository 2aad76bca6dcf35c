"""The table of single samples in the HTML report, which a reader filters without any script."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from html import escape

from lipcert.report import elements
from lipcert.report.numbers import rounded_down
from lipcert.report.results import Record, Results

# Rows: more make a page slow; those that a reader looks for come first.
MOST = 500
_FIRST = ("error", "falsified", "unknown", "timeout", "misclassified")
_HEAD = ("no.", "verdict", "class", "prediction", "margin", "radius", "decided by", "seconds")


def section(results: Results) -> str:
    """The samples that are open or wrong first, then by radius; empty where there are none.

    The buttons above it, one a verdict, leave only the rows of that verdict: they are radio
    buttons, which style rules of ``lipcert.report.style`` look at.
    """
    count = len(results.samples)
    shown = heapq.nsmallest(MOST, results.samples, key=lambda sample: _rank(results, sample))
    if not shown:
        return ""
    verdicts = list(dict.fromkeys(sample["verdict"] for sample in shown))
    buttons = "".join(
        f'<label><input type="radio" name="verdict" id="only-{name}"'
        f"{' checked' * (name == 'all')}> {name}</label>"
        for name in ("all", *verdicts)
    )
    rows = "".join(_row(results, sample) for sample in shown)
    heads = "".join(f'<th scope="col"{_kind(i)}>{name}</th>' for i, name in enumerate(_HEAD))
    left = count - len(shown)
    more = f'<p class="muted">{left} more in samples.jsonl, or by --format csv.</p>' if left else ""
    caption = "Single samples: what is open first, then by radius"
    table = (
        f'<fieldset class="filter"><legend class="caption">{caption}</legend>{buttons}'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
        f'<table class="stack"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></fieldset>"
    )
    # Closed at first: it is long.
    summary = f"{count} samples, one by one"
    return elements.section("Samples", elements.details(summary, table + more))


def _rank(results: Results, sample: Record) -> tuple[int, float, int]:
    verdict = sample["verdict"]
    place = _FIRST.index(verdict) if verdict in _FIRST else len(_FIRST)
    return place, results.radius(sample), sample["index"]


def _row(results: Results, sample: Record) -> str:
    margin = sample["margin"]
    cells: Sequence[str] = (
        sample["verdict"],
        results.class_name(sample["label"]),
        results.class_name(sample["prediction"]) if sample["prediction"] >= 0 else "–",
        "–" if margin is None else f"{margin:.4g}",
        rounded_down(results.radius(sample)),
        sample.get("decided_by") or "–",
        f"{sample['seconds']:.2f}",
    )
    rest = "".join(
        f'<td{_kind(i)} data-name="{_HEAD[i]}">{escape(cell)}</td>'
        for i, cell in enumerate(cells, start=1)
    )
    return f'<tr class="is-{sample["verdict"]}"><th scope="row">{sample["index"]}</th>{rest}</tr>'


def _kind(column: int) -> str:
    return ' class="number"' if column in (4, 5, 7) else ""
