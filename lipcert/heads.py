"""What a certificate claims of the outputs, in words, by the options that it records.

The plain claim is that the label's output is the greatest; ``certification.heads`` has the others
as rules on margins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# As many classes are written out.
_SHOWN = 12


def of_record(options: Mapping[str, Any]) -> tuple[int, tuple[int, ...], float]:
    """``top_k``, ``only_classes`` (empty for all) and ``margin`` of the options of a certificate;
    two certificates claim the same where these are equal."""
    margin = options.get("margin", 0.0)
    return options.get("top_k", 1), tuple(options.get("only_classes", ())), margin


def claim(options: Mapping[str, Any], names: Mapping[int, str] | None = None) -> str | None:
    """What is certified, in one sentence; None for the plain claim. ``names``: of classes."""
    top_k, classes, margin = of_record(options)
    best = "the best" if top_k == 1 else f"among the {top_k} best"
    said = [f"the label stays {best}"]
    if classes:
        shown = ", ".join((names or {}).get(one, str(one)) for one in classes[:_SHOWN])
        more = f", … {classes[-1]}" if len(classes) > _SHOWN else ""
        said.append(f"of the {len(classes)} classes {shown}{more}, the only ones that compete")
    if margin:
        said.append(f"with a softmax probability of more than {margin:g} above every other one")
    return " ".join(said) if len(said) > 1 or top_k > 1 else None


def accuracy(options: Mapping[str, Any]) -> str:
    """What the share of samples that have it is called: ``accuracy`` for the plain claim, of any
    order of sums; a certificate for one runtime alone is never taken for it."""
    top_k, classes, margin = of_record(options)
    best = f"top-{top_k} " if top_k > 1 else ""
    among = f" ({len(classes)} classes)" if classes else ""
    above = f" (margin {margin:g})" if margin else ""
    sums = " (measured sums)" if options.get("summation") == "measured" else ""
    return f"{best}accuracy{among}{above}{sums}"


def clean(options: Mapping[str, Any]) -> str:
    """What the share of right answers is called; no probability makes an answer right, and no order
    of sums."""
    return f"clean {accuracy({**options, 'margin': 0.0, 'summation': 'any'})}"
