"""The HTML report: one file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lipcert.gate import Outcome
from lipcert.report import charts, elements, sample_table, terms, training
from lipcert.report.numbers import distance_up, percent, percent_up, rounded_down, rounded_up
from lipcert.report.provenance import provenance
from lipcert.report.results import Record, Results, correct
from lipcert.report.thumbnails import EACH, data_uri, difference


def render(results: Results, outcomes: Sequence[Outcome] = ()) -> str:
    """The page. What the certificate lacks, an attack, a cascade, images, is left out."""
    samples = results.samples
    return elements.page(
        f"{results.title}: robustness",
        f"<header><h1>{escape(results.title)}</h1>"
        f'<p class="muted">L2 robustness in {escape(results.unit)}{escape(_made(results))}</p>'
        f"{_claim(results)}{_files(results)}</header>{elements.verdict(outcomes)}{_banner(results)}",
        elements.cards(_cards(results)),
        elements.section("Gates", elements.gate_table(outcomes) if outcomes else ""),
        elements.section("Robustness", _figures(results) if samples else _by_eps(results)),
        training.section(results.training),
        elements.section("By class", _by_class(results)),
        elements.section("Cascade", _cascade(results)),
        elements.section("Audit", _audit(results)),
        elements.section("Layers", _layers(results)),
        elements.section("Worst and best", _worst_and_best(results)),
        elements.section("Counterexamples", _counterexamples(results)),
        sample_table.section(results),
        elements.section(
            "How this came about",
            elements.table("Provenance", (), provenance(results), texts=2, wrap=True),
        ),
        terms.section(results),
    )


def _made(results: Results) -> str:
    """With what, and when."""
    finished = results.certificate.get("finished")
    when = f" · {finished[:16].replace('T', ' ')} UTC" if finished else ""
    return f" · lipcert {results.certificate['lipcert']}{when}"


def _claim(results: Results) -> str:
    """What is certified, where it is not that the label is the best class."""
    return f"<p>Claim: {escape(results.what)}.</p>" if results.what else ""


def _files(results: Results) -> str:
    """The digests of the model's files."""
    return "".join(
        f'<p class="muted">{escape(name)}: sha256 <code>{escape(digest)}</code></p>'
        for name, digest in results.certificate["model"]["files"].items()
    )


def _audit(results: Results) -> str:
    """What became of the samples that ``lipcert audit`` looked at."""
    if results.audit is None:
        return ""
    counts, agreed = results.audit["counts"], results.audit["agreement"]
    said = "Nothing is contradicted" if agreed else "The audit CONTRADICTS the certificate"
    looked = f"{len(results.audit['samples'])} of {results.audit['of']} samples"
    rows = [[name, str(count)] for name, count in counts.items()]
    text = f"{said}, by means that share no bound with the run: {looked} were audited."
    kind = "pass" if agreed else "fail"
    return f'<p class="{kind}">{escape(text)}</p>' + elements.table(
        "Outcomes of the audit", ("outcome", "samples"), rows
    )


def _banner(results: Results) -> str:
    doubt = "ESTIMATE: power iteration bounds nothing; no number here is a guarantee."
    texts = (results.failures, doubt if results.estimate else None)
    return "".join(f'<p class="banner" role="note">{escape(text)}</p>' for text in texts if text)


def _cards(results: Results) -> Iterator[tuple[str, str, str]]:
    summary, n = results.summary, results.summary["n"]
    doubt = ", bounds nothing" if results.estimate else ""
    eps, _ = results.eps[-1]
    count, upper = results.counts[eps], results.upper.get(eps)
    note = f"{count} of {n}{doubt}"
    if upper is not None and not results.estimate:
        note += "; none is open" if upper == count else f"; not falsified: {percent_up(upper, n)}"
    yield percent(count, n), f"{results.claim} at eps {eps}", note
    right = summary["clean_correct"]
    yield percent(right, n), results.clean_name, f"{right} of {n}"
    if results.median_radius is not None:
        median = rounded_down(results.median_radius)
        yield median, f"{results.radius_name}, median", f"of the correct samples{doubt}"
    assurance = results.certificate["assurance"]
    chance = assurance["failure_probability"]
    note = f"failing with p ≤ {rounded_up(chance)}" if chance else "no chance involved"
    kind = assurance["kind"]
    yield ("ESTIMATE" if results.estimate else kind), "assurance", doubt[2:] or note


def _figures(results: Results) -> str:
    style = "estimated" if results.estimate else "certified"
    lines = [(style, f"{results.claim}, lower bound" if not results.estimate else results.claim)]
    if results.upper:
        lines.append(("attacked", "not broken by the attack, upper bound"))
    marks = [(name, name) for name in charts.verdicts_in(results.samples)]
    figures = [
        elements.figure(
            charts.accuracy_chart(results),
            "Circles: the eps asked for.",
            elements.legend(lines, line=True),
        ),
    ]
    if results.median_of(results.samples) is not None:
        caption = "Radii of the correctly classified samples."
        figures.append(elements.figure(charts.radius_chart(results), caption))
    if marks:
        caption = "One mark a sample; the verdict is at the largest eps."
        chart = charts.margin_chart(results)
        figures.append(elements.figure(chart, caption, elements.legend(marks, line=False)))
    panel = f'<div class="panel">{_by_eps(results)}</div>'
    return f'<div class="figures">{"".join(figures)}{panel}</div>'


