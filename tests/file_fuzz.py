"""Random ONNX files certified in every way, then attacked in onnxruntime at two levels.

What must not happen: a point inside a certified radius that the file classifies otherwise, a tie or
no number there, an internal error, an error of any kind but a refusal.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assault import assault
from fuzz import Evaluate, samples_of
from laws import pick, seeded, uniform
from onnx_graphs import Graph, graph, session
from threats import radii
from torch import Generator, Tensor

from lipcert.certification import Certifier
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import DeployedFile, cross_check
from lipcert.network import Network
from lipcert.options import Epsilon, Options
from lipcert.run import ModelSource, Preprocessing, open_model
from lipcert.run.model import Model

METHODS = (("global", "fast"), ("local", "fast"), ("auto", "fast"), ("auto", "standard"))
_EPS = ("1e-4", "0.02")
# What a runtime may round in a type that a claim does not cover, relative to the largest logit.
_OUTSIDE = {False: 2e-4, True: 2e-9}


@dataclass
class Tally:
    """What became of every file and every certificate."""

    files: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    traps: Counter[str] = field(default_factory=Counter)
    certificates: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return "".join(f"\n    {count:6} {name}" for name, count in counts.most_common())

        return (
            f"\n{self.files} files, {self.refused.total()} refused; "
            f"{self.certificates.total()} certificates attacked, {len(self.broken)} broken\n"
            f"  refused:{listed(self.refused)}\n"
            f"  certified, of files with:{listed(self.traps)}\n"
            f"  certificates by options, of all correct samples:"
            + "".join(
                f"\n    {self.certificates[name]:6} of {tried:6} {name}"
                for name, tried in sorted(self.tried.items())
            )
            + "".join(f"\n  BROKEN {line}" for line in self.broken)
        )


def fuzz(
    seed: int, folder: Path, tally: Tally, *, samples: int = 8,
    methods: Sequence[tuple[str, str]] = METHODS,
) -> None:  # fmt: skip
    """One file: read, checked, certified by every method under options drawn for it, attacked."""
    made, generator = graph(seed), seeded(seed)
    path = folder / "model.onnx"
    path.write_bytes(made.model.SerializeToString())
    tally.files += 1
    try:
        model = open_model(ModelSource(path), _preprocessing(made, generator))
        network = model.on_images(made.shape)
        x, labels = samples_of(network, generator, samples)
        cross_check(model.loaded, network, x[:, 0].numpy())
    except (CannotCertify, UsageError) as refusal:
        tally.refused[reason(str(refusal))] += 1
        return
    file = DeployedFile(model.loaded, network)
    # Labels as the file has them: of samples that it takes for another class nothing is certified.
    evaluations = _evaluations(made, model, network)
    for method, effort in methods:
        options = Options(
            tuple(map(Epsilon.parse, _EPS)), method=method, effort=effort,  # type: ignore[arg-type]
            norms=pick(["randomised", "deterministic"], generator),
            deployed=pick(["float32", "float32", "float64", "real"], generator),
            pixel_domain=pick([False, False, True], generator), seed=seed,
        )  # fmt: skip
        name = f"{method} {effort}, {options.norms}, {options.deployed}"
        where = f"seed {seed}, {name}{', images' if options.pixel_domain else ''}"
        try:
            certifier = Certifier(
                network, options, samples=samples, file=file,
                softmax=model.loaded.stripped is not None,
            )  # fmt: skip
            found = certifier(x[:, 0], labels, range(samples))
        except CannotCertify as refusal:
            tally.tried[name] += 0
            tally.refused[f"{method}: {reason(str(refusal))}"] += 1
            continue
        except Exception as error:
            # An internal error is a break, and anything else that is no refusal.
            at = traceback.extract_tb(error.__traceback__)[-1]
            kind = type(error).__name__
            tally.broken.append(f"{where}: {kind} at {at.filename}:{at.lineno}: {error}")
            continue
        tally.broken += [
            f"{where}: sample {sample.index}: {sample.message}"
            for sample in found if sample.verdict == "error"
        ]  # fmt: skip
        tally.tried[name] += sum(sample.correct for sample in found)
        radius = radii(found)
        rows = (radius > 0).nonzero().flatten()
        if not len(rows):
            continue
        tally.certificates[name] += len(rows)
        for trap in made.traps or {"no trap"}:
            tally.traps[trap] += len(rows)
        for line in _attacked(
            options, network, evaluations, model, x[rows], labels[rows], radius[rows], generator
        ):
            tally.broken.append(f"{where}: sample {line}")


def _attacked(
    options: Options, network: Network, evaluations: dict[str, Evaluate], model: Model, x: Tensor,
    labels: Tensor, radius: Tensor, generator: Generator,
) -> list[str]:  # fmt: skip
    """One line for every certificate that breaks."""
    double = model.loaded.double
    covered = options.deployed == "float32" or (options.deployed == "float64" and double)
    outcome = assault(
        network, evaluations, x, labels, radius, generator, steps=5, restarts=2,
        dtype=torch.float32 if options.deployed == "float32" else torch.float64,
        pixel_domain=options.pixel_domain, tolerance=0.0 if covered else _OUTSIDE[double],
    )  # fmt: skip
    distance = (outcome.points - x).flatten(1).norm(dim=1)
    return [
        f"of class {int(labels[row])}: radius {float(radius[row]):.6g}, relative margin "
        f"{float(outcome.margin[row]):.3g} at {float(distance[row]):.6g}"
        for row in outcome.broken.nonzero().flatten().tolist()
    ]


def _evaluations(made: Graph, model: Model, network: Network) -> dict[str, Evaluate]:
    """onnxruntime at two levels, all points at once where the file takes them so, and apart."""
    front = DeployedFile(model.loaded, network)

    def by(optimised: bool, together: bool) -> Evaluate:
        runtime = session(made.model, optimised=optimised)

        def evaluate(points: Tensor) -> Tensor:
            samples = front.inputs(points[:, 0].numpy())
            parts = [samples.reshape(-1, *samples.shape[2:])] if together else samples
            results = [
                runtime.run([model.loaded.output_name], {model.loaded.input_name: part})[0]
                for part in parts
            ]
            flat = [np.asarray(result, np.float64).reshape(-1) for result in results]
            return torch.from_numpy(np.concatenate(flat).reshape(len(points), -1))

        return evaluate

    return {
        f"{'all' if optimised else 'no'} optimisations, {'together' if together else 'apart'}":
            by(optimised, together)
        for optimised in (False, True) for together in (True, False)
    }  # fmt: skip


def _preprocessing(made: Graph, generator: Generator) -> Preprocessing:
    """Mostly none."""
    if float(uniform((), generator)) < 0.8:
        return Preprocessing()
    return Preprocessing(
        mean=(float(uniform((), generator)),), std=(0.1 + float(uniform((), generator)),)
    )


def reason(refusal: str) -> str:
    """The kind of a refusal: its first obstacle, without names and numbers."""
    lines = refusal.splitlines()
    text = lines[1].strip() if len(lines) > 1 else lines[0].removeprefix("model.onnx: ")
    text = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|'[^']*'", "…", text)
    text = re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", text)
    return text[:110]


__all__: list[Any] = ["METHODS", "Tally", "fuzz", "reason"]
