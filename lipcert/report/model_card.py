"""The ``model-index`` of a Hugging Face model card: YAML to put at the head of its README."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from lipcert.certificate import PIXELS
from lipcert.errors import CannotCertify
from lipcert.gate import Outcome
from lipcert.report.numbers import rounded_down
from lipcert.report.results import Results


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """One result: the dataset with its digest, and clean and certified accuracy in per cent.

    A value on a hub loses its caveats, so an ESTIMATE raises ``CannotCertify``.
    """
    if results.estimate:
        raise CannotCertify(
            "--format model-card: an ESTIMATE bounds nothing and must not be published as a "
            "metric; certify with --norms randomised or --norms deterministic"
        )
    data = results.certificate["data"]
    lines = [
        "---",
        *([f"# {results.failures}"] if results.failures else []),
        "model-index:",
        f"- name: {_text(results.certificate['model']['name'])}",
        "  results:",
        "  - task:",
        f"      type: {'image' if results.unit == PIXELS else 'tabular'}-classification",
        "    dataset:",
        f"      name: {_text(data['name'])}",
        f"      type: {_text(data['name'])}",
        f"      split: {_text(data['split'])}",
        "      args:",
        f"        sha256: {_text(data['sha256'])}",
        *(f"        {line}" for line in _classes(data.get("class_names", ()))),
        "    metrics:",
    ]
    for kind, name, value in _metrics(results):
        lines += [f"    - type: {kind}", f"      name: {_text(name)}", f"      value: {value}"]
    return "\n".join([*lines, "---", ""])


def _classes(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield "classes:"
        yield from (f"- {_text(name)}" for name in names)


def _metrics(results: Results) -> Iterator[tuple[str, str, str]]:
    summary, kind = results.summary, results.certificate["assurance"]["kind"]
    n = summary["n"]
    name = f"{results.clean_name.capitalize()} (% of {n})"
    yield "accuracy", name, _value(summary["clean_correct"], n)
    for eps, _ in results.eps:
        name = f"{results.claim.capitalize()}, L2 eps {eps} (% of {n}, {kind} bounds)"
        yield "certified-accuracy", name, _value(results.counts[eps], n)
    for eps, count in results.upper.items():
        name = f"Not falsified by an attack, L2 eps {eps} (% of {n}, an upper bound)"
        yield "attacked-accuracy", name, _value(count, n, up=True)
    if results.median_radius is not None:
        name = "Median certified L2 radius of the correct samples"
        yield "certified-radius", name, rounded_down(results.median_radius)


def _value(count: int, n: int, *, up: bool = False) -> str:
    if not n:
        return "100.00" if up else "0.00"
    hundredths = -(-10_000 * count // n) if up else 10_000 * count // n
    return f"{hundredths / 100:.2f}"


def _text(text: str) -> str:
    # A JSON string is a YAML scalar, whatever it holds.
    return json.dumps(text)
