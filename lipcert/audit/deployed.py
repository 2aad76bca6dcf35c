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
    """From the data ``p``, pixels in [0, 1] for images, to the file's input:
    ``p[order] · scale + shift``.

    ``order``, the pixel that each input reads, and what is done to it, ``scale`` and ``shift``,
    are flat, ``(m,)`` for a file of ``m`` inputs; ``pixels`` is how many there are, fewer than
    ``m`` where gray images are repeated; ``shape`` is that of the file's input. ``size`` ``(m,)``:
    the sizes of the numbers that ``shift`` is the sum of, for the rounding of a runtime that
    applies them one after the other.
    """

    scale: Array
    shift: Array
    size: Array
    order: Array
    pixels: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, model: Mapping[str, Any], image_shape: tuple[int, ...]) -> Preprocessing:
        """As the ``model`` of a certificate records it, for data of this shape: ``(C, H, W)`` for
        images, ``(n,)``, ``(C, L)``, ``(C, D, H, W)``.

        Raises ``CannotCertify`` where the record does not fit the images.
        """
        record, shape = model["preprocessing"], tuple(model["input_shape"])
        low, high = record["value_range"]
        try:
            places = np.arange(math.prod(image_shape)).reshape(image_shape)
            places = _coloured(places, record.get("channels"))
            axes = _axes(record["layout"], places.shape, shape)
            order, mean, std = (
                values.transpose(axes).reshape(math.prod(shape))
                for values in (
                    places,
                    _channels(record["mean"], 0.0, places.shape),
                    _channels(record["std"], 1.0, places.shape),
                )
            )
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
            pixels=math.prod(image_shape),
            shape=shape,
        )

    def __call__(self, pixels: Array) -> Array:
        """``(n, …)`` to ``(n, *shape)``, in float64."""
        flat = pixels.reshape(len(pixels), -1).astype(np.float64)
        values: Array = flat[:, self.order] * self.scale + self.shift
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


def _coloured(places: Array, channels: str | None) -> Array:
    """The channels as the file reads them: blue first, or a gray one three times."""
    if channels is None:
        return places
    if len(places) == 1:
        return np.repeat(places, 3, axis=0)
    return places[::-1] if channels == "bgr" else places


def _channels(values: list[float] | None, default: float, image_shape: tuple[int, ...]) -> Array:
    """One number for every pixel."""
    found = np.asarray([default] if values is None else values, dtype=np.float64)
    column = found.reshape(-1, *(1,) * (len(image_shape) - 1))
    return np.broadcast_to(column, image_shape)


def _axes(
    layout: str | None, image_shape: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """In which order the file reads the axes of an image, a signal or a volume."""
    named = {1: "F", 2: "CL", 3: "CHW", 4: "CDHW"}[len(image_shape)]
    if layout is not None:
        return tuple(named.index(axis) for axis in layout)
    several = len(image_shape) > 1 and shape != (1, *image_shape)
    if several and shape == (1, *image_shape[1:], image_shape[0]):
        return (*range(1, len(image_shape)), 0)
    return tuple(range(len(image_shape)))


def _refusal(error: Exception) -> CannotCertify:
    return CannotCertify(f"onnxruntime cannot run the model: {' '.join(str(error).split())[:300]}")
