"""Where the text of a command goes."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from lipcert.errors import UsageError


def check_writable(to: Path | None, option: str) -> None:
    """Before anything is computed. Raises ``UsageError`` where ``to`` could not be written."""
    if to is None:
        return
    if to.is_dir():
        raise UsageError(f"{option} {to}: is a folder; name a file in it")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(to, option, error) from error
    if not os.access(to if to.exists() else to.parent, os.W_OK):
        raise UsageError(f"{option} {to}: cannot be written: there is no permission to")


def deliver(text: str, to: Path | None, option: str = "--to") -> None:
    """Write ``text`` to a file, or on stdout. Raises ``UsageError`` where it cannot be written."""
    if to is None:
        typer.echo(text, nl=False)
        return
    check_writable(to, option)
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _not_written(to, option, error) from error


def _not_written(to: Path, option: str, error: OSError) -> UsageError:
    return UsageError(f"{option} {to}: cannot be written: {error.strerror}")
