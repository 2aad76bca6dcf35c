"""The samples as CSV, one row each, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lipcert.gate import Outcome
from lipcert.report.results import Results

_FIRST = (
    "index", "label", "prediction", "verdict", "margin", "radius", "lipschitz", "attack_radius",
    "method", "seconds", "failure_probability", "radius_estimate", "lipschitz_estimate", "message",
    "assurance",
)  # fmt: skip


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """A header and a row a sample; lists by eps become a column an eps, 1 or 0.

    Columns are the fields that any sample has; an ESTIMATE's say so by their names.
    """
    word = "estimated" if results.estimate else "certified"
    present = {name for sample in results.samples for name in sample} - {"certified", "estimated"}
    columns = [name for name in _FIRST if name in present]
    columns += sorted(present - set(columns))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(f"{word}_at_{eps}" for eps, _ in results.eps)])
    for sample in results.samples:
        held = (int(results.holds_at(sample, eps)) for eps, _ in results.eps)
        writer.writerow([*(sample.get(name) for name in columns), *held])
    return text.getvalue()
