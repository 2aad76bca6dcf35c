"""``lipcert data``: the published datasets on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.shared import DataDir, Debug

app = typer.Typer(help="Find, fetch and verify the published datasets.")

_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet or gtsrb.",
    ),
]
_Split = Annotated[str, typer.Option(help="Which split.")]


@app.command("list")
def list_(data_dir: DataDir = None, debug: Debug = False) -> None:
    """Show each split of each dataset, and the file it is read from.

    Example:

      lipcert data list
    """
    from lipcert.data import available

    typer.echo("digits\ttest\tembedded\ndigits\ttrain\tembedded")
    for name, split, where in available(data_dir):
        typer.echo(f"{name}\t{split}\t{where or 'not here; lipcert data fetch ' + name}")


@app.command()
def fetch(name: _Name, split: _Split = "test", debug: Debug = False) -> None:
    """Download a dataset into the cache, unless it is here, and verify it.

    Example:

      lipcert data fetch cifar10
    """
    _show(name, split, None, offline=False)


@app.command()
def verify(
    name: Annotated[
        str, typer.Argument(metavar="DATA", help="A name, a file or a folder of images.")
    ],
    split: _Split = "test",
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Read a dataset from disk, check it against what was published, and show its digest.

    Example:

      lipcert data verify cifar10 --data-dir datasets
    """
    _show(name, split, data_dir, offline=True)


def _show(name: str, split: str, data_dir: Path | None, *, offline: bool) -> None:
    from lipcert.data import load_dataset

    data = load_dataset(name, split=split, data_dir=data_dir, offline=offline)
    shape = "x".join(map(str, data.images.shape[1:]))
    typer.echo(f"{data.name}\t{data.split}\t{len(data)} of {shape}\t{data.source}\t{data.sha256}")
