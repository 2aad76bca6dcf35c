"""The road from a file on disk to a certificate; the command line and the library both take it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from numpy.typing import NDArray

from lipcert.certificate import Certificate, Sample, cascade, summarise, threat_model
from lipcert.certification import Certifier, LayerNorm, with_eliminated
from lipcert.coins import Coins
from lipcert.data import Dataset, choose, only, relabelled
from lipcert.loading import CrossCheck, DeployedFile
from lipcert.network import Network
from lipcert.options import Options
from lipcert.report import json_file
from lipcert.run.checks import (
    check_counterexamples,
    check_domain,
    check_proofs,
    check_summation,
)
from lipcert.run.comparing import compared
from lipcert.run.computing import computed
from lipcert.run.cost import norms_told
from lipcert.run.devices import Devices
from lipcert.run.environment import (
    environment,
    suitable_threads,
    suitable_workers,
    threads,
)
from lipcert.run.executors import Certifying
from lipcert.run.folder import check_output, recorded_coins
from lipcert.run.job import Execution, Job
from lipcert.run.journal import Journal
from lipcert.run.model import Model, expected_by, open_model, with_summation
from lipcert.run.progress import Watch
from lipcert.run.result import RunResult, assurance
from lipcert.run.task import Indices, Task
from lipcert.run.writing import write_results
from lipcert.version import VERSION


class Certify(Certifying, Protocol):
    """What the pipeline needs of a ``Certifier``."""

    @property
    def global_failure_probability(self) -> float: ...

    def layer_norms_asked(self, samples: Iterable[Sample]) -> list[LayerNorm]: ...


class MakeCertifier(Protocol):
    def __call__(
        self,
        network: Network,
        options: Options,
        *,
        samples: int,
        shards: int,
        device: str,
        softmax: bool,
        counterexamples: dict[int, NDArray[Any]] | None,
        reach: float | None,
        key: int | None,
        file: DeployedFile,
    ) -> Certify: ...


def run_job(job: Job, watch: Watch | None = None) -> RunResult:
    """Load what the job names and certify it; writes the results where it names a folder."""
    _check_asked(job.options, job.execution)
    data, watch = job.data, watch or Watch()
    watch.stage(f"reading the data: {data.spec}, {data.split}")
    dataset = data.load(expected=expected_by(job.model))
    watch.stage(f"reading the model: {job.model.path}")
    model = open_model(job.model, job.preprocessing, image_shape=dataset.images.shape[1:])
    watch.say(f"model: {model.name}, {model.loaded.network.parameters} parameters")
    dataset = relabelled(dataset, data.labelling, model.classes)
    dataset = only(dataset, job.options.only_classes)
    indices = choose(
        dataset,
        limit=data.limit,
        indices_file=data.indices_file,
        seed=(job.options.seed or 0) if data.random else None,
    )
    watch.say(f"data: {dataset.source}, {len(indices)} of {len(dataset)} samples chosen")
    return certify_dataset(model, dataset, indices, job.options, job.execution, watch)


def certify_dataset(
    model: Model,
    dataset: Dataset,
    indices: Indices,
    options: Options,
    execution: Execution,
    watch: Watch | None = None,
    make_certifier: MakeCertifier = Certifier,
) -> RunResult:
    """Check the model on the samples, certify them, and write the results.

    A sample that fails inside has the verdict ``error``, which whoever calls must not overlook.
    Raises ``UsageError`` where model and data do not fit together; ``CannotCertify`` where a check
    fails, what is to be resumed is damaged, or the network gives no number at any sample;
    ``KeyboardInterrupt``, whose message tells how to go on, where it is interrupted.
    """
    _check_asked(options, execution)
    check_domain(options, dataset)
    began, watch = time.perf_counter(), watch or Watch()
    devices = Devices.of(execution.device)
    execution = replace(execution, device=devices.name)
    model = with_summation(model, options, watch)
    task = Task(model, dataset, indices, options, execution)
    gpus = devices.gpus
    workers = len(gpus) or suitable_workers(task.network, options, execution, len(task.part))
    with threads(execution.threads or suitable_threads(execution.device, len(gpus) or 1)):
        watch.stage("comparing the model with onnxruntime")
        check, notes = compared(task)
        difference = check.max_relative_difference
        watch.say(f"cross-check: {check.samples} samples, relative difference {difference}")
        coins = recorded_coins(execution) if options.seed is None else None
        coins = coins or Coins.of(options.seed)
        with Journal(execution, task.header(coins), task.frame) as journal:
            watch.stage(norms_told(task.network, options, "--failure-probability 0"))
            certifier = _certifier(make_certifier, task, coins, journal)
            watch.say(f"norms: failure probability {certifier.global_failure_probability:.3g}")
            watch.say(f"workers: {workers}")
            samples = computed(task, certifier, workers, gpus, journal, watch)
        certificate = _certificate(
            task, certifier, samples, check, coins,
            notes=(*_notes(options, samples), *model.loaded.notes, *_joint_notes(task), *notes),
            environment=environment(devices.name, workers, len(gpus)),
            seconds=time.perf_counter() - began,
        )  # fmt: skip
    write_results(task, certificate, samples, journal.points, watch)
    return RunResult(certificate, samples)


def _check_asked(options: Options, execution: Execution) -> None:
    """Refuse, before anything is read, what cannot be."""
    check_output(execution)
    check_counterexamples(options, execution)
    check_proofs(options, execution)
    check_summation(options, execution)
    Devices.of(execution.device)


def _certifier(make: MakeCertifier, task: Task, coins: Coins, journal: Journal) -> Certify:
    return make(
        task.network,
        task.options,
        samples=len(task.indices),
        shards=task.shards,
        device=task.execution.device,
        softmax=task.model.loaded.stripped is not None,
        counterexamples=journal.points if task.execution.save_counterexamples else None,
        reach=task.reach,
        key=task.key(coins),
        file=DeployedFile(task.model.loaded, task.network),
    )


def _certificate(
    task: Task,
    certifier: Certify,
    samples: Sequence[Sample],
    check: CrossCheck,
    coins: Coins,
    *,
    notes: tuple[str, ...],
    environment: dict[str, Any],
    seconds: float,
) -> Certificate:
    options = task.options
    sure = assurance(options, certifier.global_failure_probability, samples)
    return Certificate(
        lipcert=VERSION,
        model=task.model.to_json() | {"cross_check": _cross_check_json(check)},
        data=task.data_record,
        options=options.to_json(),
        options_digest=options.digest,
        assurance=sure,
        samples_sha256=json_file.samples_digest(samples, estimate=options.estimate),
        summary=summarise(samples, [eps.text for eps in options.eps], estimate=options.estimate),
        environment=environment,
        seconds=seconds,
        finished=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        notes=notes,
        threat_model=threat_model(pixel_domain=options.pixel_domain, space=task.dataset.unit),
        cascade=cascade(samples),
        layers=with_eliminated(certifier.layer_norms_asked(samples), samples),
        coins=None if sure.kind != "randomised" else _coins_json(coins),
    )


def _coins_json(coins: Coins) -> dict[str, Any]:
    return coins.to_json() | {"assurance": coins.assurance}


def _cross_check_json(check: CrossCheck) -> dict[str, Any]:
    return {
        "samples": check.samples,
        "max_relative_difference": check.max_relative_difference,
        "onnx2torch": check.onnx2torch,
        "onnx2torch_note": check.onnx2torch_note,
    }


def _joint_notes(task: Task) -> list[str]:
    joints = task.network.joints_told
    if not joints:
        return []
    return [
        f"no Lipschitz constant and no product of norms: the network has joints ({joints}), whose "
        "bound is the tube of auto"
    ]


# What a reader has to know of radii that were not sought.
_VERDICTS_ALONE = (
    "verdicts alone: no radius was sought beyond the eps asked for, so radii are the largest of "
    "these that hold, and no measure of how far a sample is robust"
)


def _notes(options: Options, samples: Sequence[Sample]) -> list[str]:
    notes = [json_file.ESTIMATE] if options.estimate else []
    notes += [] if options.radii else [_VERDICTS_ALONE]
    errors = [sample for sample in samples if sample.verdict == "error"]
    if errors:
        notes.append(
            f"{len(errors)} sample{'s' * (len(errors) > 1)} failed inside lipcert and have no "
            f"verdict; the first, {errors[0].index}, with {errors[0].message}"
        )
    return notes


__all__ = ["Certify", "MakeCertifier", "certify_dataset", "run_job"]
