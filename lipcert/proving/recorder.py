"""From the samples of a run to ``proofs.npz``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.deployed import Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.operators import NotRead
from lipcert.audit.proofs.check import RISK
from lipcert.audit.proofs.format import SLOPE_LEAST, SLOPE_STEP, VERSION, Arrays, expected
from lipcert.audit.proofs.graph import Graph
from lipcert.audit.proofs.norms import Coins
from lipcert.audit.proofs.replay import FormSource, Hints, Network, Replay
from lipcert.certificate import Sample
from lipcert.errors import UsageError
from lipcert.options import Options
from lipcert.proving.hints import Proof
from lipcert.proving.prover import Prover

Pixels = Callable[[NDArray[np.int64]], NDArray[Any]]
# A sample's index, the radius, and its proof.
Kept = tuple[int, float, Proof]

# Samples, and numbers of all their margins' forms, at once.
_AT_ONCE, _NUMBERS = 16, 2**21
# The risk that norms fail with is no smaller in a check of so many.
_NORMS = 10**6


@dataclass(frozen=True)
class Recorded:
    """``arrays`` of the proofs found; ``proven`` of the ``claimed`` samples; ``reason``: why the
    network has none at all."""

    arrays: Arrays | None
    claimed: int
    unproven: tuple[int, ...]
    reason: str | None = None


def claimed_eps(sample: Sample, options: Options) -> float | None:
    """The radius that a proof is for: the largest eps certified, else the radius; None without."""
    certified = [eps for eps in options.eps if eps.text in sample.certified]
    if certified:
        return max(certified, key=lambda eps: eps.value).rounded_up
    return sample.radius or None


def record(
    content: bytes, model: dict[str, Any], samples: Sequence[Sample], options: Options,
    pixels: Pixels, image_shape: tuple[int, ...],
) -> Recorded:  # fmt: skip
    """Proofs of what ``samples`` claim. ``content``: the ONNX file that is certified; ``model``:
    the record of it in the certificate."""
    claims = [(s, eps) for s in samples if (eps := claimed_eps(s, options)) is not None]
    if model["stripped"] == "Sigmoid":
        every = tuple(sample.index for sample, _ in claims)
        return Recorded(None, len(claims), every, "a Sigmoid at the end that was left out")
    softmax = model["stripped"] is not None
    try:
        front = Preprocessing.of(model, image_shape)
        reading = Interpreter(onnx.load_from_string(content), front.shape, softmax=softmax)
        network = Network(Graph(reading, front))
    except NotRead as missing:
        return Recorded(None, len(claims), tuple(s.index for s, _ in claims), str(missing))
    # What a tube proves of a deep network boxes and balls layer by layer never do.
    sought = [(sample, eps) for sample, eps in claims if sample.method != "tube"]
    if not sought:
        every = tuple(sample.index for sample, _ in claims)
        return Recorded(packed(network, []), len(claims), every)
    arithmetic = Arithmetic.of(options.deployed, reading.inside, reading.leaves)
    replay = Replay(
        network, arithmetic, Coins(RISK, _NORMS), pixel_domain=options.pixel_domain, softmax=softmax
    )
    prover = Prover(replay)
    kept: list[Kept] = []
    classes = network.graph.widths[network.graph.output]
    each = max(1, min(_AT_ONCE, _NUMBERS // (classes * (network.sizes.neurons + 1))))
    for first in range(0, len(sought), each):
        some = sought[first : first + each]
        index = np.array([sample.index for sample, _ in some])
        x = torch.from_numpy(pixels(index).reshape(len(some), -1).astype(np.float64))
        labels = torch.tensor([sample.label for sample, _ in some])
        # No two images are further apart than the diagonal of the cube.
        radii = torch.tensor([radius for _, radius in some], dtype=torch.float64)
        radii = radii.clamp(max=math.sqrt(x.shape[1]))
        found = zip(some, radii.tolist(), prover(x, labels, radii), strict=True)
        new = [(s.index, radius, proof) for (s, _), radius, proof in found if proof is not None]
        held = _replayed(replay, new, x[np.isin(index, [i for i, *_ in new])],
                         labels[np.isin(index, [i for i, *_ in new])])  # fmt: skip
        kept += [one for one, holds in zip(new, held, strict=True) if holds]
    proven = {index for index, *_ in kept}
    left = tuple(sample.index for sample, _ in claims if sample.index not in proven)
    return Recorded(packed(network, kept), len(claims), left)


@torch.no_grad()
def _replayed(replay: Replay, kept: Sequence[Kept], x: Tensor, labels: Tensor) -> list[bool]:
    """Whether what would be written of each proves it, with coins of its own."""
    if not kept:
        return []
    arrays = packed(replay.network, kept)
    rows = np.arange(len(kept))
    source = FormSource(replay.network, arrays, rows)
    state = replay.state(x, torch.from_numpy(arrays.eps), Hints.of(arrays, rows), source.of_box)
    held: list[bool] = (replay.margins(state, labels, source).amin(1) > 0).tolist()
    return held


def write(arrays: Arrays, path: Path) -> None:
    """Whole or not at all. Raises ``UsageError`` where the file cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, version=np.int64(VERSION), **vars(arrays))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def packed(network: Network, kept: Sequence[Kept]) -> Arrays:
    sizes = network.sizes
    columns: dict[str, list[Any]] = {name: [] for name in expected(sizes) if name != "version"}
    for row, (index, eps, proof) in enumerate(kept):
        columns["index"].append(index)
        columns["eps"].append(eps)
        for name in ("edge_scale", "chain_scale", "chain_weight"):
            columns[name].append(getattr(proof, name).numpy())
        for form in proof.forms:
            columns["form_sample"].append(row)
            for name in ("bend", "place", "sign", "rule", "multiplier"):
                columns[f"form_{name}"].append(getattr(form, name))
            columns["form_cuts"].append(len(form.cuts))
            for neuron, place, above in form.cuts:
                columns["cut_neuron"].append(neuron)
                columns["cut_place"].append(place)
                columns["cut_above"].append(above)
            columns["form_slopes"].append(-1 if form.slopes is None else len(columns["slopes"]))
            if form.slopes is not None:
                columns["slopes"].append(_bytes(network, proof, form.slopes))
    arrays = {}
    for name, (dtype, shape) in expected(sizes).items():
        if name in columns:
            made: NDArray[Any] = np.asarray(columns[name], dtype=dtype)
            arrays[name] = made.reshape(len(columns[name]), *shape[1:])
    return Arrays(**arrays)


def _bytes(network: Network, proof: Proof, slopes: dict[int, Tensor]) -> NDArray[np.uint8]:
    """Slopes of all neurons, 0 where nothing varies: then they need no room in the file."""
    whole = torch.cat([slopes[v] * proof.masks[v] for v in network.graph.bends])
    return ((whole.numpy() - SLOPE_LEAST) * SLOPE_STEP).round().astype(np.uint8)
