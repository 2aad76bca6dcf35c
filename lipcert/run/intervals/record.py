"""What comes of a run over a network of real outputs: its samples, their summary, a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipcert.options import Options
from lipcert.report.provenance import summation

Pairs = tuple[tuple[float, float], ...]
NOTHING = (-math.inf, math.inf)


@dataclass(frozen=True)
class Enclosed:
    """One sample of a network of real outputs.

    ``value``: the outputs at the sample. ``intervals``: by eps as written, for every output what it
    is at least and at most anywhere in the ball, as deployed; infinite where nothing is proven.
    ``reached``: likewise what an attack has found, which lies inside; of some outputs where there
    are many, NaN of the others.

    With a tolerance: ``target``; ``certified``, the eps at which every output stays within the
    tolerance of it; ``radius``, the largest one found for which that is proven, 0 without any; and
    the ``verdict`` at the largest eps: ``certified``, ``falsified`` (an attack got outside),
    ``outside`` (the sample's own outputs are), ``unknown``. A sample whose computation failed, or
    that an attack or the deployed file contradicts, or whose outputs are no finite numbers, is an
    ``error``, with a ``message`` and no interval.
    """

    index: int
    value: tuple[float, ...]
    intervals: dict[str, Pairs]
    reached: dict[str, Pairs]
    failure_probability: float
    target: tuple[float, ...] | None = None
    certified: tuple[str, ...] = ()
    radius: float | None = None
    verdict: str | None = None
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Fields that do not apply are left out, what is not finite is null."""
        record = {name: value for name, value in vars(self).items() if value is not None}
        found: dict[str, Any] = _finite(record)
        return found


@dataclass(frozen=True)
class IntervalResult:
    """The ``record`` of a run, as its JSON has it but for the ``samples``."""

    record: dict[str, Any]
    samples: tuple[Enclosed, ...]

    def to_json(self) -> dict[str, Any]:
        return self.record | {"samples": [sample.to_json() for sample in self.samples]}

    @property
    def failed(self) -> str | None:
        """Of samples that are errors: how many, and the first message."""
        errors = [sample for sample in self.samples if sample.verdict == "error"]
        if not errors:
            return None
        counts = f"{len(errors)} of {len(self.samples)} samples failed"
        return f"{counts}; the first, {errors[0].index}: {errors[0].message}"


def summarised(samples: Sequence[Enclosed], options: Options, *, judged: bool) -> dict[str, Any]:
    """The figures of all samples; ``judged``: with those of targets."""
    made: dict[str, Any] = {"n": len(samples), "mean_width": {}, "unbounded": {}}
    for eps in (eps.text for eps in options.eps):
        widths = [max(high - low for low, high in one.intervals[eps]) for one in samples]
        known = [width for width in widths if math.isfinite(width)]
        made["mean_width"][eps] = math.fsum(known) / len(known) if known else None
        made["unbounded"][eps] = len(widths) - len(known)
    if judged:
        counts = {e.text: sum(e.text in one.certified for one in samples) for e in options.eps}
        made["certified_count"] = counts
        made["certified_share"] = {eps: count / len(samples) for eps, count in counts.items()}
        radii = sorted(one.radius or 0.0 for one in samples)
        made["radius"] = {
            "mean": math.fsum(radii) / len(radii), "median": float(np.median(radii)),
        }  # fmt: skip
        verdicts = [one.verdict or "unknown" for one in samples]
        made["verdicts"] = {name: verdicts.count(name) for name in sorted(set(verdicts))}
    return made


def rows(result: IntervalResult) -> Iterator[tuple[str, str]]:
    """What a table for people shows."""
    record, summary = result.record, result.record["summary"]
    if result.failed:
        yield "FAILED", result.failed
    for eps, width in summary["mean_width"].items():
        yield (
            f"widest interval at eps {eps}, mean",
            _width(width, summary["unbounded"][eps], summary["n"]),
        )
    for eps, count in summary.get("certified_count", {}).items():
        tolerance = record["options"]["tolerance"]
        yield f"certified within ± {tolerance:g} at eps {eps}", f"{count} of {summary['n']}"
    if "radius" in summary:
        radii = summary["radius"]
        yield "certified radius", f"mean {radii['mean']:.4g}, median {radii['median']:.4g}"
        told = ", ".join(f"{count} {name}" for name, count in summary["verdicts"].items())
        yield "verdicts", told
    chance = record["assurance"]["failure_probability"]
    yield "assurance", f"{record['assurance']['kind']}, failing with p ≤ {chance:.2g}"
    deployed = record["options"]["deployed"]
    measured = record["model"].get("summation")
    yield (
        "arithmetic",
        (
            f"covers the {deployed} model {summation(measured)}"
            if measured
            else f"covers the deployed {deployed} model"
        ),
    )
    difference = record["model"]["cross_check"]
    yield "cross-check", f"relative difference {difference:.2g} from onnxruntime"
    yield "time", f"{record['seconds']:.1f} s"


def _width(mean: float | None, unbounded: int, n: int) -> str:
    if mean is None:
        return f"no bound for any of the {n} samples" if n > 1 else "no bound for the sample"
    if unbounded:
        return f"{mean:.6g} over {n - unbounded} of {n} samples; no bound for the other {unbounded}"
    return f"{mean:.6g}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(one) for one in value]
    return value