def _by_eps(results: Results) -> str:
    n = results.summary["n"]
    head = ["eps", "count", "ESTIMATE" if results.estimate else "certified"]
    rows = []
    for text, _ in results.eps:
        count, upper = results.counts[text], results.upper.get(text)
        row = [text, f"{count} of {n}", percent(count, n)]
        if upper is not None:
            row.append("none is open" if upper == count else percent_up(upper, n))
        rows.append(row)
    if results.upper:
        head.append("not falsified")
    return elements.table(
        "Shares of all samples at each eps, misclassified ones included", head, rows
    )


def _by_class(results: Results) -> str:
    head = ["class", "samples", "clean", *(f"eps {text}" for text, _ in results.eps), "radius"]
    rows = []
    for label, own in results.classes.items():
        rows.append([
            results.class_name(label),
            str(own.n),
            percent(own.correct, own.n),
            *(percent(own.held[text], own.n) for text, _ in results.eps),
            rounded_down(median(own.radii)) if own.radii else "none correct",
        ])  # fmt: skip
    caption = f"Clean accuracy, {results.claim} and median {results.radius_name} of each class"
    return elements.table(caption, head, rows)


def _cascade(results: Results) -> str:
    rungs = results.certificate.get("cascade") or ()
    rows = (
        [
            rung["rung"],
            str(rung["samples"]),
            str(rung["decided"]),
            percent(rung["decided"], rung["samples"]),
            f"{rung['seconds']:.2f} s",
        ]
        for rung in rungs
    )
    head = ("rung", "samples", "decided", "share", "time")
    caption = "What went through each rung, and how many verdicts at the largest eps it settled"
    return elements.table(caption, head, rows)


def _layers(results: Results) -> str:
    rows = []
    for layer in results.certificate.get("layers") or ():
        share = layer.get("eliminated")
        rows.append([
            f"{layer['source']} → {layer['sink']}",
            layer["operator"],
            layer["assurance"],
            "–" if layer["value"] is None else distance_up(layer["value"]),
            "–" if share is None else f"{share * 100:.1f} %",
        ])  # fmt: skip
    head = ("layer", "operator", "assurance", "norm", "eliminated")
    caption = "Operator norms between activations, and the mean share of neurons eliminated: those "
    caption += "that cannot vary in the ball of the largest eps"
    return elements.table(caption, head, rows, texts=3)


def _worst_and_best(results: Results) -> str:
    shown = [s for s in results.samples if correct(s) and s["index"] in results.images]
    ranked = sorted(shown, key=lambda sample: (results.radius(sample), sample["index"]))
    half = len(ranked) // 2
    worst, best = ranked[: min(EACH, half)], ranked[max(len(ranked) - EACH, half) :]
    parts = []
    for title, some in (("Smallest radii", worst), ("Largest radii", best[::-1])):
        row = elements.images(
            (
                [_original(results, s)],
                f"no. {s['index']}, class {results.class_name(s['label'])}",
                _radius(results, s),
            )
            for s in some
        )
        if row:
            parts.append(f"<h3>{title} of the correct samples</h3>{row}")
    return "".join(parts)


def _counterexamples(results: Results) -> str:
    wanted = set(results.counterexamples)
    by_index = {s["index"]: s for s in results.samples if s["index"] in wanted}
    entries = []
    for index, image in list(results.counterexamples.items())[:EACH]:
        sample = by_index.get(index)
        if sample is None or sample["verdict"] != "falsified":
            continue
        found = (data_uri(image), f"counterexample to sample {index}")
        pictures = [found]
        if (original := results.images.get(index)) is not None:
            pictures = [_original(results, sample), found]
            if original.shape == image.shape:
                pictures.append(_difference(original, image, index))
        broken = sample.get("attack_radius")
        distance = "" if broken is None else f"L2 distance ≤ {distance_up(broken)}"
        named = f"no. {index}, class {results.class_name(sample['label'])}"
        if index in results.taken_for:
            named += f", taken for {results.class_name(results.taken_for[index])}"
        entries.append((pictures, named, distance))
    left = results.summary["verdicts"].get("falsified", 0) - len(entries)
    more = f'<p class="muted">{left} more in counterexamples.npz.</p>' if left and entries else ""
    caption = (
        '<p class="muted">The original, what the model gets wrong, and the difference, enlarged '
        "around a middle grey.</p>"
    )
    return caption + elements.images(entries) + more if entries else ""


def _original(results: Results, sample: Record) -> tuple[str, str]:
    index, label = sample["index"], results.class_name(sample["label"])
    alt = f"sample {index}, of class {label}, predicted {results.class_name(sample['prediction'])}"
    return data_uri(results.images[index]), alt


def _difference(
    original: NDArray[np.uint8], found: NDArray[np.uint8], index: int
) -> tuple[str, str]:
    change, times = difference(original, found)
    return data_uri(change), f"difference of sample {index}, {times} times as large"


def _radius(results: Results, sample: Record) -> str:
    return f"radius {rounded_down(results.radius(sample))}"
