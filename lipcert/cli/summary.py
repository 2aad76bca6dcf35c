"""Before and after a training, as a table on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

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
