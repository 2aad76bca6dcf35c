"""Writes ``lipcert/API.md`` from the docstrings: ``python tests/write_api.py``."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import lipcert
from lipcert.api import CertifyOptions
from lipcert.options import Options, OptionValues
from lipcert.run import Execution

PAGE = Path(__file__).resolve().parents[1] / "lipcert" / "API.md"

HEAD = """# The library

Written from the docstrings by `python tests/write_api.py`; a test holds it to them. Options are
those of the command line, by the same names with underscores.

```python
import lipcert

model = lipcert.load("model.onnx", mean=(0.1307,), std=(0.3081,))
result = lipcert.certify(model, images, labels, eps=["0.5", "36/255"])
print(result)
```
"""


def page() -> str:
    parts = [HEAD]
    for name in ("load", "certify", "intervals"):
        parts.append(entry("##", f"lipcert.{name}", getattr(lipcert, name)))
    for name in ("Model", "Result"):
        kind = getattr(lipcert, name)
        parts.append(f"## lipcert.{name}\n\n{prose(kind)}\n")
        for member, value in inspect.getmembers(kind):
            if not member.startswith("_") and inspect.getdoc(value) and callable(value):
                parts.append(entry("###", f"{name}.{member}", value))
            elif isinstance(value, property) and inspect.getdoc(value):
                parts.append(f"### {name}.{member}\n\n{prose(value)}\n")
    return "\n".join(parts)


def entry(level: str, name: str, function: Any) -> str:
    return f"{level} {name}\n\n```python\n{signature(function)}\n```\n\n{prose(function)}\n"


def signature(function: Any) -> str:
    """One parameter a line, as they are written in the code."""
    found = inspect.signature(function)
    lines, keywords = [], False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            lines.append("    *,")
            keywords = True
        if "Unpack" in str(parameter.annotation):
            lines += options(
                CertifyOptions if "CertifyOptions" in str(parameter.annotation) else OptionValues
            )
            continue
        # Annotations are text, and shown without its quotes; defaults keep theirs.
        kept = parameter.replace(default=parameter.empty, kind=parameter.POSITIONAL_OR_KEYWORD)
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        lines.append(f"    {star}{str(kept).replace(chr(39), '')}{default},")
    inner = "\n".join(lines)
    result = str(found.return_annotation).replace("'", "")
    return (
        f"{function.__name__}(\n{inner}\n) -> {result}"
        if lines
        else (f"{function.__name__}() -> {result}")
    )


def options(group: Any) -> list[str]:
    """Those that are taken as a group, each with the default of its record."""
    defaults = {
        field.name: field.default for kind in (Options, Execution) for field in fields(kind)
    }
    return [
        f"    {name}: {getattr(kind, '__forward_arg__', kind)} = {defaults[name]!r},"
        for name, kind in group.__annotations__.items()
    ]


def prose(thing: Any) -> str:
    """A docstring, whose code has two ticks, as Markdown, which has one."""
    return re.sub(r"``(.*?)``", r"`\1`", inspect.getdoc(thing) or "", flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
