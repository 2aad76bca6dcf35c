"""A run over a network of real outputs: the interval of each of them in balls around samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipcert.certificate import threat_model
from lipcert.certification.intervals import Encloser
from lipcert.coins import Coins
from lipcert.data import Dataset
from lipcert.errors import CannotCertify, InternalError
from lipcert.loading import DeployedFile
from lipcert.loading.deployed_file import relative_difference
from lipcert.loading.heads import CUT
from lipcert.options import Options
from lipcert.rounding import exceeds
from lipcert.run.checks import CROSS_CHECK_SAMPLES, check_domain
from lipcert.run.environment import environment, threads
from lipcert.run.intervals.batches import Enclosing
from lipcert.run.intervals.inputs import Goal
from lipcert.run.intervals.record import Enclosed, IntervalResult, summarised
from lipcert.run.job import Execution
from lipcert.run.model import Model, with_summation
from lipcert.run.progress import Watch
from lipcert.run.task import Task
from lipcert.version import VERSION

SCHEMA = "https://lipcert.dev/schema/intervals/1"
_AT_ONCE = 20

Array = NDArray[Any]


def outputs_of(model: Model) -> tuple[int, ...]:
    """Which values of the network are outputs of the file. Raises ``CannotCertify`` where these are
    classes and not numbers."""
    loaded = model.loaded
    if loaded.stripped is not None:
        raise CannotCertify(
            f"{model.name}: ends in a {loaded.stripped}, which is left out: an interval would be "
            "of what stands before it; name that value with --output-name, or certify its classes "
            "with lipcert certify"
        )
    if any(CUT in note for note in loaded.notes):
        raise CannotCertify(
            f"{model.name}: decides for a class at the end; certify it with lipcert certify"
        )
    if loaded.beside is not None:
        # The constant threshold stands before the one score, or behind it.
        return (0,) if loaded.below else (1,)
    return tuple(range(model.classes))


def enclose(
    model: Model, dataset: Dataset, indices: Sequence[int], options: Options, *,
    targets: Array | None = None, tolerance: float | None = None, watch: Watch | None = None,
) -> IntervalResult:  # fmt: skip
    """The interval of every output around the samples ``indices`` of the data, at every eps.

    ``targets`` ``(N, m)`` or ``(N,)`` and a ``tolerance``: at which eps every output stays within
    ``target ± tolerance``, and how far. Raises ``UsageError`` where they do not fit, and
    ``CannotCertify`` where the model cannot be enclosed or differs from its file.
    """
    began, watch = time.perf_counter(), watch or Watch()
    check_domain(options, dataset)
    if not len(indices):
        raise CannotCertify(f"{dataset.source}: holds no sample, so there is nothing to enclose")
    outputs = outputs_of(model)
    goal = Goal.of(targets, tolerance, len(dataset), len(outputs))
    model = with_summation(model, options, watch)
    task = Task(model, dataset, np.asarray(indices), options, Execution())
    with threads(1):
        file = DeployedFile(model.loaded, task.network)
        watch.stage("comparing the model with onnxruntime")
        difference = _compared(task, file)
        coins = Coins.of(options.seed)
        key = task.key(coins)
        watch.stage("bounding the norms that all samples share")
        encloser = Encloser(
            task.network, outputs, options, samples=len(indices), searched=goal is not None,
            reach=task.reach, key=Coins.of(options.seed).seed if key is None else key,
        )  # fmt: skip
        batches = Enclosing(task, encloser, file, goal)
        samples: list[Enclosed] = []
        for first in range(0, len(indices), _AT_ONCE):
            watch.stage(f"enclosing sample {first + 1} of {len(indices)}")
            samples += batches.enclosed([int(i) for i in indices[first : first + _AT_ONCE]])
        watch.stop()
    spent = encloser.budget.spent_shared + sum(sample.failure_probability for sample in samples)
    if exceeds(spent, 0.0 if options.deterministic else options.failure_probability):
        raise InternalError(f"the norms fail with probability {spent}; please report this")
    record = _record(
        task, samples, spent, coins, tolerance=tolerance,
        found={"outputs": len(outputs), "cross_check": difference}, began=began,
    )  # fmt: skip
    return IntervalResult(record, tuple(samples))


def _record(
    task: Task, samples: Sequence[Enclosed], spent: float, coins: Coins, *,
    tolerance: float | None, found: dict[str, Any], began: float,
) -> dict[str, Any]:  # fmt: skip
    """What is written of a run; ``found``: what else is to be said of the model."""
    options, dataset, judged = task.options, task.dataset, tolerance is not None
    return {
        "schema": SCHEMA,
        "lipcert": VERSION,
        "threat_model": threat_model(pixel_domain=options.pixel_domain, space=dataset.unit),
        "assurance": {
            "kind": "randomised" if spent else "deterministic", "failure_probability": spent,
        },
        "coins": coins.to_json() if spent else None,
        "options": options.to_json() | ({"tolerance": tolerance} if judged else {}),
        "model": task.model.to_json() | found,
        "data": {
            "source": dataset.source, "sha256": dataset.sha256, "size": len(dataset),
            "chosen": len(task.indices),
        },
        "summary": summarised(samples, options, judged=judged),
        "environment": environment("cpu", 1, 0),
        "seconds": time.perf_counter() - began,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip


def _compared(task: Task, file: DeployedFile) -> float:
    some = task.dataset.pixels(task.indices[:CROSS_CHECK_SAMPLES])
    theirs = file(some)
    with torch.no_grad():
        ours = task.network.to(dtype=torch.float64).logits(torch.from_numpy(some).double()).numpy()
    difference = float(relative_difference(ours, theirs).max())
    if not difference <= file.tolerance:
        raise CannotCertify(
            f"{task.model.name}: its outputs differ from onnxruntime's by {difference:.3g} of the "
            f"largest one, more than {file.tolerance:g}: it is not read as it is run"
        )
    return difference
