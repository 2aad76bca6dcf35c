"""Markdown for merge requests and for the summary page of a GitHub job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lipcert.errors import UsageError
from lipcert.gate import Outcome
from lipcert.report.numbers import percent, rounded_down, share
from lipcert.report.provenance import provenance
from lipcert.report.results import Results

# GitHub refuses a step's summary above 1 MiB, everything that was written before included.
SUMMARY_LIMIT = 1 << 20
_ESCAPES = str.maketrans(
    {letter: f"\\{letter}" for letter in "\\`*_[]|#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
)
_MARKS = {"pass": "✅ pass", "warn": "⚠️ warn", "fail": "❌ fail"}


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """Gates, shares, classes and provenance, as tables."""
    blocks = [f"## {escaped(results.title)}"]
    if results.failures:
        blocks.append(f"> ❌ **{escaped(results.failures)}**")
    if results.what:
        blocks.append(f"Claim: {escaped(results.what)}.")
    if outcomes:
        blocks.append(gates(outcomes))
    blocks.append(_table(("result", "value"), _results(results)))
    if results.samples:
        head = ("class", "samples", "clean", *(f"eps {eps}" for eps, _ in results.eps))
        body = _table(head, _classes(results))
        blocks.append(f"<details><summary>By class</summary>\n\n{body}\n\n</details>")
    if results.certificate.get("cascade"):
        head = ("rung", "samples", "decided", "seconds")
        body = _table(head, _cascade(results))
        blocks.append(f"<details><summary>Cascade</summary>\n\n{body}\n\n</details>")
    body = _table(("", ""), provenance(results))
    blocks.append(f"<details><summary>How this came about</summary>\n\n{body}\n\n</details>")
    return "\n\n".join(blocks) + "\n"


def gates(outcomes: Sequence[Outcome]) -> str:
    """The gates alone, as a table."""
    rows = ((_MARKS[o.status], o.gate, o.message) for o in outcomes)
    return _table(("", "gate", "measured"), rows)


def append_summary(path: Path, text: str, *, limit: int = SUMMARY_LIMIT) -> None:
    """Add ``text`` to the summary of a GitHub step, cut at a line where the file would pass
    ``limit`` bytes. Raises ``UsageError`` where it cannot be written.
    """
    note = "\n\n…cut here, as the summary would be too long.\n"
    content = text.encode()
    try:
        room = limit - (path.stat().st_size if path.exists() else 0)
        if len(content) > room:
            kept = content[: max(room - len(note.encode()), 0)]
            content = kept[: kept.rfind(b"\n") + 1] + note.encode()
        if len(content) <= room:
            with path.open("ab") as file:
                file.write(content)
    except OSError as error:
        raise UsageError(
            f"GITHUB_STEP_SUMMARY {path}: cannot be written: {error.strerror}; unset it"
        ) from error


def _results(results: Results) -> Iterator[tuple[str, str]]:
    summary, n = results.summary, results.summary["n"]
    yield results.clean_name, share(summary["clean_correct"], n)
    doubt = ", bounds nothing" if results.estimate else ""
    for eps, _ in results.eps:
        upper = None if results.estimate else results.upper.get(eps)
        yield f"{results.claim} at eps {eps}", share(results.counts[eps], n, upper) + doubt
    if results.median_radius is not None:
        yield f"{results.radius_name}, median", rounded_down(results.median_radius) + doubt


def _classes(results: Results) -> Iterator[tuple[str, ...]]:
    for label, own in results.classes.items():
        shares = (percent(own.held[eps], own.n) for eps, _ in results.eps)
        yield results.class_name(label), str(own.n), percent(own.correct, own.n), *shares


def _cascade(results: Results) -> Iterator[tuple[str, ...]]:
    for rung in results.certificate["cascade"]:
        seconds = f"{rung['seconds']:.2f}"
        yield rung["rung"], str(rung["samples"]), str(rung["decided"]), seconds


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(escaped(cell) for cell in line)} |" for line in lines)


def escaped(text: str) -> str:
    """``text`` for a cell or a heading: names come from files: no markup of theirs may act."""
    return " ".join(text.translate(_ESCAPES).split())
