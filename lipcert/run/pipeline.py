"""The road from a file on disk to a certificate; the command line and the library both take it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import get_num_threads

import lipcert
from lipcert.certificate import Certificate, Sample, cascade, summarise, threat_model
from lipcert.certification import Certifier, LayerNorm, joints_of, with_eliminated
from lipcert.coins import Coins
from lipcert.data import Dataset, choose, indices_digest, relabelled
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import CrossCheck, DeployedFile, cross_check
from lipcert.network import Network
from lipcert.options import Options
from lipcert.proving.recorder import record
from lipcert.proving.recorder import write as write_proofs
from lipcert.records import Frame
from lipcert.report import json_file, thumbnails
from lipcert.run.batches import in_batches, number
from lipcert.run.checks import (
    CROSS_CHECK_SAMPLES,
    PLAUSIBILITY_SAMPLES,
    check_counterexamples,
    check_domain,
    check_proofs,
    classes_of,
    implausible,
    outcome,
    predictions,
    spread,
)
from lipcert.run.environment import (
    check_device,
    environment,
    least_seconds,
    suitable_threads,
    suitable_workers,
    threads,
)
from lipcert.run.job import Execution, Job
from lipcert.run.journal import Journal, check_output, recorded_coins
from lipcert.run.model import Model, expected_by, open_model
from lipcert.run.progress import Watch
from lipcert.run.result import Result, assurance, check_estimate, failed_sample
from lipcert.run.suggestions import better, normalisation_notes
from lipcert.run.workers import Certifier as Certifying
from lipcert.run.workers import check_main, crew

Indices = NDArray[np.int64]

# Seconds from which on it is said what a run will take.
_MUCH = 120.0


class Certify(Certifying, Protocol):
    """What the pipeline needs of a ``Certifier``."""

    @property
    def global_failure_probability(self) -> float: ...

    @property
    def layer_norms(self) -> list[LayerNorm]: ...


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


def run_job(job: Job, watch: Watch | None = None) -> Result:
    """Load what the job names and certify it; writes the results where it names a folder."""
    check_output(job.execution)
    check_counterexamples(job.options, job.execution)
    check_proofs(job.options, job.execution)
    check_device(job.execution.device)
    data, watch = job.data, watch or Watch()
    watch.stage(f"reading the data: {data.spec}, {data.split}")
    dataset = data.load(expected=expected_by(job.model))
    watch.stage(f"reading the model: {job.model.path}")
    model = open_model(job.model, job.preprocessing, image_shape=dataset.images.shape[1:])
    watch.say(f"model: {model.name}, {model.loaded.network.parameters} parameters")
    dataset = relabelled(dataset, data.labelling, model.classes)
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
) -> Result:
    """Check the model on the samples, certify them, and write the results.

    A sample that fails inside has the verdict ``error``, which whoever calls must not overlook.
    Raises ``UsageError`` where model and data do not fit together; ``CannotCertify`` where a check
    fails, what is to be resumed is damaged, or the network gives no number at any sample;
    ``KeyboardInterrupt``, whose message tells how to go on, where it is interrupted.
    """
    check_main()
    check_output(execution)
    check_counterexamples(options, execution)
    check_proofs(options, execution)
    check_domain(options, dataset)
    device, began, watch = check_device(execution.device), time.perf_counter(), watch or Watch()
    notes: list[str] = list(model.loaded.notes)
    network, part = model.on_images(dataset.images.shape[1:]), _part(indices, execution)
    if network.joints:
        notes.append(
            f"no Lipschitz constant and no product of norms: the network has joints "
            f"({joints_of(network)}), whose bound is the tube of auto"
        )
    workers = suitable_workers(network, options, execution, len(part))
    with threads(execution.threads or suitable_threads(device)):
        watch.stage("comparing the model with onnxruntime")
        check = _check(model, network, dataset, indices, execution, notes)
        difference = check.max_relative_difference
        watch.say(f"cross-check: {check.samples} samples, relative difference {difference}")
        coins = recorded_coins(execution) if options.seed is None else None
        coins = coins or Coins.of(options.seed)
        header = _header(model, dataset, indices, options) | {"coins": coins.to_json()}
        with Journal(execution, header, _frame(network, dataset, indices, options)) as journal:
            watch.stage(f"bounding operator norms: {network.parameters:,} parameters")
            certifier = make_certifier(
                network,
                options,
                samples=len(indices),
                shards=execution.shard.count if execution.shard else 1,
                device=device,
                softmax=model.loaded.stripped is not None,
                counterexamples=journal.points if execution.save_counterexamples else None,
                reach=_reach(dataset, options),
                key=coins.key(
                    model=dict(model.loaded.files),
                    preprocessing=model.preprocessing.to_json(),
                    data=dataset.sha256,
                    samples=indices_digest(indices),
                    # A given seed repeats what a fresh one found.
                    options=replace(options, seed=None).digest,
                ),
                file=DeployedFile(model.loaded, network),
            )
            watch.say(f"norms: failure probability {certifier.global_failure_probability:.3g}")
            watch.say(f"workers: {workers}")
            samples = _certify(
                certifier, network, dataset, part, options, execution, workers, journal, watch
            )
        sure = assurance(options, certifier.global_failure_probability, samples)
        certificate = Certificate(
            lipcert=lipcert.__version__,
            model=model.to_json() | {"cross_check": _cross_check_json(check)},
            data=_data_json(dataset, indices, options) | {"shard": execution.part},
            options=options.to_json(),
            options_digest=options.digest,
            assurance=sure,
            samples_sha256=json_file.samples_digest(samples, estimate=options.estimate),
            summary=summarise(
                samples, [eps.text for eps in options.eps], estimate=options.estimate
            ),
            environment=environment(device, workers),
            seconds=time.perf_counter() - began,
            finished=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            notes=(*_notes(options, samples), *notes),
            threat_model=threat_model(pixel_domain=options.pixel_domain, space=dataset.unit),
            cascade=cascade(samples),
            layers=with_eliminated(certifier.layer_norms, samples),
            coins=None if sure.kind != "randomised" else _coins_json(coins),
        )
    if execution.output is not None:
        suffix = json_file.suffix(execution.part)
        if execution.save_counterexamples:
            falsified = [sample.index for sample in samples if sample.verdict == "falsified"]
            points = {index: journal.points[index] for index in falsified}
            shape = dataset.pixels(indices[:1]).shape[1:]
            found = classes_of(network, list(points.values()))
            thumbnails.write_counterexamples(
                execution.output,
                points,
                shape,
                dict(zip(points, found, strict=True)),
                suffix=suffix,
            )
        json_file.write(execution.output, certificate, samples)
        thumbnails.write(execution.output, samples, dataset.pixels, suffix=suffix)
        if execution.save_proofs:
            _save_proofs(model, dataset, certificate, samples, options, execution, watch)
    return Result(certificate, tuple(samples))


def _save_proofs(
    model: Model, dataset: Dataset, certificate: Certificate, samples: Sequence[Sample],
    options: Options, execution: Execution, watch: Watch,
) -> None:  # fmt: skip
    """Written last: where they are, so is the certificate that they are of."""
    assert execution.output is not None
    with threads(execution.threads or 1):
        found = record(
            model.loaded.runtime_bytes, certificate.model, samples, options, dataset.pixels,
            tuple(dataset.images.shape[1:]),
        )  # fmt: skip
    path = json_file.proofs_path(execution.output, execution.part)
    if found.arrays is None:
        path.unlink(missing_ok=True)
        watch.say(f"proofs: none, as the checker does not know {found.reason}")
        return
    write_proofs(found.arrays, path)
    left = f"; none for {', '.join(map(str, found.unproven))}" if found.unproven else ""
    watch.say(f"proofs: {found.claimed - len(found.unproven)} of {found.claimed} claims{left}")


def _check(
    model: Model,
    network: Network,
    dataset: Dataset,
    indices: Indices,
    execution: Execution,
    notes: list[str],
) -> CrossCheck:
    largest = int(dataset.labels.max())
    if largest >= network.classes:
        raise UsageError(
            f"{model.name}: has {network.classes} outputs, but {dataset.source} has labels up to "
            f"{largest}; give the data that the model was trained for, or say which class each "
            "label is with --label-offset or --label-map"
        )
    check = cross_check(model.loaded, network, dataset.pixels(spread(indices, CROSS_CHECK_SAMPLES)))
    some = spread(indices, PLAUSIBILITY_SAMPLES)
    predicted = predictions(network, dataset, some, device=execution.device)
    doubt = implausible(predicted, dataset.labels[some], network.classes)
    remedy = better(model, dataset, some, device=execution.device)
    if doubt and not execution.allow_implausible:
        remedy = remedy or (
            "the preprocessing is probably wrong; check --mean, --std, --layout, --range and that "
            "the data fits"
        )
        raise CannotCertify(f"{model.name}: {doubt}: {remedy}, or go on with --allow-implausible")
    if doubt:
        notes.append(f"implausible clean accuracy, allowed: {doubt}")
    notes += [*dataset.notes, *normalisation_notes(model, dataset)]
    if remedy:
        notes.append(remedy)
    return check


def _certify(
    certifier: Certify,
    network: Network,
    dataset: Dataset,
    indices: list[int],
    options: Options,
    execution: Execution,
    workers: int,
    journal: Journal,
    watch: Watch,
) -> list[Sample]:
    """The samples of ``indices``, in that order, from the journal or computed now."""
    wanted = set(indices)
    done = {index: sample for index, sample in journal.finished.items() if index in wanted}
    todo = [index for index in indices if index not in done]

    def load(batch: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        some = np.asarray(batch)
        return dataset.pixels(some), dataset.labels[some]

    def failed(index: int, message: str) -> Sample:
        label = int(dataset.labels[index])
        try:
            known = outcome(network, dataset.pixels(np.asarray([index])))
        except Exception:  # what failed may be this very pass; the message is that of the first
            return failed_sample(index, label, options, message)
        return failed_sample(index, label, options, message, *known)

    try:
        few = max(1, min(workers, number(len(todo), execution.batch_size)))
        watch.stage(_told(network, options, len(todo), few))
        with watch, crew(certifier, load, workers=few, threads=get_num_threads()) as all_of_them:
            watch.start(len(indices), list(done.values()), estimate=options.estimate)
            for computed in in_batches(all_of_them, todo, failed, size=execution.batch_size):
                check_estimate(options, computed)
                # As the journal gives them back, so that a resumed run returns the very same.
                samples = [Sample.from_json(sample.to_json()) for sample in computed]
                journal.add(samples)
                done.update({sample.index: sample for sample in samples})
                watch.advance(samples)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(journal.after_interrupt(len(done), len(indices))) from None
    samples = [done[index] for index in indices]
    if all(sample.verdict == "error" and sample.prediction < 0 for sample in samples):
        raise CannotCertify(f"every sample failed; the first with {samples[0].message}")
    return samples


def _told(network: Network, options: Options, samples: int, workers: int) -> str:
    """What is about to be done; where that is much, what it takes at the least, and what less."""
    text = f"certifying {samples} samples, eps {', '.join(eps.text for eps in options.eps)}"
    if workers > 1:
        text += f", in {workers} processes"
    seconds = least_seconds(network, options, samples)
    if options.method != "auto" or seconds < _MUCH:
        return text
    fewer = "--limit" if options.effort == "fast" else "--effort fast or --limit"
    return f"{text}: {seconds / 60:.0f} min of processor time or more; less with {fewer}"


def _part(indices: Indices, execution: Execution) -> list[int]:
    shard = execution.shard
    part = indices if shard is None else indices[shard.number - 1 :: shard.count]
    if len(part) == 0:
        raise UsageError(f"--shard {shard}: only {len(indices)} samples; use fewer shards")
    return [int(index) for index in part]


def _header(model: Model, dataset: Dataset, indices: Indices, options: Options) -> dict[str, Any]:
    """What every number of a journal depends on."""
    return {
        "lipcert": lipcert.__version__,
        "options": options.digest,
        # For the words of a refusal; what counts is the digest.
        "settings": options.to_json() | {"eps": sorted(eps.text for eps in options.eps)},
        # The digest is the same for 0.1 and 0.10, but samples name the radii as written.
        "eps": sorted(eps.text for eps in options.eps),
        "model": dict(model.loaded.files),
        "preprocessing": model.preprocessing.to_json(),
        "data": dataset.sha256,
        "samples": indices_digest(indices),
    }


def _frame(network: Network, dataset: Dataset, indices: Indices, options: Options) -> Frame:
    """What samples that are resumed are held against."""
    return Frame(
        options=options,
        outputs=network.classes,
        classes=dataset.classes,
        size=len(dataset),
        values=math.prod(dataset.images.shape[1:]),
        reach=_reach(dataset, options),
        labels={int(index): int(dataset.labels[index]) for index in indices},
    )


def _coins_json(coins: Coins) -> dict[str, Any]:
    return coins.to_json() | {"assurance": coins.assurance}


def _reach(dataset: Dataset, options: Options) -> float | None:
    """Of data in their own unit, how far radii are sought: as far as two of them can be apart, and
    some way beyond every eps."""
    if dataset.reach is None:
        return None
    return min(max(dataset.reach, 2 * options.largest.rounded_up), sys.float_info.max)


def _data_json(dataset: Dataset, indices: Indices, options: Options) -> dict[str, Any]:
    reach = _reach(dataset, options)
    return {
        "name": dataset.name,
        "split": dataset.split,
        "source": dataset.source,
        "sha256": dataset.sha256,
        "size": len(dataset),
        "classes": dataset.classes,
        "chosen": len(indices),
        "indices_sha256": indices_digest(indices),
        **({} if reach is None else {"reach": reach}),
        **({"class_names": list(dataset.names)} if dataset.names else {}),
        **({"reading": dict(dataset.reading)} if dataset.reading else {}),
    }


def _cross_check_json(check: CrossCheck) -> dict[str, Any]:
    return {
        "samples": check.samples,
        "max_relative_difference": check.max_relative_difference,
        "onnx2torch": check.onnx2torch,
        "onnx2torch_note": check.onnx2torch_note,
    }


def _notes(options: Options, samples: Sequence[Sample]) -> list[str]:
    notes = [json_file.ESTIMATE] if options.estimate else []
    errors = [sample for sample in samples if sample.verdict == "error"]
    if errors:
        notes.append(
            f"{len(errors)} sample{'s' * (len(errors) > 1)} failed inside lipcert and have no "
            f"verdict; the first, {errors[0].index}, with {errors[0].message}"
        )
    return notes


__all__ = ["Certify", "MakeCertifier", "certify_dataset", "run_job"]
