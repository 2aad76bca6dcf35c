"""Where the text of a command goes."""

from __future__ import annotations

from pathlib import Path

import typer

from lipcert.errors import UsageError


def deliver(text: str, to: Path | None) -> None:
    """Write ``text`` to a file, or on stdout. Raises ``UsageError`` where it cannot be written."""
    if to is None:
        typer.echo(text, nl=False)
        return
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--to {to}: cannot be written: {error.strerror}") from error
