"""The deployed file itself: onnxruntime, behind the auditor's own preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from lipcert.errors import CannotCertify

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """From pixels ``p`` in [0, 1] to the file's input: ``(p · scale + shift)[order]``.

    ``scale``, ``shift`` ``(n,)`` and ``order``, the pixel that each input reads, are float64 and
    flat; ``shape`` is that of the file's input. ``size`` ``(n,)``: the sizes of the numbers that
    ``shift`` is the sum of, for the rounding of a runtime that applies them one after the other.
    """

    scale: Array
    shift: Array
    size: Array
    order: Array
    shape: tuple[int, ...]

    @classmethod
    def of(cls, model: Mapping[str, Any], image_shape: tuple[int, ...]) -> Preprocessing:
        """As the ``model`` of a certificate records it, for images ``(C, H, W)`` or ``(n,)``.

        Raises ``CannotCertify`` where the record does not fit the images.
        """
        record, shape = model["preprocessing"], tuple(model["input_shape"])
        low, high = record["value_range"]
        try:
            mean = _channels(record["mean"], 0.0, image_shape)
            std = _channels(record["std"], 1.0, image_shape)
            places = np.arange(math.prod(image_shape)).reshape(image_shape)
            axes = _axes(record["layout"], image_shape, shape)
            order = places.transpose(axes).reshape(math.prod(shape))
        except ValueError as error:
            raise CannotCertify(
                f"the preprocessing that the certificate records does not fit images "
                f"{list(image_shape)}: {error}"
            ) from error
        return cls(
            scale=(high - low) / std,
            shift=(low - mean) / std,
            size=(abs(low) + np.abs(mean)) / std,
            order=order,
            shape=shape,
        )

    def __call__(self, pixels: Array) -> Array:
        """``(n, …)`` to ``(n, *shape)``, in float64."""
        flat = pixels.reshape(len(pixels), -1).astype(np.float64)
        values: Array = (flat * self.scale + self.shift)[:, self.order]
        return values.reshape(len(pixels), *self.shape)


class Deployed:
    """``deployed(pixels)``: the file's first output for pixels ``(n, …)``, ``(n, K)`` in float64.

    Without graph optimisations, one sample at a time as the file may ask for it, on one thread.
    """

    def __init__(self, model: onnx.ModelProto, preprocessing: Preprocessing) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _refusal(error) from error
        given = self._session.get_inputs()[0]
        self._input = given.name
        kinds: dict[str, type[np.floating[Any]]] = {
            "tensor(double)": np.float64, "tensor(float16)": np.float16,
        }  # fmt: skip
        self._type = kinds.get(given.type, np.float32)
        self._preprocessing = preprocessing

    def __call__(self, pixels: Array) -> Array:
        inputs = self._preprocessing(pixels).astype(self._type)
        return np.stack([self._one(values) for values in inputs])

    def _one(self, values: Array) -> Array:
        try:
            output = self._session.run(None, {self._input: np.ascontiguousarray(values)})[0]
        except Exception as error:
            raise _refusal(error) from error
        return np.asarray(output).reshape(-1).astype(np.float64)


def margins(logits: Array, labels: int | Array) -> Array:
    """``f_y`` minus the largest other logit, ``(n,)``; NaN where a logit is not finite."""
    own = np.broadcast_to(np.asarray(labels), len(logits))[:, None]
    others = logits.copy()
    np.put_along_axis(others, own, -np.inf, axis=1)
    gap = np.take_along_axis(logits, own, axis=1)[:, 0] - others.max(axis=1)
    return np.where(np.isfinite(logits).all(axis=1), gap, np.nan)


def _channels(values: list[float] | None, default: float, image_shape: tuple[int, ...]) -> Array:
    """One number for every pixel."""
    found = np.asarray([default] if values is None else values, dtype=np.float64)
    column = found.reshape(-1, *(1,) * (len(image_shape) - 1))
    return np.broadcast_to(column, image_shape).reshape(-1)


def _axes(
    layout: str | None, image_shape: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """In which order the file reads the axes of an image."""
    if layout is not None:
        return tuple("CHW".index(axis) for axis in layout)
    last = len(image_shape) == 3 and shape != (1, *image_shape)
    if last and shape == (1, *image_shape[1:], image_shape[0]):
        return 1, 2, 0
    return tuple(range(len(image_shape)))


def _refusal(error: Exception) -> CannotCertify:
    return CannotCertify(f"onnxruntime cannot run the model: {' '.join(str(error).split())[:300]}")
