"""The pictures of the HTML report, each from the samples alone."""

from __future__ import annotations

from collections.abc import Sequence

from lipcert.gate import Comparison
from lipcert.report.numbers import percent, rounded_down
from lipcert.report.results import Record, Results, correct
from lipcert.report.svg import Axes, Point, bars, dots, drawing, rings, steps

_BINS = 30
# One style a verdict: its form tells it as well as its colour.
VERDICTS = ("certified", "estimated", "unknown", "falsified", "timeout", "misclassified")


def accuracy_chart(results: Results) -> str:
    """The share of samples with a radius of at least eps, against eps: a lower bound of the robust
    accuracy; with attacks, the share that none has broken within eps, an upper bound."""
    n = len(results.samples)
    radii, broken = [], []
    for sample in results.samples:
        if correct(sample):
            radii.append(results.radius(sample))
            if sample.get("attack_radius") is not None:
                broken.append(sample["attack_radius"])
    radii.sort()
    broken.sort()
    axes = Axes(
        (0, _reach(results, radii)), (0, 1), f"eps (L2, {results.unit})", "of samples", True
    )
    lower = [(0.0, len(radii) / n)]
    lower += [(radius, (len(radii) - rank) / n) for rank, radius in enumerate(radii, start=1)]
    style = "estimated" if results.estimate else "certified"
    parts = [axes.frame(), steps(axes, lower, style, up=False)]
    counts, total = results.counts, results.summary["n"]
    asked = [(eps, counts[text] / total) for text, eps in results.eps]
    parts.append(rings(axes, asked, style))
    text = ", ".join(f"{percent(counts[e], total)} at eps {e}" for e, _ in results.eps)
    description = f"{results.claim}: {percent(len(radii), n)} at eps 0, {text}."
    if results.upper:
        upper = [(0.0, len(radii) / n)]
        upper += [(x, (len(radii) - rank) / n) for rank, x in enumerate(broken, start=1)]
        parts.append(steps(axes, upper, "attacked", up=True))
        description += f" The attack's upper curve ends at {len(radii) - len(broken)} of {n}."
    return drawing("accuracy", "Accuracy against eps", description, *parts)


def radius_chart(results: Results) -> str:
    """How the radii of the correctly classified samples are distributed."""
    radii = [results.radius(sample) for sample in results.samples if correct(sample)]
    most = max(radii, default=0.0) or 1.0
    edges = [most * i / _BINS for i in range(_BINS + 1)]
    heights = [0] * _BINS
    for radius in radii:
        heights[min(int(radius / most * _BINS), _BINS - 1)] += 1
    high = max(heights) * 1.08 or 1
    axes = Axes((0, most), (0, high), results.radius_name, "samples", whole="y")
    style = "estimated" if results.estimate else "certified"
    half = results.median_of(results.samples)
    said = "no sample is correct" if half is None else f"median {rounded_down(half)}"
    description = f"{len(radii)} correct samples, {said}, largest {rounded_down(most)}."
    return drawing(
        "radii", "Histogram of radii", description, axes.frame(), bars(axes, edges, heights, style)
    )


def margin_chart(results: Results) -> str:
    """Each sample's margin against its radius, formed by its verdict."""
    points: dict[str, list[Point]] = {}
    for sample in results.samples:
        if (margin := sample["margin"]) is not None:
            points.setdefault(sample["verdict"], []).append((margin, results.radius(sample)))
    margins, radii = ([point[axis] for own in points.values() for point in own] for axis in (0, 1))
    axes = Axes(_span(margins), _span(radii), "margin (logits)", results.radius_name)
    parts = [dots(axes, points[name], name) for name in reversed(VERDICTS) if name in points]
    counts = ", ".join(f"{len(points[name])} {name}" for name in VERDICTS if name in points)
    description = f"One dot a sample: {counts}."
    return drawing("margins", "Margin against radius", description, axes.frame(), *parts)


def scatter_chart(comparison: Comparison) -> str:
    """Each sample's radius in A against that in B; above the diagonal B is better."""
    pairs = [(one, other) for _, one, other in comparison.radii]
    span = _span([value for pair in pairs for value in pair])
    axes = Axes(span, span, "certified radius, A", "certified radius, B")
    ends = f"M{axes.at_x(span[0]):.1f} {axes.at_y(span[0]):.1f}"
    ends += f"L{axes.at_x(span[1]):.1f} {axes.at_y(span[1]):.1f}"
    diagonal = f'<path class="line guide" d="{ends}"/>'
    above = sum(other > one for one, other in pairs)
    below = sum(other < one for one, other in pairs)
    description = f"B has the larger radius on {above} samples, the smaller on {below}."
    return drawing(
        "scatter", "Radii of A and B", description, axes.frame(), diagonal,
        dots(axes, pairs, "certified"),
    )  # fmt: skip


def verdicts_in(samples: Sequence[Record]) -> list[str]:
    """The verdicts that ``margin_chart`` draws, in the order of its legend."""
    present = {sample["verdict"] for sample in samples if sample["margin"] is not None}
    return [name for name in VERDICTS if name in present]


def _reach(results: Results, radii: Sequence[float]) -> float:
    """Beyond the largest eps asked for, and beyond all radii but the largest hundredth."""
    usual = radii[min(len(radii) - 1, len(radii) * 99 // 100)] if radii else 0.0
    return max(results.eps[-1][1], usual) * 1.1 or 1.0


def _span(values: Sequence[float]) -> Point:
    low, high = min([0.0, *values]), max([0.0, *values])
    return low, high + (high - low or 1.0) * 0.04
