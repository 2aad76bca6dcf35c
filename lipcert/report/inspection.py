"""What ``lipcert inspect`` shows: a function of the record of ``lipcert.run.inspection``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

Record = dict[str, Any]
# What `auto` takes, by the name of its rung.
_BOUNDS = {
    "dual": "norms, and duals over boxes and balls",
    "tube": "random projections of the derivative, and duals over the boxes that these prove",
}


def operator_table(operators: Sequence[Record]) -> Table:
    """The operators of the file, and which of them are supported."""
    table = _table(
        "Operators", "operator", "version", "count", "supported", "bound", "cost", "note"
    )
    for row in operators:
        answer, note = "yes", row["note"]
        if not row["supported"]:
            answer, note = "NO", " ".join([note, *(f"({name})" for name in row["names"])])
        products = f"{row['products']:,}" if row["products"] else ""
        cells = row["operator"], row["version"], row["count"], answer, row["bound"], products, note
        _add(table, *cells)
    return table


def model_tables(record: Record) -> Iterator[Table]:
    """The model at large, then its operator norms; those of an ESTIMATE say so."""
    table = _table(record["name"], "", "")
    table.show_header = False
    _add(table, "format", f"{record['format']}, opset {record['opset']}")
    _add(table, "input", " × ".join(map(str, record["input_shape"])))
    _add(table, "output", f"{record['classes']} logits")
    if record["stripped"]:
        _add(table, "left out", f"{record['stripped']} at the end")
    for note in record.get("notes", ()):
        _add(table, "note", note)
    _add(table, "normalisation", record["normalisation"] or "none found: see --mean and --std")
    _add(table, "parameters", f"{record['parameters']:,}")
    cost = record["cost"]
    _add(table, "cost", f"{cost['products']:,} multiplications a sweep, {cost['values']:,} values")
    _add(table, "bounds", _BOUNDS[cost["bounds"]])
    if "norm_seconds" in cost:
        _add(table, "norms", f"about {cost['norm_seconds']:.2g} s of processor time")
    yield table

    norms = record.get("norms")
    if norms is None:
        return
    estimate = norms["assurance"] == "ESTIMATE"
    title = "ESTIMATE: operator norms, bound nothing" if estimate else "Operator norms"
    table = _table(title, "from", "to", "operator", "norm", "assurance")
    for layer in norms["layers"]:
        _add(
            table,
            *(layer[name] for name in ("source", "sink", "operator")),
            f"{layer['value']:.6g}",
            layer["assurance"],
        )
    name = "ESTIMATE: product" if estimate else "product"
    _add(table, name, "", "", f"{norms['product']:.6g}", norms["assurance"])
    yield table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))
