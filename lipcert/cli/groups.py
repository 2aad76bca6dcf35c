"""Options that several commands have, in groups: names, help texts and defaults in one place each,
with what they make.

A group is a function, whose parameters are the options. ``grouped`` gives them to a command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipcert.cli import parse, shared
from lipcert.cli.shared import EXPECTS, SAMPLES

if TYPE_CHECKING:
    from rich.console import Console

    from lipcert.run import DataSource, Preprocessing

Command = Callable[..., None]
_OUT = "What to write"


def grouped(**groups: Callable[..., Any]) -> Callable[[Command], Command]:
    """Give a command the options of each group in the place of its parameter of that name, which
    is then what the group makes of them."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        parts = {
            name: inspect.signature(group, eval_str=True).parameters
            for name, group in groups.items()
        }

        @wraps(command)
        def with_options(**values: Any) -> None:
            made = {
                name: groups[name](**{key: values.pop(key) for key in options})
                for name, options in parts.items()
            }
            command(**values, **made)

        merged = [
            option.replace(kind=option.KEYWORD_ONLY)
            for parameter in own.parameters.values()
            for option in parts.get(parameter.name, {parameter.name: parameter}).values()
        ]
        with_options.__signature__ = own.replace(parameters=merged)  # type: ignore[attr-defined]
        return with_options

    return decorate


@dataclass(frozen=True)
class ModelInput:
    """What the model expects of its input, as it was written."""

    mean: str | None
    std: str | None
    value_range: str | None
    layout: str | None
    channels: Any

    def preprocessing(self) -> Preprocessing:
        """Raises ``UsageError`` for what are no numbers."""
        from lipcert.run import Preprocessing

        return Preprocessing(
            mean=parse.numbers("--mean", self.mean),
            std=parse.numbers("--std", self.std),
            layout=self.layout,
            value_range=parse.pair("--range", self.value_range) or (0.0, 1.0),
            channels=self.channels,
        )


def expectation(
    mean: Annotated[
        str | None,
        typer.Option(
            help="One number a channel or feature, subtracted after --range.",
            rich_help_panel=EXPECTS,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="One number a channel or feature, divided by.", rich_help_panel=EXPECTS),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range",
            help="The model's numbers for 0 and 1 of the data, black and white of images, such as "
            "0,255.",
            rich_help_panel=EXPECTS,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="The order in which the model reads the axes: CHW, HWC … of images, LC, DHWC …",
            rich_help_panel=EXPECTS,
        ),
    ] = None,
    channels: shared.Channels = None,
) -> ModelInput:
    return ModelInput(mean, std, value_range, layout, channels)


@dataclass(frozen=True)
class DataReading:
    """How data are read, as it was written."""

    data_dir: Path | None
    offline: bool
    data_layout: Any
    data_range: str | None
    image_key: str | None
    label_key: str | None
    resize: str | None
    classes: Path | None
    label_map: Path | None
    label_offset: int

    def source(self, spec: str, **chosen: Any) -> DataSource:
        """The data ``spec``; ``chosen``: which samples of it, as ``DataSource`` has it. Raises
        ``UsageError``."""
        from lipcert.data import Labelling
        from lipcert.run import DataSource

        return DataSource(
            spec=spec,
            data_dir=self.data_dir,
            offline=self.offline,
            layout=self.data_layout,
            value_range=parse.pair("--data-range", self.data_range),
            image_key=self.image_key,
            label_key=self.label_key,
            resize=shared.size("--resize", self.resize),
            labelling=Labelling(self.classes, self.label_map, self.label_offset),
            **chosen,
        )


def reading(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where published datasets lie on disk.", rich_help_panel=SAMPLES),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing.", rich_help_panel=SAMPLES)
    ] = False,
    data_layout: shared.DataLayout = "auto",
    data_range: shared.DataRange = None,
    image_key: shared.ImageKey = None,
    label_key: shared.LabelKey = None,
    resize: shared.Resize = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="A file that names the model's classes in order, JSON or a name a line; folders "
            "and text labels are numbered by it.",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    label_map: Annotated[
        Path | None,
        typer.Option(
            help="A JSON object from labels or their names to the model's classes; other samples "
            "are left out.",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    label_offset: Annotated[
        int,
        typer.Option(
            help="Added to every label, such as 1 for a model with a background class at 0.",
            rich_help_panel=SAMPLES,
        ),
    ] = 0,
) -> DataReading:
    return DataReading(
        data_dir, offline, data_layout, data_range, image_key, label_key, resize, classes,
        label_map, label_offset,
    )  # fmt: skip


@dataclass(frozen=True)
class Output:
    """How much is said, and where it is kept."""

    quiet: bool
    verbose: bool
    log_file: Path | None

    def console(self, *, quiet: bool = False) -> Console:
        """On stderr, the log begun."""
        from rich.console import Console

        from lipcert.cli.log import start_log

        console = Console(stderr=True)
        start_log(console, quiet=self.quiet or quiet, verbose=self.verbose, file=self.log_file)
        return console


def telling(
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say only what failed.", rich_help_panel=_OUT)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say what is being done.", rich_help_panel=_OUT)
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(help="A file for every message, with times.", rich_help_panel=_OUT),
    ] = None,
) -> Output:
    return Output(quiet, verbose, log_file)
