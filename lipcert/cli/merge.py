"""``lipcert merge``: shards of a run become one certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.shared import Debug
from lipcert.errors import InternalError


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="The --output of lipcert certify --shard, each."),
    ],
    output: Annotated[Path, typer.Option(help="A folder for the certificate of the whole.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results there.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print certificate.json on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what failed.")] = False,
    debug: Debug = False,
) -> None:
    """Merge the shards of a run, from a CI matrix or an array of jobs, into one certificate.

    All of them have to be there, with the same model, data, options and version; what is missing or
    differs is named. The files of the whole are as those of one run: gate, report, compare and
    audit take them. Samples are never held in memory.

    Examples:

      lipcert merge shard-1 shard-2 shard-3 shard-4 --output results

      lipcert merge shards --output results --overwrite
    """
    from rich.console import Console

    from lipcert.certificate import failures
    from lipcert.merging import merge as merged
    from lipcert.progress import Stages
    from lipcert.report.json_file import certificate_text
    from lipcert.report.table import table

    console = Console(stderr=True)
    with Stages(console, shown=not quiet) as watch:
        found = merged(folders, output, overwrite=overwrite, watch=watch)
    if not quiet:
        shown = Console(stderr=json)
        shown.print(table(found.certificate, width=shown.width))
        proofs = f", proofs of {found.proofs} samples" if found.proofs else ""
        shown.print(
            f"{found.path}: {len(found.certificate.shards)} shards, "
            f"{found.certificate.summary['n']} samples{proofs}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if json:
        typer.echo(certificate_text(found.certificate), nl=False)
    if said := failures(found.certificate.summary):
        raise InternalError(said)
