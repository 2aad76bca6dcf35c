"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lipcert.errors import UsageError

EXPECTS = "What the model expects"
SAMPLES = "Which samples"
ARCH_HELP = (
    "Of weights alone: package.module:factory, which builds the model, or the name of an "
    "architecture that finetune knows: 2c2f, 4c3f, 6c2f, 8c2f, liresnet, lip-patch, "
    "lip-patch-wide."
)
CHANCE_HELP = (
    "The probability, over lipcert's own random numbers, that any bound of the whole run is wrong; "
    "0: without any, by norms that are often larger."
)
SEED_HELP = (
    "Repeats a run: its random numbers follow from this number, and the certificate covers only "
    "models made without knowing it. If not given, they come from the system."
)
DEPLOYED_HELP = "The format that the model is run in, whose rounding is covered; real: no rounding."
SUMMATION_HELP = (
    "any: every order of the model's sums is covered; measured: the one in which onnxruntime adds "
    "them on this machine, found by probing; results then hold for that runtime alone."
)
DATA_HELP = (
    "digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, gtsrb; a file (.npz, .npy, "
    ".csv, .parquet, .pt, .safetensors); a folder of images; or package.module:factory."
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ShowConfig = Annotated[
    bool,
    typer.Option("--show-config", help="Show every setting and where it comes from, and exit."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        help='A TOML file of options, such as eps = 0.5 or class-weights = "balanced"; the '
        "command line outranks it. --show-config prints one."
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Run a package.module:factory that lipcert.toml, \\[tool.lipcert] or a LIPCERT_* "
        "variable names. One on the command line needs no leave.",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where published datasets lie on disk, before the cache.")
]
To = Annotated[
    Path | None, typer.Option(help="A file to write to; stdout if not given.", metavar="FILE")
]
DataLayout = Annotated[
    Literal["auto", "nchw", "nhwc", "nhw", "flat", "nf", "ncl", "nlc", "ncdhw", "ndhwc", "ndhw"],
    typer.Option(
        help="The axes of arrays: nchw, nhwc, nhw and flat are images, nf a table of features, "
        "ncl and nlc signals, ncdhw, ndhwc and ndhw volumes.",
        rich_help_panel=SAMPLES,
    ),
]
DataRange = Annotated[
    str | None,
    typer.Option(
        help="The numbers in the data that become 0 and 1, black and white of images, such as "
        "-1,1; eps is then in that range.",
        rich_help_panel=SAMPLES,
    ),
]
ImageKey = Annotated[
    str | None,
    typer.Option(
        help="The array or column of a file that holds the images.", rich_help_panel=SAMPLES
    ),
]
LabelKey = Annotated[
    str | None,
    typer.Option(
        help="The array or column of a file that holds the labels; a column also by its number.",
        rich_help_panel=SAMPLES,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="A file of labels, .npy or text with one a line, where the data have none.",
        rich_help_panel=SAMPLES,
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        help="Height and width that pictures are brought to, such as 32,32.",
        rich_help_panel=SAMPLES,
    ),
]
Channels = Annotated[
    Literal["rgb", "bgr"] | None,
    typer.Option(
        help="bgr: the model reads blue first, and so are --mean and --std; either repeats gray "
        "images for a model of three channels.",
        rich_help_panel=EXPECTS,
    ),
]


def size(option: str, text: str | None) -> tuple[int, ...] | None:
    """``32`` or ``32,48``: whole numbers from 1; None stays None. Raises ``UsageError``."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text!r}: give a height and a width, such as 32,32")
    return tuple(int(part) for part in parts)
