"""Inputs of a network of real outputs, and the targets that its outputs are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipcert.bounded import opened
from lipcert.data import Dataset, Expected
from lipcert.data.arrays import to_dataset
from lipcert.data.keys import labels_in
from lipcert.data.npy import read_npy
from lipcert.data.npz import read_npz
from lipcert.errors import UsageError
from lipcert.run.model import Model

Array = NDArray[Any]


def read_inputs(
    path: Path, targets: Path | None, *, image_key: str | None = None, label_key: str | None = None
) -> tuple[Array, Array | None]:
    """The inputs of a ``.npz`` or ``.npy`` file, and their targets: of the file ``targets``, or the
    array of the ``.npz`` that is called ``y``, ``targets`` or ``label_key``; None without any."""
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(f"--data {path}: give a .npz or .npy file of inputs")
    for option, file in (("--data", path), ("--targets", targets)):
        if file is not None and not file.is_file():
            raise UsageError(f"{option} {file}: there is no such file")
    found: Array | None = None
    if path.suffix == ".npy":
        inputs = read_npy(path)
    else:
        with opened(path, str(path)) as archive:
            there = list(archive.members)
        known = label_key or labels_in(there, "test")
        inputs, found = read_npz(
            path, str(path), image_key=image_key, label_key=known, without_labels=known is None
        )
    return inputs, found if targets is None else read_npy(targets)


def dataset_of(inputs: Array, source: str, model: Model, **reading: Any) -> Dataset:
    """Inputs as data of no label."""
    reading = {"expected": Expected(tuple(model.loaded.network.in_shape[1:]), None)} | reading
    labels: Array = np.zeros(len(inputs), dtype=np.int64)
    return to_dataset("inputs", "given", inputs, labels, source=source, **reading)


@dataclass(frozen=True, eq=False)
class Goal:
    """Every output stays within ``tolerance`` of its target: ``targets`` ``(N, m)``."""

    targets: Array
    tolerance: float

    @classmethod
    def of(
        cls, given: Array | None, tolerance: float | None, size: int, outputs: int
    ) -> Goal | None:
        """Of targets ``(N, m)`` or ``(N,)`` for ``size`` samples; None without a tolerance. Raises
        ``UsageError`` where they are missing, do not fit, or are no numbers."""
        if tolerance is None:
            return None
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise UsageError(f"--tolerance {tolerance:g}: give a number above 0")
        if given is None:
            raise UsageError(
                "--tolerance: needs targets: an array y or targets in the .npz file, or "
                "--targets FILE"
            )
        if given.dtype.kind not in "biuf":
            raise UsageError(f"--targets: the targets must be numbers, not {given.dtype}")
        targets = np.asarray(given, dtype=np.float64)
        targets = targets.reshape(len(targets), -1) if targets.ndim else targets
        if targets.shape != (size, outputs):
            raise UsageError(
                f"--targets: the targets of shape {list(given.shape)} do not fit the {size} "
                f"samples and {outputs} outputs; give an array of shape [{size}, {outputs}]"
            )
        if not np.isfinite(targets).all():
            raise UsageError("--targets: the targets hold NaN or infinite values")
        return cls(targets, tolerance)

    def of_samples(self, indices: list[int]) -> torch.Tensor:
        """The targets of these samples, ``(B, m)``."""
        return torch.from_numpy(self.targets[indices]).double()
