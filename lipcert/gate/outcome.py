"""What is measured, what a level asks of it, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

from lipcert.errors import UsageError
from lipcert.gate.interval import clopper_pearson, lower_end_reaches
from lipcert.gate.levels import decimals, rounded, written

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Outcome:
    """One gate's: ``message`` shows the measured value beside the level that decided."""

    gate: str
    status: Status
    message: str


@dataclass(frozen=True)
class Level:
    """Where a gate fails and where it warns; there is no gate where both are None."""

    fail: Fraction | None = None
    warn: Fraction | None = None

    def __bool__(self) -> bool:
        return self.fail is not None or self.warn is not None


NO_LEVEL = Level()


def check_warning(name: str, level: Level, *, sense: str, most: Fraction | None = None) -> None:
    """Refuse a level to warn at that can never warn: where it is reached the gate has failed, or
    nothing is beyond it.

    ``sense``: ``min`` where values below the level count, ``max`` where those above do; ``most``:
    the largest value that there is. Raises ``UsageError``.
    """
    warn, fail, least = level.warn, level.fail, sense == "min"
    if warn is None:
        return

    def shown(value: Fraction) -> str:
        return f"{written(value * 100)}pp" if name == "drop" else written(value)

    option = f"--warn-{name} {shown(warn)}"
    if (least and warn <= 0) or (not least and most is not None and warn >= most):
        raise UsageError(
            f"{option}: can never warn, as nothing is {'below' if least else 'above'} it; leave it "
            "out, or choose another level"
        )
    if fail is not None and (warn <= fail if least else warn >= fail):
        raise UsageError(
            f"{option}: can never warn, as --{sense}-{name} {shown(fail)} fails first; choose a "
            f"level {'above' if least else 'below'} {shown(fail)}"
        )


class Measure(Protocol):
    """A measured value: does it hold a level, and how does one say so?"""

    def holds(self, level: Fraction) -> bool: ...

    def against(self, level: Fraction) -> str: ...


@dataclass(frozen=True)
class Share:
    """``count`` of ``n`` samples, at least the level.

    ``confidence`` adds the Clopper–Pearson interval; with ``lower`` its lower end must reach the
    level.
    """

    count: int
    n: int
    confidence: Fraction | None = None
    lower: bool = False

    def holds(self, level: Fraction) -> bool:
        if self.lower and self.confidence is not None:
            return lower_end_reaches(self.count, self.n, level, self.confidence)
        return self.count * level.denominator >= level.numerator * self.n

    def against(self, level: Fraction) -> str:
        places = _places(level * 100, 2)
        share = Fraction(self.count, self.n)
        sign, wanted = "≥" if self.holds(level) else "<", f"{written(level * 100)} %"
        said = f"{self.count}/{self.n} = {rounded(share * 100, places, up=False)} %"
        if self.confidence is None:
            return f"{said} {sign} {wanted}"
        ends = clopper_pearson(self.count, self.n, self.confidence, digits=places + 2)
        low = rounded(ends[0] * 100, places, up=False)
        high = rounded(ends[1] * 100, places, up=True)
        interval = f"Clopper-Pearson {written(self.confidence * 100)} %: {low} % to {high} %"
        if self.lower:
            return f"{said}, {interval}; lower end {low} % {sign} {wanted}"
        return f"{said} {sign} {wanted}; {interval}"


@dataclass(frozen=True)
class AtLeast:
    """A value that must not be below the level."""

    value: Fraction
    unit: str = ""

    def holds(self, level: Fraction) -> bool:
        return self.value >= level

    def against(self, level: Fraction) -> str:
        sign = "≥" if self.holds(level) else "<"
        shown = rounded(self.value, _places(level, 4), up=False)
        return f"{shown}{self.unit} {sign} {written(level)}{self.unit}"


@dataclass(frozen=True)
class AtMost:
    """A value that must not be above the level; ``scale`` turns both into the unit shown."""

    value: Fraction
    unit: str
    places: int
    scale: int = 1

    def holds(self, level: Fraction) -> bool:
        return self.value <= level

    def against(self, level: Fraction) -> str:
        sign, level_shown = "≤" if self.holds(level) else ">", level * self.scale
        shown = rounded(self.value * self.scale, _places(level_shown, self.places), up=True)
        return f"{shown}{self.unit} {sign} {written(level_shown)}{self.unit}"


def judge(gate: str, measure: Measure, level: Level, note: str = "") -> Outcome:
    """The outcome of one gate, decided and worded by the same ``holds``."""
    status: Status = "pass"
    deciding = level.fail if level.fail is not None else level.warn
    if level.fail is not None and not measure.holds(level.fail):
        status = "fail"
    elif level.warn is not None and not measure.holds(level.warn):
        status, deciding = "warn", level.warn
    assert deciding is not None
    return Outcome(gate, status, measure.against(deciding) + note)


def worst(outcomes: Sequence[Outcome]) -> Status:
    """``fail`` where any failed, else ``warn`` where any warns, else ``pass``."""
    found = {outcome.status for outcome in outcomes}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def _places(level: Fraction, least: int) -> int:
    """Decimals that show a value on the right side of the level: at least the level's own."""
    return max(least, decimals(level) or 0)
