"""What the samples of a run are held against: its options, its model and its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lipcert.errors import LipcertError
from lipcert.options import Epsilon, Options
from lipcert.records.strict_json import Record


@dataclass(frozen=True)
class Frame:
    """``outputs``: classes of the model; ``classes`` and ``size``: of the data; ``values``: how
    many numbers a sample has. ``reach``: how far radii are sought, where the data are in their own
    unit; None for data in [0, 1]. ``labels``: of every sample of the run by its index, where the
    data are at hand."""

    options: Options
    outputs: int
    classes: int
    size: int
    values: int
    reach: float | None = None
    labels: Mapping[int, int] | None = None

    @classmethod
    def of(cls, certificate: Record) -> Frame:
        """That of a ``certificate.json`` whose fields have been checked.

        Raises ``ValueError`` where its options are none.
        """
        model, data = certificate["model"], certificate["data"]
        return cls(
            options=options_of(certificate["options"]),
            outputs=model["classes"],
            classes=data["classes"],
            size=data["size"],
            values=math.prod(model["input_shape"]),
            reach=data.get("reach"),
        )

    @cached_property
    def eps(self) -> tuple[Epsilon, ...]:
        return self.options.eps

    @cached_property
    def estimate(self) -> bool:
        return self.options.estimate

    @cached_property
    def largest(self) -> str:
        """The largest eps, as written."""
        return self.options.largest.text

    @cached_property
    def rounded(self) -> dict[str, tuple[float, float]]:
        """Of every eps the doubles next to it, from below and from above."""
        return {eps.text: (eps.rounded_down, eps.rounded_up) for eps in self.eps}

    @cached_property
    def farthest(self) -> float:
        """No radius beyond it is looked for: the diagonal of the domain, or the largest eps."""
        diagonal = math.sqrt(self.values) if self.reach is None else self.reach
        return max(diagonal, self.options.largest.rounded_up)


def options_of(record: Record) -> Options:
    """The options that a certificate records. Raises ``ValueError`` where they are none."""
    try:
        options = Options(**record | {"eps": tuple(map(Epsilon.parse, record["eps"]))})
        # A radius beyond every double has no neighbours.
        [(eps.rounded_down, eps.rounded_up) for eps in options.eps]
    except (LipcertError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(str(error)) from error
    if options.to_json() != record:
        raise ValueError(f"they are not written as lipcert writes them: {options.to_json()}")
    return options
