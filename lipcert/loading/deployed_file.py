"""The deployed file as a function of pixels: the preprocessing, then onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipcert.errors import CannotCertify
from lipcert.loading.allowance import NUMBERS
from lipcert.loading.model import LoadedModel, rounds_to_half
from lipcert.loading.runtime import Runtime
from lipcert.network import Network

Array = NDArray[Any]

# For files in float32, and in float64.
TOLERANCE, DOUBLE_TOLERANCE = 1e-4, 1e-9
# And where the file itself rounds to 16 bits: 40 roundings, each of 2^-11 of the largest value.
# What that could hide is found by running the file in float32, see ``cross_check``.
HALF_TOLERANCE = 2e-2


class DeployedFile:
    """``file(pixels)``: what onnxruntime makes of the file behind the preprocessing of ``network``;
    a softmax at the end of the file is in there.

    ``double``: the file takes float64, ``half``: float16, else float32; ``rough``: some of it is in
    16 bits. The session is opened when it is first needed,
    and again in a process that was given a copy. Raises ``CannotCertify`` where the file does not
    run.
    """

    def __init__(self, model: LoadedModel, network: Network) -> None:
        self.name, self.double, self.half = model.path.name, model.double, model.half
        self.rough = rounds_to_half(model.network)
        self._content, self._output = model.runtime_bytes, model.output_name
        self._classes, self._front = model.network.classes, _preprocessing(model, network)
        # A measured order is that of one sample at a time.
        self._in_batches = model.any_batch and model.summation is None
        self._checked = False
        # How many samples may run together, from the numbers that each of them takes.
        self.at_once = max(1, NUMBERS // model.network.size)
        self._session: Runtime | None = None

    @property
    def tolerance(self) -> float:
        """What the logits of two readings of one function may differ by, relative to the largest
        one."""
        if self.rough:
            return HALF_TOLERANCE
        return DOUBLE_TOLERANCE if self.double else TOLERANCE

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None, "_checked": False}

    def __call__(self, pixels: Array, *, batch: int = 256) -> Array:
        """``(n, outputs)`` in float64, of pixels ``(n, *image_shape)``.

        In batches where the file takes them and gives the same result, else one by one.
        """
        results: list[Array] = []
        batch = min(batch, self.at_once)
        for start in range(0, len(pixels), batch):
            samples = self.inputs(pixels[start : start + batch])
            found = self._batch(samples) if self._in_batches and len(pixels) > 1 else None
            results += list(self.one_by_one(samples) if found is None else found)
        return np.array(results).reshape(len(results), self._classes)

    def inputs(self, pixels: Array) -> Array:
        """``(n, *in_shape)`` in the file's type: behind the preprocessing, found in float64."""
        with torch.no_grad():
            values = self._front.values(torch.from_numpy(np.asarray(pixels)).double())[-1]
        kind = np.float64 if self.double else np.float16 if self.half else np.float32
        return values.numpy().astype(kind)

    def one_by_one(self, samples: Array) -> Array:
        """``(n, outputs)`` in float64 of the file's own inputs."""
        results = [
            self._runtime.run(sample, self._output).reshape(-1).astype(np.float64)
            for sample in samples
        ]
        if any(result.size != self._classes for result in results):
            raise CannotCertify(
                f"{self.name}: onnxruntime gives {results[0].size} logits, the network "
                f"{self._classes}"
            )
        return np.stack(results)

    @property
    def _runtime(self) -> Runtime:
        if self._session is None:
            self._session = Runtime(self._content, self.name)
        return self._session

    def together(self, samples: Array) -> Array | None:
        """``(n, outputs)`` in float64 of the file's own inputs, all at once; None where it does not
        take them so."""
        try:
            result = self._runtime.run(samples.reshape(-1, *samples.shape[2:]), self._output)
        except CannotCertify:
            return None
        if result.shape[:1] != (len(samples),) or result.size != len(samples) * self._classes:
            return None
        return result.reshape(len(samples), -1).astype(np.float64)

    def _batch(self, samples: Array) -> Array | None:
        """All at once; None, for good, where that is not what it gives for each of them alone."""
        result = self.together(samples)
        if result is not None and not self._checked:
            ends = self.one_by_one(samples[[0, -1]])
            alike = (
                relative_difference(result[[0, -1]], ends) <= max(TOLERANCE, self.tolerance)
            ).all()
            result = result if alike else None
        self._in_batches = self._checked = result is not None
        return result


def deployed_logits(
    model: LoadedModel, network: Network, inputs: Array, *, batch: int = 256
) -> Array:
    """``(n, outputs)``: what onnxruntime gives for the file, see ``DeployedFile``."""
    return DeployedFile(model, network)(np.asarray(inputs), batch=batch)


def relative_difference(ours: Array, theirs: Array) -> Array:
    """Of each sample, ``(n,)``: of the logit that differs most, in terms of the largest one."""
    scale = np.maximum(np.abs(theirs).max(1), 1e-6)
    return np.asarray(np.abs(ours - theirs).max(1) / scale)


def _preprocessing(model: LoadedModel, network: Network) -> Network:
    """What stands in front of the model's own nodes."""
    front = len(network.nodes) - len(model.network.nodes)
    own = [type(node.kind) for node in model.network.nodes[1:]]
    if front < 0 or [type(node.kind) for node in network.nodes[front + 1 :]] != own:
        raise ValueError("the network is not the model's, with preprocessing in front of it")
    return Network(network.nodes[: front + 1])
