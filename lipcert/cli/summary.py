"""Before and after a training, and several of them, as a table on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from lipcert.report.numbers import rounded_down
from lipcert.report.training import side_by_side


def table(results: dict[str, Any]) -> Table:
    """``results`` is that of ``recipe.json``."""
    caption, head, rows = side_by_side(results)
    made = Table(title=caption, title_justify="left")
    for number, name in enumerate(head):
        made.add_column(name, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def sweep_table(record: dict[str, Any]) -> Table:
    """One row for each κ; ``record`` is that of ``sweep.json``."""
    points = record.get("points", [])
    certified = all("certified" in point for point in points)
    caption = "validation images, certified an ESTIMATE of the training bound"
    if certified and points:
        caption = f"{points[0]['n']} test images"
    made = Table(title=f"{caption}; eps {record.get('eps', '')}", title_justify="left")
    for name in ("κ", "clean", "certified", *(["mean radius"] if certified else [])):
        made.add_column(name, justify="right")
    for point in points:
        held = point["validation"]
        shares = held["validation_clean"], held["validation_certified_estimate"]
        if certified:
            shares = point["clean"], point["certified"]
        radius = [rounded_down(point["mean_radius"])] if certified else []
        made.add_row(f"{point['kappa']:g}", *(f"{share:.2%}" for share in shares), *radius)
    return made
