"""Is the network that is certified the one that is deployed? Both run on real samples.

onnxruntime runs the file; onnx2torch, an independent reader, gives a second opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from lipcert.errors import CannotCertify, InternalError
from lipcert.loading.deployed_file import TOLERANCE, DeployedFile, relative_difference
from lipcert.loading.model import LoadedModel
from lipcert.loading.onnx_file import inlined, part_for
from lipcert.loading.runtime import Runtime
from lipcert.loading.second_reader import second_logits
from lipcert.loading.widening import widened
from lipcert.network import Network

Array = NDArray[Any]

# Images of noise, on which the reading must be the same function too: what is read otherwise may
# show on no sample, such as a border that is black in all of them.
NOISE, NOISE_TOLERANCE = 4, 1e-2
SECOND_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CrossCheck:
    """The largest difference of a logit, relative to its sample's largest one: against
    onnxruntime, and against onnx2torch where ``onnx2torch_note`` does not say otherwise."""

    samples: int
    max_relative_difference: float
    onnx2torch: float | None
    onnx2torch_note: str


def cross_check(model: LoadedModel, network: Network, inputs: Array) -> CrossCheck:
    """Compares ``network``, the model behind its preprocessing, with the file, one by one.

    A file that rounds to 16 bits is compared a second time with all of it in float32.
    ``inputs`` are pixels ``(n, *image_shape)``, or the model's own inputs where there is no
    preprocessing. ``CannotCertify`` where a sample differs by more than 1e-4, relative, or falls
    in another class by more than that, or gives a value that is not finite; and where the file
    gives something else for a sample beside others, in batches of several compositions.
    """
    inputs = np.asarray(inputs)
    if not len(inputs):
        raise CannotCertify(f"{model.path.name}: no samples to check the network on")
    with torch.no_grad():
        file = DeployedFile(model, network)
        parts = torch.split(torch.from_numpy(inputs), file.at_once)
        ours = torch.cat([network.logits(part.double()) for part in parts]).numpy()
    samples = file.inputs(inputs)
    _check_logits(model, ours, samples, file)
    ours = as_deployed(model.stripped, ours)
    theirs = file.one_by_one(samples)
    difference = _compare(model, ours, theirs, _tolerance(file), "onnxruntime")
    if file.rough:
        _check_widened(model, samples, file)
    _check_batches(model, file, samples, theirs)
    _check_noise(model, file, inputs.shape[1:])
    second, note = second_logits(model.runtime_bytes, [samples[i] for i in range(len(samples))])
    if second is None:
        return CrossCheck(len(inputs), difference, None, note)
    flat = np.stack([logits.reshape(-1) for logits in second]).astype(np.float64)
    other = _compare(model, ours, flat, max(SECOND_TOLERANCE, file.tolerance), "onnx2torch")
    return CrossCheck(len(inputs), difference, other, note)


def _tolerance(file: DeployedFile) -> float:
    return max(TOLERANCE, file.tolerance)


def _check_logits(model: LoadedModel, ours: Array, samples: Array, file: DeployedFile) -> None:
    """The logits before a head that was left out, which may hide them: a saturated softmax is the
    same for many."""
    if model.logits is None:
        return
    whole = inlined(onnx.ModelProto.FromString(model.runtime_bytes))
    if not any(model.logits in node.output for node in whole.graph.node):
        return
    part = part_for(whole, model.logits)
    runtime = Runtime(part.SerializeToString(), model.path.name)
    found = np.stack([runtime.run(x, model.logits).reshape(-1) for x in samples])
    if found.shape[1] == 1:  # the other one is its threshold
        ours = ours[:, :1] if model.below else ours[:, 1:]
    _compare(model, ours, found.astype(np.float64), _tolerance(file), "onnxruntime")


def _check_widened(model: LoadedModel, samples: Array, file: DeployedFile) -> None:
    """Rounding to 16 bits may hide a small mistake of the reading; the same file in float32 has
    none, on the very inputs that it is given."""
    wide = inlined(onnx.ModelProto.FromString(model.runtime_bytes))
    widened(wide)
    runtime, given = Runtime(wide.SerializeToString(), model.path.name), samples.astype(np.float32)
    found = np.stack([runtime.run(x, model.output_name).reshape(-1) for x in given])
    with torch.no_grad():
        parts = torch.split(torch.from_numpy(given).double(), file.at_once)
        ours = torch.cat([model.network.logits(part) for part in parts]).numpy()
    ours = as_deployed(model.stripped, ours)
    _compare(model, ours, found.astype(np.float64), TOLERANCE, "onnxruntime in float32")


def _check_batches(model: LoadedModel, file: DeployedFile, samples: Array, alone: Array) -> None:
    """Whether a sample's logits are the same beside others, in three batches: all samples in order,
    the first half of them backwards, and the last one twice."""
    if not model.any_batch:
        return
    order = np.arange(len(samples))
    for places in (order, order[: (len(order) + 1) // 2][::-1], order[[-1, -1]]):
        found = file.together(samples[places])
        if found is None:
            continue
        worst = relative_difference(found, alone[places]).max()
        if not worst <= _tolerance(file):
            raise CannotCertify(
                f"{model.path.name}: in a batch of {len(places)} a sample's logits differ by "
                f"{worst:.2g}, relative, from those that it has alone: the prediction depends on "
                "the other samples; export the model with a fixed batch of 1, if it never gets more"
            )


def _check_noise(model: LoadedModel, file: DeployedFile, shape: tuple[int, ...]) -> None:
    """Points that are no samples, where the numbers are finite: no more than rounding apart."""
    samples = file.inputs(np.random.default_rng(0).random((NOISE, *shape)))
    theirs = file.one_by_one(samples)
    with torch.no_grad():
        # As the file is given them, rounded to its type.
        values = torch.from_numpy(samples).double()
        ours = as_deployed(model.stripped, model.network.logits(values).numpy())
    finite = np.isfinite(ours).all(1) & np.isfinite(theirs).all(1)
    worst = relative_difference(ours[finite], theirs[finite]).max(initial=0.0)
    if not worst <= max(NOISE_TOLERANCE, file.tolerance):
        raise CannotCertify(
            f"{model.path.name}: on noise the logits differ from onnxruntime's by {worst:.2g}, "
            f"relative (at most {NOISE_TOLERANCE:.0e}); the network read from the file is not the "
            "one it computes"
        )


def as_deployed(stripped: str | None, logits: Array) -> Array:
    """What a file answers for these ``logits`` ``(n, K)``: the head that was ``stripped`` from it,
    put back."""
    values = torch.from_numpy(logits)
    if stripped == "Softmax":
        values = values.softmax(1)
    elif stripped == "LogSoftmax":
        values = values.log_softmax(1)
    elif stripped == "Sigmoid":
        values = values.sigmoid()
    elif stripped is not None:
        raise InternalError(f"no rule puts back the head {stripped!r}; please report this")
    return np.asarray(values.numpy())


def _compare(
    model: LoadedModel, ours: Array, theirs: Array, tolerance: float, reader: str
) -> float:
    if ours.shape != theirs.shape:
        raise CannotCertify(
            f"{model.path.name}: {reader} gives {theirs.shape[1]} logits, the network "
            f"{ours.shape[1]}"
        )
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise CannotCertify(f"{model.path.name}: logits that are not finite on a checked sample")
    difference = relative_difference(ours, theirs)
    worst = int(difference.argmax())
    if difference[worst] > tolerance:
        raise CannotCertify(
            f"{model.path.name}: on sample {worst} the logits differ from {reader}'s by "
            f"{difference[worst]:.2g}, relative (at most {tolerance:.0e}); the network read from "
            "the file is not the one it computes"
        )
    _same_class(model, ours, theirs, reader)
    return float(difference[worst])


def _same_class(model: LoadedModel, ours: Array, theirs: Array, reader: str) -> None:
    """The same largest logit, unless the two largest lie within the difference seen."""
    for sample in np.flatnonzero(ours.argmax(1) != theirs.argmax(1)):
        seen: Sequence[float] = theirs[sample]
        gap = seen[int(theirs[sample].argmax())] - seen[int(ours[sample].argmax())]
        if gap > 2 * np.abs(ours[sample] - theirs[sample]).max():
            raise CannotCertify(
                f"{model.path.name}: sample {sample} falls in class {ours[sample].argmax()}, with "
                f"{reader} in class {theirs[sample].argmax()}"
            )
