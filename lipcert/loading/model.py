"""From files to a network: ONNX, ONNX with other weights, or safetensors with a factory."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from lipcert.errors import UsageError
from lipcert.loading.entry import WHOLE, bound, one_by_one, real
from lipcert.loading.factory import export, from_weights, try_on
from lipcert.loading.heads import (
    ALONE,
    CUT,
    TWO,
    ScoreModel,
    Threshold,
    probability,
    scores,
    two_classes,
)
from lipcert.loading.onnx_file import check, deployed_part, open_onnx, opset, weights_alone
from lipcert.loading.operator_row import OperatorRow
from lipcert.loading.reader import ReadGraph, network_of, read
from lipcert.loading.weights import STATE_DICTS, replace_weights
from lipcert.network import Network
from lipcert.rounding import HALF

HALVES = "the file computes in float16: what it rounds there is charged under every --deployed"


@dataclass(frozen=True)
class LoadedModel:
    """A file's function of one sample, and what it takes to run the file itself.

    ``network`` is float64, as the file has it: not simplified, no preprocessing added.
    ``files`` has the sha256 of every file read. ``stripped`` names a softmax, or a sigmoid of each
    logit, left out at the end, and ``logits`` the value before it. ``notes`` say what else was done
    to the file to make it one score a class. ``output`` names the one that was asked for.
    ``runtime_bytes`` is the deployed model, a whole ONNX file with the weights in use, and without
    what the output does not need, so that running it takes no more than was allowed; it takes
    ``any_batch`` or one sample at a time, in float64 (``double``), float16 (``half``) or float32;
    there its input of ``whole`` numbers is one of real numbers. Of a file of one score a threshold
    was put ``beside`` it, and class 1 may lie ``below`` that. ``summation``: the record of
    the orders of sums that were measured, and that the network has.
    """

    network: Network
    path: Path
    files: dict[str, str]
    format: str
    opset: int
    input_name: str
    output_name: str
    stripped: str | None
    operators: tuple[OperatorRow, ...]
    runtime_bytes: bytes
    double: bool
    any_batch: bool
    notes: tuple[str, ...] = ()
    output: str | None = None
    logits: str | None = None
    half: bool = False
    whole: bool = False
    below: bool = False
    beside: float | None = None
    summation: dict[str, Any] | None = None


def load_model(
    path: Path,
    *,
    weights: Path | None = None,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    output: str | None = None,
    layout: str | None = None,
) -> LoadedModel:
    """Reads ``model.onnx``, perhaps with ``weights`` from a safetensors file, or
    ``weights.safetensors`` with ``arch="package.module:factory"``, or the name of one of
    ``lipcert.loading.architectures``, and the ``input_shape``, without the batch, of its images.
    ``output`` names the logits of a graph with several outputs. Extents of the input that a file
    leaves free are those of ``input_shape``, ``(C, H, W)``, in the order ``layout``.

    ``UsageError``: a path or an option that does not fit, an error in the factory.
    ``CannotCertify``: a broken file, weights that do not fit, anything not supported, all listed.
    """
    path = Path(path)
    files: dict[str, str] = {}
    if path.suffix == ".safetensors" or (path.suffix in STATE_DICTS and arch is not None):
        if arch is None:
            raise UsageError(weights_alone(path))
        if input_shape is None:
            raise UsageError(
                f"{path.name}: does not say of what shape a sample is; give --input-shape 3,32,32, "
                "or what it is"
            )
        if weights is not None:
            raise UsageError(f"{path.name} holds the weights already; leave out {weights}")
        model, files[path.name] = from_weights(arch, path, input_shape)
        kind = "safetensors+arch"
    elif arch is not None:
        raise UsageError(
            f"{path.name}: --arch {arch} goes with weights alone, a .safetensors file or a state "
            "dict; leave it out, as an ONNX file says what it computes"
        )
    else:
        opened = open_onnx(path)
        model, files, kind = opened.model, opened.files, "onnx"
        if weights is not None:
            weights = Path(weights)
            files[weights.name] = replace_weights(model, weights, path.name)
    if arch is not None or weights is not None:
        check(model, path.name)
    return _loaded(model, path, files, kind, output, input_shape, layout)


def load_module(module: nn.Module, input_shape: tuple[int, ...]) -> LoadedModel:
    """A module as it is, by torch's export to ONNX for one sample of ``input_shape``; the export
    must compute what the module does.

    A copy on the CPU is put in evaluation mode; the module itself stays as it is. The name is that
    of its class, and ``files`` has the sha256 of the export. ``UsageError``: it does not take such
    a sample, or its weights are not float32. ``CannotCertify``: it cannot be exported, or anything
    in it is not supported, all listed.
    """
    name = type(module).__name__
    other = {str(p.dtype) for p in module.parameters() if p.dtype != torch.float32}
    if other:
        raise UsageError(
            f"{name}: has weights of {', '.join(sorted(other))}; give module.float(), or export it "
            "to an ONNX file in its own type and load that"
        )
    kept = copy.deepcopy(module).cpu().eval()
    try_on(kept, name, input_shape)
    model = export(kept, name, input_shape)
    check(model, name)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return _loaded(model, Path(name), {name: digest}, "torch")


def _loaded(
    model: onnx.ModelProto,
    path: Path,
    files: dict[str, str],
    kind: str,
    output: str | None = None,
    input_shape: Sequence[int] | None = None,
    layout: str | None = None,
) -> LoadedModel:
    part = understood(model, path.name, output, input_shape, layout)
    reading = part.reading
    return LoadedModel(
        network=network_of(reading, path.name),
        path=path,
        files=files,
        format=kind,
        opset=opset(model),
        input_name=reading.input_name,
        output_name=reading.output_name,
        stripped=reading.stripped,
        operators=reading.operators,
        runtime_bytes=part.model.SerializeToString(),
        double=reading.double,
        any_batch=reading.any_batch,
        notes=part.notes,
        output=output,
        logits=reading.logits,
        half=reading.half,
        whole=WHOLE in part.notes,
        below=part.below,
        beside=part.beside,
    )


def rounds_to_half(network: Network) -> bool:
    """Whether the file itself computes some value in 16 bits."""
    return any(node.format is not None and node.format.unit >= HALF.unit for node in network.nodes)


@dataclass(frozen=True)
class Understood:
    """``model``: what of a file is deployed, up to one score a class; how it was read, with a row
    for every node of the file that counts; what else was done; of a file of one score the threshold
    that was put ``beside`` it, and whether class 1 lies ``below`` that."""

    model: onnx.ModelProto
    reading: ReadGraph
    notes: tuple[str, ...] = ()
    below: bool = False
    beside: float | None = None


def understood(
    model: onnx.ModelProto,
    name: str,
    output: str | None = None,
    input_shape: Sequence[int] | None = None,
    layout: str | None = None,
) -> Understood:
    """The checked model and its reading, whose problems may say why it cannot be certified.

    Raises ``UsageError`` where there is no such ``output``.
    """
    notes: list[str] = []
    for change in (
        partial(bound, shape=input_shape, layout=layout),
        partial(one_by_one, name=name),
        real,
    ):
        model, note = change(model)
        notes += [note] if note else []
    head = scores(model, name, output)
    reading = read(head.model, name, head.output)
    if reading.network is not None and rounds_to_half(reading.network):
        notes.append(HALVES)
    rows = tuple(OperatorRow.of(node, opset(model), True, CUT) for node in head.cut)
    if reading.network is not None and head.cut:
        reading = _all_at_once(head, reading, notes)
    part = head.model if head.output is None else deployed_part(head.model, head.output)
    threshold, classes = head.threshold, 0
    if reading.network is not None:
        classes = reading.network.classes
    if classes == 1:
        own = 0.5 if probability(part.graph, reading.output_name) else 0.0
        threshold = threshold or Threshold(own)
        part = two_classes(part, reading.output_name, threshold)
        reading = replace(read(part, name), operators=reading.operators)
        notes.append(TWO.format(threshold.side, f"{threshold.value:.6g}"))
    elif classes and threshold is not None:
        reading = _compared_alone(head, threshold, reading, classes, notes)
    reading = replace(reading, operators=reading.operators + rows)
    beside = threshold.value if classes == 1 and threshold is not None else None
    below = threshold is not None and threshold.below
    return Understood(part, reading, tuple(notes), below, beside)


def _all_at_once(head: ScoreModel, reading: ReadGraph, notes: list[str]) -> ReadGraph:
    """Of a file whose end decides for a class, which is cut off: noted, or a problem where the
    decision is not among all scores."""
    assert reading.network is not None
    shape = reading.network.nodes[-1].shape
    extents = [shape[axis] for axis in head.axes if -len(shape) <= axis < len(shape)]
    if extents != [math.prod(shape)] * len(head.axes):
        told = f"{head.cut[0].op_type} along axis {head.axes[0]} of {list(shape)}: decides at "
        told += "every place by itself; only a decision among all classes is certified"
        return replace(reading, network=None, problems=(told,))
    kinds = ", ".join(dict.fromkeys(node.op_type for node in head.cut))
    notes.append(f"{kinds} at the end {CUT}, at {head.output!r}")
    return reading


def _compared_alone(
    head: ScoreModel, threshold: Threshold, reading: ReadGraph, classes: int, notes: list[str]
) -> ReadGraph:
    """Of a file whose end holds each of several scores against a threshold: noted where that is not
    the decision for the larger one, or a problem where small scores are marked."""
    if threshold.below:
        told = f"{head.cut[0].op_type} at the end marks scores that are small; name the scores"
        return replace(reading, network=None, problems=(told,))
    if (classes, reading.stripped, threshold.value) != (2, "Softmax", 0.5):
        told = ALONE.format(classes, f"{threshold.value:.6g}")
        notes.append(f"{head.cut[0].op_type} at the end {told}")
    return reading


def affordable(
    model: onnx.ModelProto,
    name: str,
    output: str | None = None,
    input_shape: Sequence[int] | None = None,
    layout: str | None = None,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The part of a checked model that its scores need, once it is known what running it takes, and
    what a certificate records of it.

    Raises ``CannotCertify`` where that is more than ``allowance`` has, or cannot be told.
    """
    part = understood(model, name, output, input_shape, layout)
    network = network_of(part.reading, name)
    facts = {
        "input_shape": list(network.in_shape), "classes": network.classes,
        "parameters": network.parameters, "stripped": part.reading.stripped,
    }  # fmt: skip
    return part.model, facts


def inspect_operators(
    path: Path, output: str | None = None, input_shape: Sequence[int] | None = None
) -> tuple[OperatorRow, ...]:
    """Every node that the scores need, supported or not, with the reason, and those that are cut
    off behind them; only a file that cannot be opened is refused."""
    path = Path(path)
    opened = open_onnx(path).model
    return understood(opened, path.name, output, input_shape).reading.operators
