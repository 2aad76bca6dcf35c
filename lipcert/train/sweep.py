"""The trade-off of clean and certified accuracy: one training for each of a few κ, one table.

κ is the weight of the clean loss after the ramp. Each training has a folder of its own in the
folder of the sweep, and is one like any other; ``sweep.json`` is written after every one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lipcert.errors import UsageError
from lipcert.run.progress import Watch
from lipcert.train import checkpoint
from lipcert.train.finetune import finetune
from lipcert.train.job import FineTuning
from lipcert.train.losses import WITH_KAPPA, LossName
from lipcert.train.presets import Wanted
from lipcert.train.watch import TrainingWatch

FILE = "sweep.json"
# What is taken where no loss is named: of those with κ the plainest.
_LOSS: LossName = "bcp"
_RESULTS = ("n", "clean", "attack_survived", "certified", "mean_radius", "errors")

Point = dict[str, Any]
Record = dict[str, Any]


def parse(text: str) -> tuple[float, ...]:
    """``0,0.25,0.5``: shares, each once. Raises ``UsageError``."""
    try:
        kappas = tuple(float(part) for part in text.split(","))
    except ValueError:
        kappas = ()
    if not kappas or len(set(kappas)) < len(kappas) or not all(0 <= k <= 1 for k in kappas):
        raise UsageError(
            f"--sweep {text!r}: give the weights of the clean loss, each once and from 0 to 1, "
            "such as 0,0.25,0.5"
        )
    return kappas


def with_kappa(wanted: Wanted) -> Wanted:
    """With a loss that has κ. Raises ``UsageError`` where another loss, or one κ, was asked for."""
    given = wanted.given
    if given.get("kappa") is not None:
        raise UsageError(f"--kappa {given['kappa']}: goes without --sweep, which gives every one")
    loss = given.get("loss") or _LOSS
    if loss not in WITH_KAPPA:
        raise UsageError(
            f"--sweep: the loss {loss} has no κ; give --loss {', '.join(sorted(WITH_KAPPA))}"
        )
    return replace(wanted, given={**given, "loss": loss})


def sweep(
    job: FineTuning, kappas: Sequence[float], watch: TrainingWatch, certify_watch: Watch
) -> Record:
    """One training for each κ; the record that ``sweep.json`` holds.

    Raises what ``finetune`` does; the points that were found before are kept.
    """
    assert isinstance(job.recipe, Wanted)
    wanted, points, record = with_kappa(job.recipe), [], {}
    for number, kappa in enumerate(kappas):
        folder = job.folder / f"kappa-{kappa:g}"
        begun = (folder / checkpoint.FILE).is_file()
        one = replace(
            job,
            recipe=replace(wanted, given={**wanted.given, "kappa": kappa}),
            execution=replace(job.execution, output=folder, resume=job.execution.resume and begun),
            compare=job.compare and number == 0,
        )
        watch.say(f"κ {kappa:g}: training {number + 1} of {len(kappas)}, in {folder}")
        done = finetune(one, watch, certify_watch)
        if done:
            points.append(_point(kappa, folder.name, done))
            record = {"eps": wanted.eps.text, "points": points}
            text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            checkpoint.write_bytes(job.folder / FILE, text.encode())
    return record


def _point(kappa: float, folder: str, done: Record) -> Point:
    """The figures of the tuned file; what the validation said of it, where it was not certified."""
    point: Point = {"kappa": kappa, "folder": folder, "validation": done["validation"]}
    after = done.get("results", {}).get("after")
    if after is not None:
        point |= {name: after[name] for name in _RESULTS}
    return point
