"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ShowConfig = Annotated[
    bool,
    typer.Option("--show-config", help="Show every setting and where it comes from, and exit."),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Run a package.module:factory that lipcert.toml, [tool.lipcert] or a LIPCERT_* "
        "variable names. One on the command line needs no leave.",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where published datasets lie on disk, before the cache.")
]
To = Annotated[
    Path | None, typer.Option(help="A file to write to; stdout if not given.", metavar="FILE")
]
