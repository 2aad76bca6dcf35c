"""From a certificate and thresholds to outcomes. An ESTIMATE never gets that far."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lipcert import heads
from lipcert.certificate import failures
from lipcert.errors import CannotCertify, UsageError
from lipcert.gate.outcome import (
    NO_LEVEL,
    AtLeast,
    AtMost,
    Level,
    Outcome,
    Share,
    check_warning,
    judge,
)
from lipcert.gate.pairing import differences, require_same_samples
from lipcert.gate.thresholds import Thresholds
from lipcert.options import Epsilon

Record = dict[str, Any]

FAILURES = "samples without an internal error"


def evaluate(
    thresholds: Thresholds,
    certificate: Record,
    samples: Sequence[Record] = (),
    baseline: Record | None = None,
) -> list[Outcome]:
    """One outcome a gate, in the order of the options; before them one that fails where samples
    failed inside lipcert, so that nothing passes.

    ``certificate``, ``samples`` and ``baseline`` are as in ``certificate.json`` and
    ``samples.jsonl``; coins from a given seed are an outcome that warns. The samples serve the gate
    on seconds alone. Counts are compared as whole numbers, radii and seconds as the exact values of
    their doubles. Raises ``CannotCertify`` for an ESTIMATE, which bounds nothing, where there is no
    sample, or where samples of the baseline failed, against which a drop looks small;
    ``UsageError`` for an eps that was not certified, or a baseline that does not compare.
    """
    _refuse_estimate(certificate, "the certificate")
    summary = certificate["summary"]
    n = summary["n"]
    if n == 0:
        raise CannotCertify("the certificate holds no sample, so no gate can hold; certify some")
    said, accuracy = failures(summary), heads.accuracy(certificate["options"])
    outcomes = [Outcome(FAILURES, "fail", said)] if said else []
    outcomes += _coins(certificate)
    for eps, level in by_eps(thresholds, list(summary["certified_count"])).items():
        share = _share(summary["certified_count"][eps], certificate, thresholds)
        outcomes.append(judge(f"certified {accuracy} at eps {eps}", share, level))
    if thresholds.min_clean:
        share = _share(summary["clean_correct"], certificate, thresholds)
        outcomes.append(judge(heads.clean(certificate["options"]), share, thresholds.min_clean))
    if thresholds.min_radius_median:
        median = Fraction(summary["radius"]["median"] or 0)
        outcomes.append(
            judge("median certified radius", AtLeast(median), thresholds.min_radius_median)
        )
    if baseline is not None:
        outcomes += _drops(thresholds.max_drop, certificate, baseline)
    if thresholds.max_seconds_per_sample:
        if len(samples) != n:
            raise UsageError(
                "--max-seconds-per-sample: needs samples.jsonl beside the certificate, with its "
                f"{n} samples"
            )
        spent = sum((Fraction(sample["seconds"]) for sample in samples), Fraction(0)) / n
        measure = AtMost(spent, " s", places=3)
        outcomes.append(judge("seconds per sample", measure, thresholds.max_seconds_per_sample))
    return outcomes


def _coins(certificate: Record) -> list[Outcome]:
    coins = certificate.get("coins")
    if not coins or coins["source"] == "system":
        return []
    return [
        Outcome("coins", "warn", f"{coins['assurance']}; certify without --seed for fresh ones")
    ]


def _refuse_estimate(certificate: Record, what: str) -> None:
    if certificate["assurance"]["kind"] == "estimate":
        raise CannotCertify(
            f"{what} is an ESTIMATE, which bounds nothing, so no gate can hold; "
            "certify with --norms randomised or --norms deterministic"
        )


def by_eps(thresholds: Thresholds, eps: Sequence[str]) -> dict[str, Level]:
    """The levels of ``min_certified`` by eps as the certificate writes them; ``eps`` lists all.

    Raises ``UsageError`` for one that is not there, or given twice.
    """
    known = {Epsilon.parse(text).value: text for text in eps}
    levels: dict[str, Level] = {}
    for asked, level in thresholds.min_certified.items():
        value = max(known) if asked is None else asked.value
        if value not in known:
            raise UsageError(
                f"--min-certified: eps {asked.text if asked else value} is not certified; "
                f"choose one of {', '.join(eps)}, or certify with this --eps"
            )
        text = known[value]
        merged = levels.get(text, NO_LEVEL)
        if None not in (merged.fail, level.fail) or None not in (merged.warn, level.warn):
            raise UsageError(
                f"--min-certified: eps {text} is given twice, once as the largest; keep one"
            )
        levels[text] = Level(
            level.fail if merged.fail is None else merged.fail,
            level.warn if merged.warn is None else merged.warn,
        )
    for level in levels.values():
        check_warning("certified", level, sense="min")
    return levels


def _share(count: int, certificate: Record, thresholds: Thresholds) -> Share:
    """With its interval where it is of a subset, or where the interval is gated on."""
    n, lower = certificate["summary"]["n"], thresholds.gate_on == "lower"
    interval = lower or n < certificate["data"]["size"]
    return Share(count, n, thresholds.confidence if interval else None, lower)


def _drops(level: Level, certificate: Record, baseline: Record) -> list[Outcome]:
    _refuse_estimate(baseline, "the baseline")
    if said := failures(baseline["summary"]):
        raise CannotCertify(f"the baseline is incomplete: {said}")
    require_same_samples(baseline, certificate, "the baseline", "the certificate")
    n, counts = certificate["summary"]["n"], certificate["summary"]["certified_count"]
    before = {
        Epsilon.parse(text).value: count
        for text, count in baseline["summary"]["certified_count"].items()
    }
    others = differences(baseline, certificate)
    differing = f"; the baseline has another {', another '.join(others)}" if others else ""
    outcomes, accuracy = [], heads.accuracy(certificate["options"])
    for eps, count in counts.items():
        old = before[Epsilon.parse(eps).value]
        drop = AtMost(Fraction(old - count, n), " pp", places=2, scale=100)
        note = f" (from {old}/{n} to {count}/{n}{differing})"
        outcomes.append(judge(f"drop of certified {accuracy} at eps {eps}", drop, level, note))
    return outcomes
