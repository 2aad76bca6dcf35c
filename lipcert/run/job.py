"""What a run is asked to do: plain records, filled by the command line or by the library call."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict

from lipcert.data import Dataset, Expected, Labelling, load_dataset
from lipcert.data.dataset import ValueRange
from lipcert.data.layouts import Layout
from lipcert.errors import UsageError
from lipcert.options import Options
from lipcert.run.memory import check_memory

Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Preprocessing:
    """What the model expects of its input, applied to the data's numbers, pixels in [0, 1] for
    images, in this order.

    ``value_range``: the model's own numbers for black and white; ``mean`` and ``std``, one a
    channel or feature or one for all, are in that range; ``layout``: the order of its axes, such
    as ``HWC``; ``channels``: the colours that it reads, where they are not those of the data.
    All of it becomes part of the network, so that eps stays in the data's unit.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: Channels | None = None

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if self.channels is None:
            del record["channels"]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in record.items()}


@dataclass(frozen=True)
class ModelSource:
    """An ONNX file, perhaps with other ``weights``; or weights and the factory they are for.

    ``output``: which one of several outputs.
    """

    path: Path
    weights: Path | None = None
    arch: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class DataSource:
    """Where the samples are and which of them count, see ``lipcert.data``."""

    spec: str
    split: str = "test"
    data_dir: Path | None = None
    offline: bool = False
    layout: Layout = "auto"
    value_range: ValueRange | None = None
    image_key: str | None = None
    label_key: str | None = None
    labels: Path | None = None
    resize: tuple[int, ...] | None = None
    labelling: Labelling = field(default_factory=Labelling)
    limit: int | None = None
    indices_file: Path | None = None
    random: bool = False

    def __post_init__(self) -> None:
        if self.random and (self.limit is None or self.indices_file is not None):
            raise UsageError("--random: goes with --limit, which says how many, and no --indices")

    def load(self, *, split: str | None = None, expected: Expected | None = None) -> Dataset:
        """The samples, with the labels that the files have; raises what ``load_dataset`` does."""
        return load_dataset(
            self.spec,
            split=split or self.split,
            data_dir=self.data_dir,
            offline=self.offline,
            layout=self.layout,
            value_range=self.value_range,
            image_key=self.image_key,
            label_key=self.label_key,
            labels=self.labels,
            resize=self.resize,
            expected=expected,
        )


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count``: every ``count``-th sample, from the ``number``-th on."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/4``: the second of four parts. Raises ``UsageError``."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
        number, count = (int(part) for part in match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise UsageError(f"--shard {text!r}: give i/n with i from 1 to n, such as 1/4")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Running(TypedDict, total=False):
    """The fields of ``Execution`` but the shard, as the library takes them."""

    batch_size: int | None
    workers: int | None
    threads: int | None
    device: str
    cluster: str | None
    memory_limit: int | None
    output: str | PathLike[str] | None
    resume: bool
    overwrite: bool
    save_counterexamples: bool
    save_proofs: bool
    allow_implausible: bool


@dataclass(frozen=True)
class Execution:
    """How the run is carried out; nothing here changes what a certified number means.

    ``batch_size``: 20 where it is None, up to 100 for verdicts alone; it halves where memory runs
    out. ``workers``: processes that share the batches; ``threads``: of each of them. None of
    ``workers`` suits the network and the machine; None of ``threads`` is one on a CPU.
    ``output``: the folder of the journal and the results; None keeps both in memory.
    ``cluster``: the address of a ray cluster that the batches go to, ``auto`` for the one that this
    machine belongs to. ``memory_limit``: bytes, of all processes of this machine together, within
    which batches shrink.
    ``save_counterexamples``: keep the points of falsified samples there too.
    ``save_proofs``: write proofs of what is certified there, for ``lipcert audit --proofs``.
    ``allow_implausible``: go on where the clean accuracy is no better than a guess.
    """

    batch_size: int | None = None
    workers: int | None = 1
    threads: int | None = None
    device: str = "cpu"
    shard: Shard | None = None
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    save_counterexamples: bool = False
    save_proofs: bool = False
    allow_implausible: bool = False
    cluster: str | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        numbers = {
            "--batch-size": self.batch_size, "--workers": self.workers, "--threads": self.threads,
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: give a whole number of at least 1")
        if self.cluster is not None and self.workers not in (None, 1):
            raise UsageError(
                "--cluster and --workers exclude each other: a cluster has processes of its own"
            )
        check_memory(self.memory_limit)
        if self.cluster is not None and self.memory_limit is not None:
            raise UsageError("--memory-limit: a cluster has limits of its own; leave it out")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other: give one of them")
        for name, asked in (("--resume", self.resume), ("--overwrite", self.overwrite)):
            if asked and self.output is None:
                raise UsageError(f"{name}: name the folder of the earlier run with --output")
        if self.save_counterexamples and self.output is None:
            raise UsageError("--save-counterexamples: name a folder for them with --output")
        if self.save_proofs and self.output is None:
            raise UsageError("--save-proofs: name a folder for them with --output")

    @property
    def part(self) -> str | None:
        """The shard as written, ``2/4``; None for the whole."""
        return str(self.shard) if self.shard else None


@dataclass(frozen=True)
class Job:
    """A whole run of ``lipcert certify``."""

    model: ModelSource
    data: DataSource
    options: Options
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    execution: Execution = field(default_factory=Execution)
