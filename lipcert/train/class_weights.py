"""How much the loss of a sample counts, by its class: for data with few images of some classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from lipcert.errors import UsageError

_OPTION = "--class-weights"
_BALANCED = "balanced"


@dataclass(frozen=True)
class ClassWeights:
    """``numbers``: one weight a class; None: ``balanced``, in inverse proportion to the training
    images of each class. Only their ratios matter."""

    numbers: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``UsageError`` for anything but ``balanced`` and numbers with commas."""
        if text.strip() == _BALANCED:
            return cls()
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        usable = all(0 <= number < math.inf for number in numbers)
        if not (numbers and usable and any(numbers)):
            raise UsageError(
                f"{_OPTION} {text!r}: give {_BALANCED}, or one number of at least 0 for each "
                "class, such as 1,1,4"
            )
        return cls(numbers)

    @property
    def text(self) -> str:
        return _BALANCED if self.numbers is None else ",".join(f"{n:g}" for n in self.numbers)

    def of(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """The weight of each class ``(classes,)``, whose mean over the samples of ``labels`` is 1.

        A class without images has none. Raises ``UsageError`` where there are not as many numbers
        as classes, or none counts that has images.
        """
        counts = np.bincount(labels, minlength=classes).astype(np.float64)
        if self.numbers is None:
            weights = np.divide(1.0, counts, out=np.zeros(classes), where=counts > 0)
        elif len(self.numbers) != classes:
            raise UsageError(
                f"{_OPTION} {self.text}: gives {len(self.numbers)} numbers, but the model has "
                f"{classes} classes"
            )
        else:
            weights = np.array(self.numbers)
        total = float(counts @ weights)
        if not total > 0:
            raise UsageError(f"{_OPTION} {self.text}: no training image counts")
        found: np.ndarray = weights * counts.sum() / total
        return found
