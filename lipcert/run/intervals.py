"""A run over a network of real outputs: the interval of each of them in balls around samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipcert.bounded import DATASET_BYTES, opened
from lipcert.certificate import threat_model
from lipcert.certification.intervals import Encloser
from lipcert.coins import Coins
from lipcert.data import Dataset, Expected
from lipcert.data.arrays import to_dataset
from lipcert.data.keys import LABELS
from lipcert.data.npy import read_npy
from lipcert.data.npz import read_npz
from lipcert.errors import CannotCertify, InternalError, UsageError
from lipcert.loading import DeployedFile
from lipcert.loading.deployed_file import relative_difference
from lipcert.loading.heads import CUT
from lipcert.options import Options
from lipcert.run.checks import CROSS_CHECK_SAMPLES, check_domain
from lipcert.run.environment import environment, threads
from lipcert.run.job import Execution
from lipcert.run.model import Model
from lipcert.run.progress import Watch
from lipcert.run.task import Task
from lipcert.version import VERSION

Array = NDArray[Any]
Pairs = tuple[tuple[float, float], ...]

SCHEMA = "https://lipcert.dev/schema/intervals/1"
_AT_ONCE = 20
# Outputs whose ends are attacked and run through the file, of more an even choice.
_ATTACKED = 16


@dataclass(frozen=True)
class Enclosed:
    """One sample of a network of real outputs.

    ``value``: the outputs at the sample. ``intervals``: by eps as written, for every output what it
    is at least and at most anywhere in the ball, as deployed; infinite where nothing is proven.
    ``reached``: likewise what an attack has found, which lies inside; of some outputs where there
    are many, NaN of the others.

    With a tolerance: ``target``; ``certified``, the eps at which every output stays within the
    tolerance of it; ``radius``, the largest one found for which that is proven, 0 without any; and
    the ``verdict`` at the largest eps: ``certified``, ``falsified`` (an attack got outside),
    ``outside`` (the sample's own outputs are), ``unknown``. A sample that the deployed file
    contradicts, or whose outputs are no finite numbers, is an ``error``, with a ``message`` and no
    interval.
    """

    index: int
    value: tuple[float, ...]
    intervals: dict[str, Pairs]
    reached: dict[str, Pairs]
    failure_probability: float
    target: tuple[float, ...] | None = None
    certified: tuple[str, ...] = ()
    radius: float | None = None
    verdict: str | None = None
    message: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Fields that do not apply are left out, what is not finite is null."""
        record = {name: value for name, value in vars(self).items() if value is not None}
        found: dict[str, Any] = _finite(record)
        return found


@dataclass(frozen=True)
class IntervalResult:
    """The ``record`` of a run, as its JSON has it but for the ``samples``."""

    record: dict[str, Any]
    samples: tuple[Enclosed, ...]

    def to_json(self) -> dict[str, Any]:
        return self.record | {"samples": [sample.to_json() for sample in self.samples]}

    @property
    def failed(self) -> str | None:
        """Of samples that are errors: how many, and the first message."""
        errors = [sample for sample in self.samples if sample.verdict == "error"]
        if not errors:
            return None
        counts = f"{len(errors)} of {len(self.samples)} samples failed"
        return f"{counts}; the first, {errors[0].index}: {errors[0].message}"


def read_inputs(
    path: Path, targets: Path | None, *, image_key: str | None = None, label_key: str | None = None
) -> tuple[Array, Array | None]:
    """The inputs of a ``.npz`` or ``.npy`` file, and their targets: of the file ``targets``, or the
    array of the ``.npz`` that is called ``y``, ``targets`` or ``label_key``; None without any."""
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(f"--data {path}: give a .npz or .npy file of inputs")
    if not path.is_file():
        raise UsageError(f"--data {path}: there is no such file")
    found: Array | None = None
    if path.suffix == ".npy":
        inputs = read_npy(path)
    else:
        inputs, _ = read_npz(path, str(path), image_key=image_key, without_labels=True)
        with opened(path, str(path)) as archive:
            known = [label_key] if label_key else [n for n in LABELS if n in archive.members]
            if label_key and label_key not in archive.members:
                listed = ", ".join(archive.members)
                raise UsageError(f"--label-key {label_key}: {path} has no such array: {listed}")
            if known and targets is None:
                found = archive.read(known[0], DATASET_BYTES)
    return inputs, found if targets is None else read_npy(targets)


def dataset_of(inputs: Array, source: str, model: Model, **reading: Any) -> Dataset:
    """Inputs as data of no label."""
    reading = {"expected": Expected(tuple(model.loaded.network.in_shape[1:]), None)} | reading
    labels: Array = np.zeros(len(inputs), dtype=np.int64)
    return to_dataset("inputs", "given", inputs, labels, source=source, **reading)


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
    wanted = _targets(targets, tolerance, len(dataset), len(outputs))
    task = Task(model, dataset, np.asarray(indices), options, Execution())
    with threads(1):
        file = DeployedFile(model.loaded, task.network)
        watch.stage("comparing the model with onnxruntime")
        difference = _compared(task, file)
        coins = Coins.of(options.seed)
        key = task.key(coins)
        watch.stage("bounding the norms that all samples share")
        encloser = Encloser(
            task.network, outputs, options, samples=len(indices), searched=wanted is not None,
            reach=task.reach, key=Coins.of(options.seed).seed if key is None else key,
        )  # fmt: skip
        run = _Run(task, encloser, file, wanted, tolerance or 0.0)
        samples: list[Enclosed] = []
        for first in range(0, len(indices), _AT_ONCE):
            watch.stage(f"enclosing sample {first + 1} of {len(indices)}")
            samples += run.batch([int(index) for index in indices[first : first + _AT_ONCE]])
        watch.stop()
    spent = encloser.budget.spent_shared + sum(sample.failure_probability for sample in samples)
    if spent > options.failure_probability * (1 + 1e-6) and not options.deterministic:
        raise InternalError(f"the norms fail with probability {spent}; please report this")
    record = {
        "schema": SCHEMA,
        "lipcert": VERSION,
        "threat_model": threat_model(pixel_domain=options.pixel_domain, space=dataset.unit),
        "assurance": {
            "kind": "randomised" if spent else "deterministic", "failure_probability": spent,
        },
        "coins": coins.to_json() if spent else None,
        "options": options.to_json() | ({} if wanted is None else {"tolerance": tolerance}),
        "model": model.to_json() | {"outputs": len(outputs), "cross_check": difference},
        "data": {
            "source": dataset.source, "sha256": dataset.sha256, "size": len(dataset),
            "chosen": len(indices),
        },
        "summary": _summary(samples, options, tolerance is not None),
        "environment": environment("cpu", 1, 0),
        "seconds": time.perf_counter() - began,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    return IntervalResult(record, tuple(samples))


@dataclass(frozen=True, eq=False)
class _Run:
    task: Task
    encloser: Encloser
    file: DeployedFile
    targets: Array | None
    tolerance: float

    def batch(self, indices: list[int]) -> list[Enclosed]:
        encloser, options = self.encloser, self.task.options
        pixels = torch.from_numpy(self.task.dataset.pixels(np.asarray(indices))).double()
        samples = encloser.batch(pixels, indices)
        values = encloser.values(pixels)
        target = None
        if self.targets is not None:
            target = torch.from_numpy(self.targets[indices]).double()
        intervals: dict[str, list[Pairs]] = {}
        reached: dict[str, list[Pairs]] = {}
        certified: list[tuple[str, ...]] = [()] * len(indices)
        message: dict[int, str] = {}
        falsified = outside = [False] * len(indices)
        for number, eps in enumerate(options.eps):
            at = torch.full((len(indices),), eps.rounded_up, dtype=torch.float64)
            found = encloser.enclose(samples, at, number)
            points, seen = encloser.reached(
                pixels, eps.rounded_down, pixel_domain=options.pixel_domain, most=_ATTACKED
            )
            _check(found.lower, found.upper, seen, indices)
            for row, said in self._against(points, found.lower, found.upper).items():
                message.setdefault(row, f"at eps {eps.text} {said}")
            intervals[eps.text] = _pairs(found.lower, found.upper)
            reached[eps.text] = _pairs(seen.amin(1), seen.amax(1))
            if target is not None:
                held = (found.within(target, self.tolerance) > 0).tolist()
                certified = [
                    (*was, eps.text) if yes else was
                    for was, yes in zip(certified, held, strict=True)
                ]
                if eps == options.largest:
                    # Beyond what rounding could have done.
                    clear = self.tolerance + 2.0**-18 * seen.abs().amax((1, 2))
                    gone = (seen - target[:, None]).abs().amax(2) > clear[:, None]
                    falsified = gone.any(1).tolist()
        radius = None
        if target is not None:
            outside = (~((values - target).abs().amax(1) <= self.tolerance)).tolist()
            radius = encloser.radius(samples, target, self.tolerance).clamp(min=0).tolist()
        spent = samples.allowance.spent.tolist()
        made = []
        for row, index in enumerate(indices):
            value = values[row].tolist()
            if not all(map(math.isfinite, value)):
                message[row] = "the outputs are no finite numbers"
            one = Enclosed(
                index, tuple(value), {eps: pairs[row] for eps, pairs in intervals.items()},
                {eps: pairs[row] for eps, pairs in reached.items()}, spent[row],
            )  # fmt: skip
            if target is not None and radius is not None:
                far = max([radius[row], *(
                    eps.rounded_up for eps in options.eps if eps.text in certified[row]
                )])  # fmt: skip
                verdict = "outside" if outside[row] else "unknown"
                if options.largest.text in certified[row]:
                    verdict = "certified"
                elif falsified[row] and not outside[row]:
                    verdict = "falsified"
                listed = tuple(e.text for e in options.eps if e.rounded_up <= far)
                one = replace(
                    one, target=tuple(target[row].tolist()), certified=listed, radius=far,
                    verdict=verdict,
                )  # fmt: skip
            made.append(_failed(one, message[row]) if row in message else one)
        return made

    def _against(
        self, points: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor
    ) -> dict[int, str]:
        """By row, what the deployed file says against the intervals at these points."""
        flat = points.flatten(0, 1).numpy()
        outputs = self.file(flat).reshape(*points.shape[:2], -1)
        outputs = outputs[:, :, list(self.encloser.outputs)]
        options = self.task.options
        strict = options.deployed != "real" and (self.file.double or options.deployed != "float64")
        slack = 0.0 if strict else 2 * self.file.tolerance * np.abs(outputs).max(2, keepdims=True)
        low, high = lower.numpy()[:, None], upper.numpy()[:, None]
        wrong = ~((outputs >= low - slack) & (outputs <= high + slack))
        found = {}
        for row in np.flatnonzero(wrong.any((1, 2))).tolist():
            place, output = np.argwhere(wrong[row])[0]
            found[row] = (
                f"the deployed file gives {outputs[row, place, output]:.9g} for output {output}, "
                f"outside [{low[row, 0, output]:.9g}, {high[row, 0, output]:.9g}]; please report "
                "this"
            )
        return found


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


def _targets(given: Array | None, tolerance: float | None, size: int, outputs: int) -> Array | None:
    if tolerance is None:
        return None
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise UsageError(f"--tolerance {tolerance:g}: give a number above 0")
    if given is None:
        raise UsageError(
            "--tolerance: needs targets: an array y or targets in the .npz file, or --targets FILE"
        )
    if given.dtype.kind not in "biuf":
        raise UsageError(f"--targets: must be numbers, not {given.dtype}")
    targets = np.asarray(given, dtype=np.float64)
    targets = targets[:, None] if targets.ndim == 1 else targets
    targets = targets.reshape(len(targets), -1)
    if targets.shape != (size, outputs):
        raise UsageError(
            f"--targets: of shape {list(given.shape)} do not fit {size} samples of {outputs} "
            "outputs"
        )
    if not np.isfinite(targets).all():
        raise UsageError("--targets: hold NaN or infinite values")
    return targets


def _check(
    lower: torch.Tensor, upper: torch.Tensor, seen: torch.Tensor, indices: list[int]
) -> None:
    """Raises ``InternalError`` where an attack has left an interval."""
    out = (seen < lower[:, None]) | (seen > upper[:, None])
    if bool(out.any()):
        row = int(out.flatten(1).any(1).nonzero()[0])
        raise InternalError(
            f"sample {indices[row]}: an attack left the interval that was proven; please report "
            "this"
        )


def _pairs(low: torch.Tensor, high: torch.Tensor) -> list[Pairs]:
    both = torch.stack([low, high], 2).tolist()
    return [tuple((one, other) for one, other in sample) for sample in both]


def _failed(sample: Enclosed, message: str) -> Enclosed:
    nothing = {eps: ((-math.inf, math.inf),) * len(sample.value) for eps in sample.intervals}
    radius = None if sample.radius is None else 0.0
    return replace(
        sample, intervals=nothing, certified=(), radius=radius, verdict="error", message=message
    )


def _summary(samples: list[Enclosed], options: Options, judged: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"n": len(samples), "mean_width": {}, "unbounded": {}}
    for eps in (eps.text for eps in options.eps):
        widths = [max(high - low for low, high in one.intervals[eps]) for one in samples]
        known = [width for width in widths if math.isfinite(width)]
        made["mean_width"][eps] = math.fsum(known) / len(known) if known else None
        made["unbounded"][eps] = len(widths) - len(known)
    if judged:
        counts = {e.text: sum(e.text in one.certified for one in samples) for e in options.eps}
        made["certified_count"] = counts
        made["certified_share"] = {eps: count / len(samples) for eps, count in counts.items()}
        radii = sorted(one.radius or 0.0 for one in samples)
        made["radius"] = {
            "mean": math.fsum(radii) / len(radii), "median": float(np.median(radii)),
        }  # fmt: skip
        verdicts = [one.verdict or "unknown" for one in samples]
        made["verdicts"] = {name: verdicts.count(name) for name in sorted(set(verdicts))}
    return made


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(one) for one in value]
    return value


def rows(result: IntervalResult) -> Iterator[tuple[str, str]]:
    """What a table for people shows."""
    record, summary = result.record, result.record["summary"]
    if result.failed:
        yield "FAILED", result.failed
    for eps, width in summary["mean_width"].items():
        unbounded = summary["unbounded"][eps]
        more = f", and none for {unbounded} samples" if unbounded else ""
        shown = "none" if width is None else f"{width:.6g}"
        yield f"widest interval at eps {eps}, mean", f"{shown}{more}"
    for eps, count in summary.get("certified_count", {}).items():
        tolerance = record["options"]["tolerance"]
        yield f"certified within ± {tolerance:g} at eps {eps}", f"{count} of {summary['n']}"
    if "radius" in summary:
        radii = summary["radius"]
        yield "certified radius", f"mean {radii['mean']:.4g}, median {radii['median']:.4g}"
        told = ", ".join(f"{count} {name}" for name, count in summary["verdicts"].items())
        yield "verdicts", told
    chance = record["assurance"]["failure_probability"]
    yield "assurance", f"{record['assurance']['kind']}, failing with p ≤ {chance:.2g}"
    yield "arithmetic", f"covers the deployed {record['options']['deployed']} model"
    difference = record["model"]["cross_check"]
    yield "cross-check", f"relative difference {difference:.2g} from onnxruntime"
    yield "time", f"{record['seconds']:.1f} s"
