"""The arrows between the modules: no import leads in a circle, not even one for types alone."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "lipcert"


def modules() -> dict[str, Path]:
    found = {}
    for path in HOUSE.rglob("*.py"):
        parts = path.relative_to(HOUSE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path]) -> set[str]:
    """The modules of the package that one imports when it is imported, or for its types alone; what
    a function imports when it is called is no arrow."""

    def of(body: list[ast.stmt]) -> set[str]:
        found = set()
        for statement in body:
            match statement:
                case ast.Import(names=names):
                    found |= {one.name for one in names}
                case ast.ImportFrom(module=str(module), names=names):
                    each = {f"{module}.{one.name}" for one in names}
                    found |= {one if one in known else module for one in each}
                case ast.If(body=inner, orelse=other):
                    found |= of(inner) | of(other)
        return found & set(known) - {name}

    return of(ast.parse(known[name].read_text(encoding="utf-8")).body)


def test_no_import_leads_in_a_circle() -> None:
    known = modules()
    graph = {name: imports(name, known) for name in known}
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(known) > 300


def test_a_circle_would_be_seen(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("from lipcert.other import b\n")
    other.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lipcert.one\n"
    )
    known = {"lipcert.one": one, "lipcert.other": other}
    assert imports("lipcert.one", known) == {"lipcert.other"}
    assert imports("lipcert.other", known) == {"lipcert.one"}
