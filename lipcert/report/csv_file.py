"""The samples as CSV, one row each, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from lipcert.gate import Outcome
from lipcert.report.results import Results

# By eps and by rung these become columns of their own; by layer they are for the certificate.
_LISTS = {"certified", "estimated", "rungs", "eliminated"}
# Where a spreadsheet may see a cell begin, by whatever separates cells in its language, and what
# makes a formula of it, also in the width that East Asian keyboards type.
_FORMULA = re.compile(r"(^|[;\t\n])(?=\s*[=+\-@|%＝＋－＠])")
_FIRST = (
    "index", "label", "prediction", "verdict", "margin", "radius", "lipschitz", "attack_radius",
    "method", "decided_by", "seconds", "failure_probability", "radius_estimate",
    "lipschitz_estimate", "message", "assurance",
)  # fmt: skip


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """A header and a row a sample; lists by eps become a column an eps, 1 or 0, and the seconds by
    rung a column a rung.

    Columns are the fields that any sample has; an ESTIMATE's say so by their names. Samples that
    failed inside lipcert come first. Texts that a spreadsheet would take for a formula begin with
    an apostrophe.
    """
    word = "estimated" if results.estimate else "certified"
    present = {name for sample in results.samples for name in sample} - _LISTS
    columns = [name for name in _FIRST if name in present]
    columns += sorted(present - set(columns))
    certificate, text = results.certificate, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rungs = [rung["rung"] for rung in results.certificate.get("cascade", ())]
    asked = (f"{word}_at_{eps}" for eps, _ in results.eps)
    names = ("label_name", "prediction_name") if "class_names" in certificate["data"] else ()
    head = [*columns, *asked, *(f"seconds_{rung}" for rung in rungs), *names]
    writer.writerow(map(_defused, head))
    failed = (sample for sample in results.samples if sample["verdict"] == "error")
    others = (sample for sample in results.samples if sample["verdict"] != "error")
    for sample in chain(failed, others):
        held = (int(results.holds_at(sample, eps)) for eps, _ in results.eps)
        spent = (sample.get("rungs", {}).get(rung) for rung in rungs)
        named = (results.class_name(sample[name.removesuffix("_name")]) for name in names)
        row = [*(sample.get(name) for name in columns), *held, *spent, *named]
        writer.writerow(map(_defused, row))
    return text.getvalue()


def _defused(cell: Any) -> Any:
    """A number as it is; a text with an apostrophe before what would be computed."""
    # The csv module quotes no carriage return, at which readers end a row.
    return _FORMULA.sub(r"\1'", cell.replace("\r", " ")) if isinstance(cell, str) else cell
