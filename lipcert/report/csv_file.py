"""The samples as CSV, one row each, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lipcert.gate import Outcome
from lipcert.report.results import Results

# By eps and by rung these become columns of their own; by layer they are for the certificate.
_LISTS = {"certified", "estimated", "rungs", "eliminated"}
_FIRST = (
    "index", "label", "prediction", "verdict", "margin", "radius", "lipschitz", "attack_radius",
    "method", "decided_by", "seconds", "failure_probability", "radius_estimate",
    "lipschitz_estimate", "message", "assurance",
)  # fmt: skip


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """A header and a row a sample; lists by eps become a column an eps, 1 or 0, and the seconds by
    rung a column a rung.

    Columns are the fields that any sample has; an ESTIMATE's say so by their names.
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
    writer.writerow([*columns, *asked, *(f"seconds_{rung}" for rung in rungs), *names])
    for sample in results.samples:
        held = (int(results.holds_at(sample, eps)) for eps, _ in results.eps)
        spent = (sample.get("rungs", {}).get(rung) for rung in rungs)
        named = (results.class_name(sample[name.removesuffix("_name")]) for name in names)
        writer.writerow([*(sample.get(name) for name in columns), *held, *spent, *named])
    return text.getvalue()
