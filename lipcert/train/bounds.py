"""The bounds that a network can be trained with, by name: one table row a plug-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lipcert.train.anchored import AnchoredBound
from lipcert.train.boxes import TrainingBound
from lipcert.train.dual import DualBound
from lipcert.train.local import LocalBound

BoundName = Literal["local", "anchored", "dual"]

BOUNDS: dict[BoundName, Callable[[], TrainingBound]] = {
    "local": LocalBound,
    "anchored": AnchoredBound,
    "dual": DualBound,
}
