"""Before and after, side by side: both files certified in the same way, on the same test images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lipcert.data import Dataset
from lipcert.data.dataset import Indices
from lipcert.options import Epsilon, Options
from lipcert.run import Execution, Model, RunResult, certify_dataset
from lipcert.run.folder import journal_path
from lipcert.run.progress import Watch

Figures = dict[str, Any]


def certified(
    model: Model,
    data: Dataset,
    indices: Indices,
    options: Options,
    execution: Execution,
    folder: Path,
    watch: Watch,
) -> RunResult:
    """The certificate of a model, in ``folder``, continued where it was interrupted."""
    here = replace(execution, output=folder, allow_implausible=True)
    begun = journal_path(here).is_file()
    return certify_dataset(
        model, data, indices, options, replace(here, resume=begun, overwrite=False), watch
    )


def figures(result: RunResult, eps: Epsilon) -> Figures:
    """Shares of all samples: right, not broken within eps by the attack, certified at eps; and the
    mean certified radius of the correct ones; ``errors``: samples that failed inside lipcert."""
    samples, summary = result.samples, result.summary
    largest = eps.rounded_down
    broken = sum(s.correct and s.attack_radius is not None and s.attack_radius <= largest
                 for s in samples)  # fmt: skip
    right = summary["clean_correct"]
    radii = [s.radius or 0.0 for s in samples if s.correct]
    return {
        "n": summary["n"],
        "clean": right / summary["n"],
        "attack_survived": (right - broken) / summary["n"],
        "certified": summary["certified_count"][eps.text] / summary["n"],
        "errors": summary["verdicts"].get("error", 0),
        "mean_radius": fmean(radii) if radii else 0.0,
        "assurance": result.certificate.assurance.kind,
        "failure_probability": result.certificate.assurance.failure_probability,
    }
