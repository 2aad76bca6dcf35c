"""How a model was fine-tuned: the curves of the run, and before and after side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lipcert.report import elements
from lipcert.report.numbers import percent, rounded_down
from lipcert.report.svg import Axes, Point, dots, drawing, polyline

Record = dict[str, Any]

# Style, key of the metrics, name.
_ACCURACIES = (
    ("attacked", "validation_clean", "clean"),
    ("estimated", "validation_certified_estimate", "certified (ESTIMATE of the training bound)"),
    ("certified", "checked_certified", "certified by auto, some of the images"),
)
_NOTE = (
    "Validation images, held out of the training set. What the training bound says is an ESTIMATE; "
    "only this page's certificate is sound."
)
_ROWS = (
    ("clean", "clean accuracy"),
    ("attack_survived", "not broken by the attack at {eps}"),
    ("certified", "certified accuracy at {eps}"),
    ("mean_radius", "mean certified radius"),
)


@dataclass(frozen=True)
class TrainingRecord:
    """``metrics``: the lines of ``metrics.jsonl``; ``results``: those of ``recipe.json``."""

    metrics: tuple[Record, ...]
    results: Record


def section(training: TrainingRecord | None) -> str:
    """The section of a report; empty for a model that was not fine-tuned."""
    if training is None or not training.metrics:
        return ""
    shown = [entry for entry in _ACCURACIES if _points(training.metrics, entry[1])]
    key = elements.legend([(style, name) for style, _, name in shown], line=True)
    figures = []
    if shown:
        figures.append(elements.figure(accuracy_curve(training.metrics), _NOTE, key))
    if _points(training.metrics, "loss"):
        caption = "Loss of the training images, each epoch."
        figures.append(elements.figure(loss_curve(training.metrics), caption))
    compared = before_and_after(training.results)
    return elements.section("Training", f'<div class="figures">{"".join(figures)}</div>', compared)


def accuracy_curve(metrics: Sequence[Record]) -> str:
    """Clean accuracy and the estimate of the certified one, by epoch."""
    last = max(record["epoch"] for record in metrics)
    axes = Axes((0, max(1, last)), (0, 1), "epoch", "of validation images", True, "x")
    parts, said = [axes.frame()], []
    for style, key, name in _ACCURACIES:
        points = _points(metrics, key)
        if points:
            parts += [polyline(axes, points, style), dots(axes, points, style)]
            said.append(f"{name} {points[0][1]:.2%} at first, {points[-1][1]:.2%} at the end")
    return drawing("training", "Accuracy by epoch", f"{'; '.join(said)}.", *parts)


def loss_curve(metrics: Sequence[Record]) -> str:
    points = _points(metrics, "loss")
    last = max(record["epoch"] for record in metrics)
    most = max((loss for _, loss in points), default=0.0) or 1.0
    axes = Axes((0, max(1, last)), (0, most * 1.08), "epoch", "loss", whole="x")
    text = f"{len(points)} epochs, {points[-1][1]:.4g} at the end." if points else "No epoch ended."
    line = polyline(axes, points, "certified") if points else ""
    marks = dots(axes, points, "certified")
    return drawing("loss", "Loss by epoch", text, axes.frame(), line, marks)


def before_and_after(results: Record) -> str:
    """The table of both certificates; empty where there are none."""
    caption, head, rows = side_by_side(results)
    return elements.table(caption, head, rows) if rows else ""


def side_by_side(results: Record) -> tuple[str, list[str], list[list[str]]]:
    """Caption, heads and rows of that table; nothing where there are no certificates."""
    columns = [name for name in ("before", "after") if name in results]
    if not columns:
        return "", [], []
    rows = [
        [title.format(eps=results["eps"]), *(_shown(results[name], key) for name in columns)]
        for key, title in _ROWS
    ]
    n, method = results[columns[0]]["n"], results["method"]
    caption = f"{n} test images, by {method}; eps in {results.get('unit', 'pixels [0,1]')}"
    return caption, ["", *columns], rows


def _shown(figures: Record, key: str) -> str:
    if key == "mean_radius":
        return rounded_down(figures[key])
    return percent(round(figures[key] * figures["n"]), figures["n"])


def _points(metrics: Sequence[Record], key: str) -> list[Point]:
    return [(r["epoch"], r[key]) for r in metrics if r.get(key) is not None]
