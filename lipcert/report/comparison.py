"""What ``lipcert compare`` shows: text, Markdown, HTML or JSON of one comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from html import escape

from lipcert.gate.pairing import Change, Comparison
from lipcert.report import elements
from lipcert.report.charts import scatter_chart
from lipcert.report.formats import ComparisonFormat
from lipcert.report.numbers import percent
from lipcert.report.results import with_name

Row = tuple[str, ...]

_HEAD = ("", "samples", "A", "B", "gained", "lost", "change")
_SHOWN = 20  # sample numbers listed a line


def as_text(comparison: Comparison) -> str:
    """Aligned columns, for a terminal."""
    rows = [_HEAD, *_rows(comparison)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [*_failures(comparison), f"A: {comparison.names[0]}", f"B: {comparison.names[1]}", ""]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append(f"{first.ljust(widths[0])}  {'  '.join(cells)}")
    return "\n".join([*lines, "", *_sentences(comparison), ""])


def as_markdown(comparison: Comparison) -> str:
    """Tables, for a merge request."""
    rows = [_HEAD, ("---",) * len(_HEAD), *_rows(comparison)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    names = [name.replace("`", "'") for name in comparison.names]
    failed = "".join(f"> ❌ **{text}**\n\n" for text in _failures(comparison))
    head = f"## Comparison\n\n{failed}A: `{names[0]}`, B: `{names[1]}`\n"
    return "\n".join([head, *lines, "", *(f"{text}  " for text in _sentences(comparison)), ""])


def as_html(comparison: Comparison) -> str:
    """One file with the scatter of the radii."""
    a, b = comparison.names
    return elements.page(
        f"{a} against {b}",
        f"<header><h1>{escape(a)} against {escape(b)}</h1>"
        f'<p class="muted">Certified L2 robustness of the same samples: A is {escape(a)}, B is '
        f"{escape(b)}</p></header>",
        *(f'<p class="banner" role="note">{escape(text)}</p>' for text in _failures(comparison)),
        elements.section(
            "Radii",
            elements.figure(scatter_chart(comparison), "Above the line, B has the larger radius."),
        ),
        elements.section(
            "Changes",
            elements.table("Samples gained and lost", _HEAD, _rows(comparison)),
            "".join(f"<p>{escape(text)}</p>" for text in _sentences(comparison)),
        ),
    )


def as_json(comparison: Comparison) -> str:
    """Every number and every pair."""
    return json.dumps(asdict(comparison), indent=2, ensure_ascii=False) + "\n"


FORMATS: dict[ComparisonFormat, Callable[[Comparison], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "html": as_html,
    "json": as_json,
}


def _rows(comparison: Comparison) -> Iterator[Row]:
    yield _row("clean accuracy", comparison.clean)
    for eps, change in comparison.changes.items():
        yield _row(f"certified at eps {eps}", change)
    for label, changes in comparison.by_class.items():
        for eps, change in changes.items():
            named = with_name(label, comparison.class_names)
            yield _row(f"class {named} at eps {eps}", change)


def _row(name: str, change: Change) -> Row:
    n = change.n
    a, b = change.both + change.lost, change.both + change.gained
    difference = f"{100 * (b - a) / n:+.2f} pp" if n else ""
    counts = (f"+{change.gained}", f"-{change.lost}")
    return name, str(n), percent(a, n), percent(b, n), *counts, difference


def _failures(comparison: Comparison) -> Iterator[str]:
    """What is said first: of either, that samples failed inside lipcert."""
    for name, text in zip("AB", comparison.failures, strict=True):
        if text:
            yield f"{name}: {text}"


def _sentences(comparison: Comparison) -> Iterator[str]:
    if comparison.options:
        yield f"Besides the model differ: {', '.join(comparison.options)}."
    larger = sum(b > a for _, a, b in comparison.radii)
    smaller = sum(b < a for _, a, b in comparison.radii)
    same = len(comparison.radii) - larger - smaller
    yield f"Radii: larger in B on {larger} samples, smaller on {smaller}, the same on {same}."
    yield f"Gained at eps {comparison.largest}: {_list(comparison.gained)}."
    yield f"Lost at eps {comparison.largest}: {_list(comparison.lost)}."


def _list(indices: tuple[int, ...]) -> str:
    if not indices:
        return "none"
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return ", ".join(map(str, indices[:_SHOWN])) + more
