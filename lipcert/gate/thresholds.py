"""What a release asks for, parsed and checked before anything is computed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from lipcert.errors import UsageError
from lipcert.gate import levels
from lipcert.gate.outcome import NO_LEVEL, Level, check_warning
from lipcert.options import Epsilon

GateOn = Literal["value", "lower"]
# The thresholds by eps.
_LISTS = ("min_certified", "warn_certified")


@dataclass(frozen=True)
class Thresholds:
    """The gates asked for, each with a level to fail and one to warn at.

    ``min_certified``: by eps, None for the largest. ``gate_on``: shares are compared by their
    ``value``, or by the ``lower`` end of their Clopper–Pearson interval at ``confidence``.
    """

    min_certified: dict[Epsilon | None, Level] = field(default_factory=dict)
    min_clean: Level = NO_LEVEL
    min_radius_median: Level = NO_LEVEL
    baseline: Path | None = None
    max_drop: Level = NO_LEVEL
    max_seconds_per_sample: Level = NO_LEVEL
    gate_on: GateOn = "value"
    confidence: Fraction = Fraction(95, 100)

    def __post_init__(self) -> None:
        if self.max_drop and self.baseline is None:
            raise UsageError("--max-drop: name the certificate to compare with, with --baseline")
        if self.baseline is not None and not self.max_drop:
            raise UsageError("--baseline: say how much may be lost, such as --max-drop 0.5pp")
        if self.gate_on not in get_args(GateOn):
            raise UsageError(f"--gate-on {self.gate_on!r}: choose one of value, lower")
        if self.gate_on == "lower" and not (self.min_certified or self.min_clean):
            raise UsageError("--gate-on lower: goes with --min-certified or --min-clean")

    def __bool__(self) -> bool:
        """Whether any gate is asked for."""
        single = (
            self.min_clean, self.min_radius_median, self.max_drop, self.max_seconds_per_sample,
        )  # fmt: skip
        return bool(self.min_certified) or any(single)

    @classmethod
    def of(cls, *, baseline: str | PathLike[str] | None = None, **asked: Any) -> Thresholds:
        """As ``parse``, from Python: numbers as well as text, and one share in place of a list.
        Raises ``UsageError``, for a name that is none of them too."""
        known = [name for name in inspect.signature(cls.parse).parameters if name != "baseline"]
        for name in asked:
            if name not in known:
                (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise UsageError(f"{name}: is no threshold; did you mean {near}?")
        texts: dict[str, Any] = {}
        for name, value in asked.items():
            several = value if isinstance(value, list | tuple) else [value]
            texts[name] = [str(one) for one in several] if name in _LISTS else str(value)
        if not texts:
            raise UsageError("no gate is asked for; give one such as min_certified=0.60")
        return cls.parse(baseline=None if baseline is None else Path(baseline), **texts)

    @classmethod
    def parse(
        cls,
        *,
        min_certified: Sequence[str] = (),
        warn_certified: Sequence[str] = (),
        min_clean: str | None = None,
        warn_clean: str | None = None,
        min_radius_median: str | None = None,
        warn_radius_median: str | None = None,
        baseline: Path | None = None,
        max_drop: str | None = None,
        warn_drop: str | None = None,
        max_seconds_per_sample: str | None = None,
        warn_seconds_per_sample: str | None = None,
        gate_on: GateOn = "value",
        confidence: str = "0.95",
    ) -> Thresholds:
        """From texts such as ``0.60``, ``36/255=0.60`` and ``0.5pp``; raises ``UsageError``."""
        failing = levels.shares_at("--min-certified", min_certified)
        warning = levels.shares_at("--warn-certified", warn_certified)
        certified = {e: Level(failing.get(e), warning.get(e)) for e in failing | warning}
        for level in certified.values():
            check_warning("certified", level, sense="min")
        return cls(
            min_certified=certified,
            min_clean=_level(levels.share, "clean", min_clean, warn_clean),
            min_radius_median=_level(
                levels.number, "radius-median", min_radius_median, warn_radius_median
            ),
            baseline=baseline,
            max_drop=_level(levels.points, "drop", max_drop, warn_drop, sense="max"),
            max_seconds_per_sample=_level(
                levels.number,
                "seconds-per-sample",
                max_seconds_per_sample,
                warn_seconds_per_sample,
                sense="max",
            ),
            gate_on=gate_on,
            confidence=levels.confidence("--confidence", confidence),
        )


def _level(
    parse: Callable[[str, str], Fraction],
    name: str,
    fail: str | None,
    warn: str | None,
    *,
    sense: str = "min",
) -> Level:
    level = Level(
        None if fail is None else parse(f"--{sense}-{name}", fail),
        None if warn is None else parse(f"--warn-{name}", warn),
    )
    most = Fraction(1) if name == "drop" else None
    check_warning(name, level, sense=sense, most=most)
    return level
