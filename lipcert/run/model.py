"""A loaded model together with the preprocessing that makes it a function of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from lipcert.data import Expected
from lipcert.loading import LoadedModel, load_model, with_preprocessing
from lipcert.loading.onnx_file import LARGEST_FILE
from lipcert.loading.summation import measured
from lipcert.network import Network
from lipcert.options import Options
from lipcert.run.job import ModelSource, Preprocessing
from lipcert.run.progress import Watch


@dataclass(frozen=True)
class Model:
    """What ``lipcert.load`` returns: the model of a file, and how it wants its input."""

    loaded: LoadedModel
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def name(self) -> str:
        return self.loaded.path.name

    @property
    def classes(self) -> int:
        return self.loaded.network.classes

    def on_images(self, image_shape: Sequence[int]) -> Network:
        """The network as a function of the data, pixels in [0, 1] for images, of this shape.

        ``image_shape``: without the batch, (C, H, W) for images or (features,), (C, L),
        (C, D, H, W). Raises ``UsageError`` where it does not fit.
        """
        wanted = self.preprocessing
        return with_preprocessing(
            self.loaded.network,
            image_shape=tuple(image_shape),
            layout=wanted.layout,
            mean=wanted.mean,
            std=wanted.std,
            value_range=wanted.value_range,
            channels=wanted.channels,
        )

    def to_json(self) -> dict[str, Any]:
        """The ``model`` of a certificate, but the cross-check."""
        loaded = self.loaded
        return {
            "name": self.name,
            "format": loaded.format,
            "opset": loaded.opset,
            "files": dict(loaded.files),
            "input_shape": list(loaded.network.in_shape),
            "classes": self.classes,
            "parameters": loaded.network.parameters,
            "stripped": loaded.stripped,
            "preprocessing": self.preprocessing.to_json(),
        } | {
            name: value
            for name, value in (("output", loaded.output), ("summation", loaded.summation))
            if value is not None
        }


def with_summation(model: Model, options: Options, watch: Watch) -> Model:
    """The model; where the options ask for it, with the orders of its sums that are measured here.

    Raises ``CannotCertify`` where there are none.
    """
    if options.summation == "any":
        return model
    watch.stage("measuring the order of the runtime's sums")
    found = measured(model.loaded)
    assert found.summation is not None
    layers = found.summation["layers"]
    known = sum(layer["order"] == "measured" for layer in layers)
    watch.say(
        f"sums: measured in {known} of {len(layers)} layers, {found.summation['probes']} runs"
    )
    return replace(model, loaded=found)


def expected_by(source: ModelSource) -> Expected:
    """What an ONNX file says of its input and output, where the extents are fixed; nothing for
    other files, or where it cannot be read, which is told when it is loaded."""
    if source.arch is not None or source.path.suffix != ".onnx":
        return Expected()
    try:
        if source.path.stat().st_size > LARGEST_FILE:
            return Expected()
        graph = onnx.load_model(str(source.path), load_external_data=False).graph
    except Exception:
        # No error is lost: ``open_model`` reads the same file, and says what is wrong with it.
        return Expected()
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_extents(value) for value in graph.input if value.name not in weights]
    outputs = [_extents(value) for value in graph.output if source.output in (None, value.name)]
    shape = inputs[0][1:] if inputs else ()
    # A single number is the place of a class, or one score for two of them.
    classes = outputs[0][-1] if len(outputs) == 1 and outputs[0][1:] else 0
    classes = 0 if classes == 1 else classes
    return Expected(shape if shape and all(shape) else None, classes or None)


def _extents(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """0 for what is open."""
    return tuple(int(axis.dim_value) for axis in value.type.tensor_type.shape.dim)


def open_model(
    source: ModelSource,
    preprocessing: Preprocessing,
    *,
    image_shape: Sequence[int] | None = None,
) -> Model:
    """Load a model; a factory is tried on an image of ``image_shape``.

    A file that takes whole numbers has black at 0 and white at 255, unless that is said otherwise.
    Raises what ``load_model`` does.
    """
    if image_shape is not None and preprocessing.channels is not None and image_shape[0] == 1:
        image_shape = (3, *image_shape[1:])
    loaded = load_model(
        source.path,
        weights=source.weights,
        arch=source.arch,
        input_shape=None if image_shape is None else tuple(image_shape),
        output=source.output,
        layout=preprocessing.layout,
    )
    if loaded.whole and preprocessing.value_range == (0.0, 1.0):
        preprocessing = replace(preprocessing, value_range=(0.0, 255.0))
    return Model(loaded, preprocessing)
