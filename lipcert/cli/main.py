"""The command ``lipcert`` and the meaning of its exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from lipcert.cli import data, settings
from lipcert.cli.audit import audit
from lipcert.cli.certify import certify
from lipcert.cli.compare import compare
from lipcert.cli.demo import demo
from lipcert.cli.doctor import doctor
from lipcert.cli.finetune import finetune
from lipcert.cli.gate import gate
from lipcert.cli.inspect import inspect
from lipcert.cli.interval import interval
from lipcert.cli.log import log_failure, stop_log
from lipcert.cli.merge import merge
from lipcert.cli.report import report
from lipcert.config import settings as configured
from lipcert.errors import LipcertError
from lipcert.version import VERSION

app = typer.Typer(
    name="lipcert",
    help="Certify the L2 robustness of pretrained classifiers.",
    epilog=(
        "Exit codes: 0 done and all gates held, 1 a gate failed, 2 wrong use, 3 cannot certify, "
        "4 internal error, 130 interrupted. Settings: command line, then LIPCERT_* variables, then "
        "lipcert.toml or \\[tool.lipcert] in pyproject.toml."
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for command in (
    certify,
    interval,
    finetune,
    audit,
    merge,
    gate,
    report,
    compare,
    inspect,
    doctor,
    demo,
):
    app.command()(command)
app.add_typer(data.app, name="data")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lipcert {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit."),
    ] = False,
) -> None:
    """Certify the L2 robustness of pretrained classifiers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Failures are one line on stderr, and with ``--debug`` their traceback before it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _terminable():
            outcome = _run(arguments)
    except (KeyboardInterrupt, typer.Abort) as stop:
        print(f"lipcert: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except SystemExit as error:
        # typer's answer to a reader of stdout that has gone, as in `lipcert … --json | head`.
        return 0 if isinstance(error.__context__, BrokenPipeError) else int(error.code or 0)
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        message, code = _explain(error)
        log_failure(message)
        print(f"lipcert: {message}", file=sys.stderr)
        return code
    finally:
        stop_log()
    return outcome if isinstance(outcome, int) else 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is answered as Ctrl-C is: what was computed is kept, and the exit code is 130."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str]) -> Any:
    group: Any = typer.main.get_command(app)
    # A question about lipcert is answered whatever the settings are.
    if not arguments or {"--version", "--help", "-h"} & set(arguments):
        return group(arguments, prog_name="lipcert", standalone_mode=False)
    settings.check_paths(arguments)
    found = configured(settings.keys(group), Path(), os.environ)
    found |= settings.recipe_settings(group, arguments)
    if "--show-config" in arguments:
        typer.echo(settings.show(group, arguments, found), nl=False)
        return 0
    settings.check_code(group, arguments, found)
    defaults = settings.default_map(group, found)
    return group(arguments, prog_name="lipcert", standalone_mode=False, default_map=defaults)


def _explain(error: Exception) -> tuple[str, int]:
    match error:
        case LipcertError():
            return f"error: {_one_line(error)}", error.exit_code
        case typer.TyperException():
            said = getattr(error, "format_message", error.__str__)()
            command = getattr(getattr(error, "ctx", None), "command_path", "lipcert")
            return f"error: {_one_line(said)} Try '{command} --help'.", 2
        case _:
            what = f"{type(error).__name__}: {_one_line(error)}"[:300]
            return f"internal error: {what}; please report this with what --debug shows", 4


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
