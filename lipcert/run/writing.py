"""What a run leaves in its folder beside the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from lipcert.certificate import Certificate, Sample
from lipcert.certification.heads import Head
from lipcert.proving.recorder import record
from lipcert.proving.recorder import write as write_proofs
from lipcert.report import json_file, thumbnails
from lipcert.run.checks import classes_of
from lipcert.run.environment import threads
from lipcert.run.progress import Watch
from lipcert.run.task import Task


def write_results(
    task: Task,
    certificate: Certificate,
    samples: Sequence[Sample],
    points: Mapping[int, NDArray[Any]],
    watch: Watch,
) -> None:
    """Certificate and samples, pictures of some of them, and what else was asked for, where the
    task names a folder; ``points`` falsify samples."""
    execution = task.execution
    if execution.output is None:
        return
    suffix = json_file.suffix(execution.part)
    if execution.save_counterexamples:
        falsified = [sample.index for sample in samples if sample.verdict == "falsified"]
        found = {index: points[index] for index in falsified}
        head = Head.of(task.options)
        classes = classes_of(task.network, list(found.values()), head)
        thumbnails.write_counterexamples(
            execution.output,
            found,
            task.dataset.pixels(task.indices[:1]).shape[1:],
            dict(zip(found, classes, strict=True)),
            suffix=suffix,
        )
    json_file.write(execution.output, certificate, samples)
    thumbnails.write(execution.output, samples, task.dataset.pixels, suffix=suffix)
    if execution.save_proofs:
        # Last: where they are, so is the certificate that they are of.
        _save_proofs(task, certificate, samples, watch)


def _save_proofs(
    task: Task, certificate: Certificate, samples: Sequence[Sample], watch: Watch
) -> None:
    execution, dataset = task.execution, task.dataset
    assert execution.output is not None
    with threads(execution.threads or 1):
        found = record(
            task.model.loaded.runtime_bytes, certificate.model, samples, task.options,
            dataset.pixels, tuple(dataset.images.shape[1:]),
        )  # fmt: skip
    path = json_file.proofs_path(execution.output, execution.part)
    if found.arrays is None:
        path.unlink(missing_ok=True)
        watch.tell(f"proofs: none, as the checker does not know {found.reason}")
        return
    write_proofs(found.arrays, path)
    left = f"; none for {', '.join(map(str, found.unproven))}" if found.unproven else ""
    watch.tell(f"proofs: {found.claimed - len(found.unproven)} of {found.claimed} claims{left}")
