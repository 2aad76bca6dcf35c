"""The samples of a task, from the journal or computed now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import get_num_threads

from lipcert.certificate import Sample
from lipcert.certification.heads import Head
from lipcert.data import Dataset
from lipcert.errors import CannotCertify
from lipcert.run.batches import Failed, in_batches, number, usual
from lipcert.run.checks import outcome
from lipcert.run.cost import samples_told
from lipcert.run.executors import Certifying, Load, executor_for
from lipcert.run.journal import Journal
from lipcert.run.kept import KeptSamples, in_memory_where_few
from lipcert.run.memory import limited
from lipcert.run.progress import Watch
from lipcert.run.result import check_estimate, failed_sample
from lipcert.run.task import Task


def computed(
    task: Task,
    certifier: Certifying,
    workers: int,
    gpus: tuple[int, ...],
    journal: Journal,
    watch: Watch,
) -> Sequence[Sample]:
    """Those of the task's ``part``, in its order; each is in the journal once it is known. Of
    several ``gpus`` every worker has one to itself.

    Raises ``KeyboardInterrupt``, whose message tells how to go on, and ``CannotCertify`` where the
    network gives no number at any sample.
    """
    options, execution, part = task.options, task.execution, task.part
    done = journal.finished
    todo = [index for index in part if index not in done]
    resumed = KeptSamples(done, [index for index in part if index in done])
    left = len(todo)
    try:
        start = usual(options, task.network)
        few = max(1, min(workers, number(len(todo), execution.batch_size or start)))
        watch.stage(samples_told(task.network, options, len(todo), few))
        # This process is one of them, though it only waits for the others.
        memory = execution.memory_limit and execution.memory_limit // few
        executor = executor_for(
            certifier, _loading(task.dataset), workers=few, threads=get_num_threads(),
            gpus=gpus[:few], cluster=execution.cluster, memory=memory,
        )  # fmt: skip
        with watch, limited(memory if few == 1 else None), executor:
            watch.start(len(part), resumed, estimate=options.estimate)
            for found in in_batches(
                executor, todo, _failing(task), size=execution.batch_size, start=start
            ):
                check_estimate(options, found)
                # As the journal gives them back, so that a resumed run returns the very same.
                samples = [Sample.from_json(sample.to_json()) for sample in found]
                journal.add(samples)
                failures = {s.index: s for s in samples if s.verdict == "error"}
                done.update(failures)
                left -= len(samples)
                watch.advance(samples)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(journal.after_interrupt(len(part) - left, len(part))) from None
    every = KeptSamples(done, part)
    if all(sample.verdict == "error" and sample.prediction < 0 for sample in every):
        raise CannotCertify(f"every sample failed; the first with {every[0].message}")
    return in_memory_where_few(every)


def _loading(dataset: Dataset) -> Load:
    """Reads samples. Of a task, processes are sent the data alone."""

    def load(batch: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        some = np.asarray(batch)
        return dataset.pixels(some), dataset.labels[some]

    return load


def _failing(task: Task) -> Failed:
    """Makes an error of a sample, with its prediction where there is one."""
    dataset, options = task.dataset, task.options

    def failed(index: int, message: str) -> Sample:
        label = int(dataset.labels[index])
        try:
            pixels = dataset.pixels(np.asarray([index]))
            known = outcome(task.network, pixels, label, Head.of(options))
        except Exception:  # what failed may be this very pass; the message is that of the first
            return failed_sample(index, label, options, message)
        return failed_sample(index, label, options, message, *known)

    return failed
