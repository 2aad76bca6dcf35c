"""From the samples of a run to ``proofs.npz``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.audit.deployed import Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.operators import NotRead
from lipcert.audit.proofs.check import RISK
from lipcert.audit.proofs.format import SLOPE_LEAST, SLOPE_STEP, STORED, Arrays
from lipcert.audit.proofs.graph import Graph
from lipcert.audit.proofs.norms import Coins
from lipcert.audit.proofs.replay import FormSource, Hints, Network, Replay
from lipcert.certificate import Sample
from lipcert.errors import UsageError
from lipcert.options import Options
from lipcert.proving.prover import Proof, Prover

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
    """Proofs of what ``samples`` claim. ``content``: the ONNX file that is certified; ``model``: the
    record of it in the certificate."""
    claims = [(s, eps) for s in samples if (eps := claimed_eps(s, options)) is not None]
    try:
        front = Preprocessing.of(model, image_shape)
        reading = Interpreter(
            onnx.load_from_string(content), front.shape, softmax=model["stripped"] is not None
        )
        network = Network(Graph(reading, front, options.deployed))
    except NotRead as missing:
        return Recorded(None, len(claims), tuple(s.index for s, _ in claims), str(missing))
    replay = Replay(
        network, options.deployed, Coins(RISK, _NORMS), pixel_domain=options.pixel_domain,
        softmax=model["stripped"] is not None,
    )  # fmt: skip
    prover = Prover(replay)
    kept: list[Kept] = []
    classes = network.graph.widths[network.graph.output]
    each = max(1, min(_AT_ONCE, _NUMBERS // (classes * (network.sizes.neurons + 1))))
    for first in range(0, len(claims), each):
        some = claims[first : first + each]
        index = np.array([sample.index for sample, _ in some])
        x = torch.from_numpy(pixels(index).reshape(len(some), -1).astype(np.float64))
        labels = torch.tensor([sample.label for sample, _ in some])
        # No two images are further apart than the diagonal of the cube.
        eps = torch.tensor([eps for _, eps in some], dtype=torch.float64)
        eps = eps.clamp(max=math.sqrt(x.shape[1]))
        found = zip(some, eps.tolist(), prover(x, labels, eps), strict=True)
        new = [(s.index, radius, proof) for (s, _), radius, proof in found if proof is not None]
        held = _replayed(replay, new, x[np.isin(index, [i for i, *_ in new])],
                         labels[np.isin(index, [i for i, *_ in new])])  # fmt: skip
        kept += [one for one, holds in zip(new, held, strict=True) if holds]
    proven = {index for index, *_ in kept}
    left = tuple(sample.index for sample, _ in claims if sample.index not in proven)
    return Recorded(_packed(network, kept), len(claims), left)


@torch.no_grad()
def _replayed(replay: Replay, kept: Sequence[Kept], x: Tensor, labels: Tensor) -> list[bool]:
    """Whether what would be written of each proves it, with coins of its own."""
    if not kept:
        return []
    arrays = _packed(replay.network, kept)
    rows = np.arange(len(kept))
    source = FormSource(replay.network, arrays, rows)
    state = replay.state(x, torch.from_numpy(arrays.eps), Hints.of(arrays, rows), source)
    held: list[bool] = (replay.margins(state, labels, source).amin(1) > 0).tolist()
    return held


def write(arrays: Arrays, path: Path) -> None:
    """Raises ``UsageError`` where the file cannot be written."""
    try:
        arrays.save(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _packed(network: Network, kept: Sequence[Kept]) -> Arrays:
    sizes = network.sizes
    columns: dict[str, list[Any]] = {one.name: [] for one in fields(Arrays)}
    slopes: list[NDArray[np.uint8]] = []
    for row, (index, eps, proof) in enumerate(kept):
        stored = any(form.rule == STORED for form in proof.forms)
        masks = {v: proof.masks[v].numpy() != 0 for v in network.bends}
        bits = np.concatenate([masks[v] for v in network.bends]) if masks else np.zeros(0, bool)
        columns["index"].append(index)
        columns["eps"].append(eps)
        columns["edge_scale"].append(proof.edge_scale.numpy())
        columns["chain_scale"].append(proof.chain_scale.numpy())
        columns["chain_weight"].append(proof.chain_weight.numpy())
        columns["kept"].append(np.packbits(bits & stored))
        for form in proof.forms:
            columns["form_sample"].append(row)
            columns["form_bend"].append(form.bend)
            columns["form_place"].append(form.place)
            columns["form_sign"].append(form.sign)
            columns["form_rule"].append(form.rule)
            columns["form_multiplier"].append(form.multipliers)
            columns["form_cuts"].append(len(form.cuts))
            for neuron, place, above in form.cuts:
                columns["cut_neuron"].append(neuron)
                columns["cut_place"].append(place)
                columns["cut_above"].append(above)
            if form.rule == STORED:
                assert form.slopes is not None
                for v in network.bends:
                    values = form.slopes[v].numpy()[masks[v]]
                    slopes.append(((values - SLOPE_LEAST) * SLOPE_STEP).round().astype(np.uint8))
    columns["slopes"] = [np.concatenate(slopes) if slopes else np.zeros(0, np.uint8)]
    shapes = {
        "edge_scale": sizes.edges, "chain_scale": sizes.bends, "chain_weight": sizes.weights,
        "kept": -(-sizes.neurons // 8), "form_multiplier": sizes.bends,
    }  # fmt: skip
    types = {
        "index": np.int64, "eps": np.float64, "kept": np.uint8, "form_sample": np.int32,
        "form_bend": np.int16, "form_place": np.int32, "form_sign": np.int8,
        "form_rule": np.uint8, "form_cuts": np.int16, "cut_neuron": np.int32,
        "cut_place": np.float64, "cut_above": np.bool_,
    }  # fmt: skip
    arrays = {}
    for name, values in columns.items():
        if name == "slopes":
            arrays[name] = values[0]
            continue
        made = np.asarray(values, dtype=types.get(name, np.float32))
        arrays[name] = made.reshape(len(values), shapes[name]) if name in shapes else made
    return Arrays(**arrays)
