"""An audit from end to end: files, digests, a subset of the samples, and each of them in turn."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lipcert import bounded
from lipcert.audit.auditor import Auditor, Effort
from lipcert.audit.claims import Claims, Contradiction, Record, read
from lipcert.audit.progress import AuditWatch
from lipcert.audit.provenance import Sources, find_data, find_model, pixels
from lipcert.audit.reach import LONG
from lipcert.audit.report import Audit, Audited, ReplayedProofs
from lipcert.audit.summation import check_summation
from lipcert.data import Dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.version import VERSION

Array = NDArray[Any]

# Samples on which the own reading is compared with onnxruntime before it is used.
_COMPARED = 8
# And whose images are held at once for proofs.
_REPLAYED = 256


def audit(
    path: Path,
    *,
    sources: Sources | None = None,
    samples: int | Literal["all"] = 20,
    seed: int = 0,
    effort: Effort | None = None,
    watch: AuditWatch | None = None,
    proofs: bool = False,
) -> Audit:
    """Audit a ``certificate.json``, or the one in a folder.

    ``proofs``: replay the ``proofs.npz`` beside it, in place of the auditor's own bound.
    ``samples``: how many, drawn at random by ``seed``, on which the attacks depend as well. What
    the files say of themselves is checked for every sample. Raises ``UsageError`` where something
    is not found, ``CannotCertify`` where it is damaged or not what was certified; a contradiction
    raises nothing, it is part of the result.
    """
    began = time.perf_counter()
    watch, sources = watch or AuditWatch(), sources or Sources()
    watch.stage(f"reading the certificate {path}, its data and its model")
    claims = read(path)
    dataset = find_data(claims, sources)
    found = _labels(claims, dataset)
    shape = tuple(dataset.images.shape[1:])
    model = find_model(claims, sources, shape)
    check_summation(claims, model)
    chosen, saved = _chosen(claims, samples, seed), _saved(claims, shape)
    proofs_file = _proofs(claims) if proofs else None
    with _one_thread():
        watch.stage("reading the model a second time, and bounding its norms")
        auditor = Auditor(claims, model, shape, effort or Effort(), proofs_file)
        auditor.model.check_reading(_images(dataset, chosen[:_COMPARED]))
        watch.stage(f"auditing {len(chosen)} of {len(claims.samples)} samples")
        audited = _audited(auditor, dataset, chosen, seed, saved, watch)
    return Audit(
        lipcert=VERSION,
        files=dict(claims.digests) | dict(claims.certificate["model"]["files"]),
        model=claims.certificate["model"]["name"],
        data=f"{dataset.name} {dataset.split}",
        seed=seed,
        of=len(claims.samples),
        reading=auditor.model.reading,
        bound=auditor.model.bound,
        proofs=_replayed(proofs_file, auditor),
        precision=f"{np.finfo(LONG).nmant + 1} bits",
        files_contradict=found,
        samples=audited,
        seconds=time.perf_counter() - began,
        unit=claims.certificate["threat_model"]["space"],
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _images(dataset: Dataset, samples: list[Record]) -> Array:
    return np.stack([pixels(dataset, sample["index"]) for sample in samples])


def _audited(
    auditor: Auditor, dataset: Dataset, chosen: list[Record], seed: int, saved: dict[int, Array],
    watch: AuditWatch,
) -> tuple[Audited, ...]:  # fmt: skip
    """What is found of every sample, in their order; proofs are replayed first, many at once."""
    watch.start(len(chosen))
    for few in (chosen[k : k + _REPLAYED] for k in range(0, len(chosen), _REPLAYED)):
        auditor.replay(few, _images(dataset, few))
    audited = []
    for sample in chosen:
        index = sample["index"]
        image = pixels(dataset, index)
        audited.append(auditor(sample, image, seed + index, saved.get(index)))
        watch.advance(audited[-1])
    return tuple(audited)


def _labels(claims: Claims, dataset: Dataset) -> tuple[Contradiction, ...]:
    """Where labels are not those of the data."""
    size = claims.certificate["data"]["size"]
    if size != len(dataset):
        said = f"{claims.path}: is about {size} samples, the data have {len(dataset)}"
        raise CannotCertify(f"{said}; name the right data with --data")
    return tuple(
        Contradiction(
            f"has the label {sample['label']}, in the data {dataset.labels[sample['index']]}",
            sample["index"],
        )
        for sample in claims.samples
        if dataset.labels[sample["index"]] != sample["label"]
    )


def _chosen(claims: Claims, samples: int | Literal["all"], seed: int) -> list[Record]:
    """The samples to audit, in the order of the certificate."""
    there = claims.samples
    if samples == "all" or samples >= len(there):
        return list(there)
    if samples < 1:
        raise UsageError(f"--samples {samples}: give a whole number of at least 1, or all")
    drawn = np.random.default_rng(seed).choice(len(there), size=samples, replace=False)
    return [there[int(k)] for k in sorted(drawn)]


def _proofs(claims: Claims) -> Path:
    path = claims.path.with_name(f"proofs{claims.suffix}.npz")
    if not path.is_file():
        raise UsageError(
            f"--proofs: {path} is not there; certify with --save-proofs, which says where a "
            "network has none, or leave --proofs out"
        )
    return path


def _replayed(path: Path | None, auditor: Auditor) -> ReplayedProofs | None:
    if path is None:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ReplayedProofs(path.name, digest, auditor.risk)


def _saved(claims: Claims, shape: tuple[int, ...]) -> dict[int, Array]:
    points = claims.path.with_name(f"counterexamples{claims.suffix}.npz")
    return saved_points(points, len(claims.samples), shape)


def saved_points(path: Path, count: int, shape: tuple[int, ...]) -> dict[int, Array]:
    """The points that an attack found, by sample, from a ``counterexamples.npz``; none where there
    is no such file. Whole bytes are pictures, not points.

    They take no more than ``count`` samples, each of the ``shape`` of an image; ``CannotCertify``
    where they would.
    """
    if not path.is_file():
        return {}
    with bounded.opened(path, str(path), "; remove it or certify again") as archive:
        image = archive.header("image")
        if image.dtype.kind != "f":
            return {}
        most = count * math.prod(shape) * image.dtype.itemsize
        index = archive.read("index", count * np.dtype(np.int64).itemsize)
        points = archive.read("image", most)
        return {int(i): one for i, one in zip(index, points, strict=True)}
