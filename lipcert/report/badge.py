"""A badge: the JSON that a shields.io endpoint badge reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lipcert.gate import Outcome, worst
from lipcert.report.numbers import percent
from lipcert.report.results import Results

_COLOURS = {"pass": "brightgreen", "warn": "yellow", "fail": "red"}


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """Certified accuracy at the largest eps, coloured by the gates, blue without any, red where
    samples failed inside lipcert.

    An ESTIMATE's badge is grey and says that it bounds nothing.
    """
    eps, _ = results.eps[-1]
    badge = {
        "schemaVersion": 1,
        "label": f"{results.claim}, L2 {eps}",
        "message": percent(results.counts[eps], results.summary["n"]),
        "color": _COLOURS[worst(outcomes)] if outcomes else "blue",
    }
    if results.failures:
        errors = f"{results.summary['verdicts']['error']} failed"
        badge |= {"message": f"{badge['message']}, {errors}", "color": "red"}
    if results.estimate:
        badge |= {"message": f"{badge['message']}, bounds nothing", "color": "lightgrey"}
    return json.dumps(badge, indent=2, ensure_ascii=False) + "\n"
