"""``lipcert audit``: is a finished certificate true, as far as other means can tell?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lipcert.cli import parse, shared
from lipcert.cli.shared import DataDir, Debug, ShowConfig
from lipcert.errors import InternalError, UsageError

_WHERE = "Where the certified files are"


def audit(
    certificate: Annotated[
        Path, typer.Argument(metavar="CERTIFICATE", help="A certificate.json, or its folder.")
    ],
    samples: Annotated[
        str, typer.Option(help="How many samples to audit, drawn at random, or all.")
    ] = "20",
    seed: Annotated[int, typer.Option(help="Of the choice, and of the attacks.")] = 0,
    restarts: Annotated[int, typer.Option(help="Beginnings of an attack, for each sample.")] = 32,
    proofs: Annotated[
        bool,
        typer.Option(
            "--proofs", help="Replay proofs.npz of certify --save-proofs, in place of own bounds."
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit code 1 where a sample is not confirmed."),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The model file; sought here and beside the certificate if not given.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="The .safetensors file of certify --weights.", rich_help_panel=_WHERE),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="The architecture, as for certify.", rich_help_panel=_WHERE),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The data, as for certify; a published set is found by its name.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    data_dir: DataDir = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing.", rich_help_panel=_WHERE)
    ] = False,
    data_layout: shared.DataLayout = "auto",
    data_range: shared.DataRange = None,
    labels: shared.Labels = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write audit.json; beside the certificate if not given."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print audit.json on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what is contradicted.")] = False,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Check a finished certificate by independent means; exit code 4 where it is contradicted.

    Digests, figures and predictions are recomputed, with onnxruntime and a second reading of the
    file; attacks begin at the certified boundary; and a bound that shares nothing with the first
    tries to prove each sample once more. "not contradicted" means that it could not. With --proofs
    it need not search: the proofs that certify has saved are replayed with norms of the auditor's
    own, and fresh coins.

    Examples:

      lipcert audit results/certificate.json --model model.onnx

      lipcert audit results --model model.onnx --samples all --proofs --strict

      lipcert audit results --model model.onnx --samples all --seed 7 --json
    """
    from rich.console import Console
    from rich.text import Text

    from lipcert import audit as auditing
    from lipcert.audit.progress import ConsoleAuditWatch
    from lipcert.audit.report import first, lines, table, write

    number = _number(samples)
    if not 0 <= seed < 2**32:
        raise UsageError("--seed: give a whole number from 0 to 2^32 − 1")
    if restarts < 1:
        raise UsageError(f"--restarts {restarts}: give a whole number of at least 1")
    sources = auditing.Sources(
        model=model,
        weights=weights,
        arch=arch,
        data=data,
        data_dir=data_dir,
        data_layout=data_layout,
        data_range=parse.pair("--data-range", data_range),
        labels=labels,
        offline=offline,
    )
    console = Console(stderr=True)
    try:
        with ConsoleAuditWatch(console, bar=not quiet) as watch:
            found = auditing.audit(
                certificate,
                sources=sources,
                samples=number,
                seed=seed,
                effort=auditing.Effort(restarts=restarts),
                watch=watch,
                proofs=proofs,
            )
    except KeyboardInterrupt as stop:
        typer.echo("lipcert: interrupted; nothing of the audit is kept", err=True)
        raise typer.Exit(130) from stop
    write(found, to or _beside(certificate))
    if json:
        typer.echo(found.text(), nl=False)
    if not quiet:
        for line in lines(found):
            console.print(Text(line, style="bold red"), soft_wrap=True)
        Console(stderr=json).print(table(found))
    if found.contradictions:
        raise InternalError(first(found.contradictions))
    if strict and found.unconfirmed:
        named = ", ".join(str(sample.index) for sample in found.unconfirmed[:5])
        more = ", …" if len(found.unconfirmed) > 5 else ""
        typer.echo(
            f"lipcert: --strict: {len(found.unconfirmed)} of {len(found.samples)} samples are not "
            f"confirmed: {named}{more}",
            err=True,
        )
        raise typer.Exit(1)


def _number(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--samples {text!r}: give a whole number of at least 1, or all")
    return int(text)


def _beside(certificate: Path) -> Path:
    """``audit.json``, or ``audit.1-of-4.json`` for a shard's certificate."""
    if certificate.is_dir():
        return certificate / "audit.json"
    return certificate.with_name(certificate.name.replace("certificate", "audit", 1))
