"""What is certified: a model on chosen samples of a dataset, under options, and how."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert.coins import Coins
from lipcert.data import Dataset, indices_digest
from lipcert.errors import UsageError
from lipcert.network import Network
from lipcert.options import Options
from lipcert.records import Frame
from lipcert.run.job import Execution
from lipcert.run.kept import Labels
from lipcert.run.model import Model
from lipcert.version import VERSION

Indices = NDArray[np.int64]
Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """``indices`` are all samples that were asked for, of which a shard takes its ``part``.

    ``network`` is the model as a function of the data; making it raises ``UsageError`` where they
    do not fit together.
    """

    model: Model
    dataset: Dataset
    indices: Indices
    options: Options
    execution: Execution

    @cached_property
    def network(self) -> Network:
        return self.model.on_images(self.dataset.images.shape[1:])

    @property
    def part(self) -> list[int]:
        """The samples of this shard. Raises ``UsageError`` where none is left for it."""
        shard = self.execution.shard
        part = self.indices if shard is None else self.indices[shard.number - 1 :: shard.count]
        if len(part) == 0:
            raise UsageError(f"--shard {shard}: only {len(self.indices)} samples; use fewer shards")
        return [int(index) for index in part]

    @property
    def shards(self) -> int:
        return self.execution.shard.count if self.execution.shard else 1

    @property
    def reach(self) -> float | None:
        """Of data in their own unit, how far radii are sought: as far as two of them can be apart,
        and some way beyond every eps."""
        if self.dataset.reach is None:
            return None
        return min(max(self.dataset.reach, 2 * self.options.largest.rounded_up), sys.float_info.max)

    def key(self, coins: Coins) -> int | None:
        """Of the coins, mixed with digests of everything that they must not be chosen for."""
        return coins.key(
            model=dict(self.model.loaded.files),
            preprocessing=self.model.preprocessing.to_json(),
            data=self.dataset.sha256,
            samples=indices_digest(self.indices),
            # A given seed repeats what a fresh one found.
            options=replace(self.options, seed=None).digest,
        )

    def header(self, coins: Coins) -> Record:
        """What every number of a journal depends on."""
        eps = sorted(eps.text for eps in self.options.eps)
        summation = self.model.loaded.summation
        return {
            "lipcert": VERSION,
            "options": self.options.digest,
            # For the words of a refusal; what counts is the digest.
            "settings": self.options.to_json() | {"eps": eps},
            # The digest is the same for 0.1 and 0.10, but samples name the radii as written.
            "eps": eps,
            "model": dict(self.model.loaded.files),
            "preprocessing": self.model.preprocessing.to_json(),
            "data": self.dataset.sha256,
            "samples": indices_digest(self.indices),
            "coins": coins.to_json(),
        } | ({} if summation is None else {"summation": summation})

    @property
    def frame(self) -> Frame:
        """What samples that are resumed are held against."""
        return Frame(
            options=self.options,
            outputs=self.network.classes,
            classes=self.dataset.classes,
            size=len(self.dataset),
            values=math.prod(self.dataset.images.shape[1:]),
            reach=self.reach,
            labels=Labels(self.dataset.labels, self.indices),
        )

    @property
    def data_record(self) -> Record:
        """The ``data`` of a certificate."""
        dataset, reach = self.dataset, self.reach
        return {
            "name": dataset.name,
            "split": dataset.split,
            "source": dataset.source,
            "sha256": dataset.sha256,
            "size": len(dataset),
            "classes": dataset.classes,
            "chosen": len(self.indices),
            "indices_sha256": indices_digest(self.indices),
            **({} if reach is None else {"reach": reach}),
            **({"class_names": list(dataset.names)} if dataset.names else {}),
            **({"reading": dict(dataset.reading)} if dataset.reading else {}),
            "shard": self.execution.part,
        }
