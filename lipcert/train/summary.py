"""Before and after, as a table on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

ROWS = (
    ("clean", "clean accuracy"),
    ("attack_survived", "not broken by the attack"),
    ("certified", "certified accuracy"),
    ("mean_radius", "mean certified radius"),
)


def table(results: dict[str, Any]) -> Table:
    """``results`` is that of ``recipe.json``."""
    columns = [name for name in ("before", "after") if name in results]
    made = Table(
        title=f"{results[columns[0]]['n']} test images, eps {results['eps']}", title_justify="left"
    )
    made.add_column("")
    for name in columns:
        made.add_column(name, justify="right")
    for key, title in ROWS:
        at = "" if key in ("clean", "mean_radius") else f" at {results['eps']}"
        cells = (results[name][key] for name in columns)
        shown = (f"{v:.4f}" if key == "mean_radius" else f"{v:.2%}" for v in cells)
        made.add_row(f"{title}{at}", *shown)
    return made
