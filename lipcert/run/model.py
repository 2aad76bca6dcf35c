"""A loaded model together with the preprocessing that makes it a function of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lipcert.loading import LoadedModel, load_model, with_preprocessing
from lipcert.network import Network
from lipcert.run.job import ModelSource, Preprocessing


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
        """The network as a function of pixels in [0, 1], for images of this shape.

        ``image_shape``: (C, H, W) or (features,). Raises ``UsageError`` where it does not fit.
        """
        wanted = self.preprocessing
        return with_preprocessing(
            self.loaded.network,
            image_shape=tuple(image_shape),
            layout=wanted.layout,
            mean=wanted.mean,
            std=wanted.std,
            value_range=wanted.value_range,
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
        } | ({} if loaded.output is None else {"output": loaded.output})


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
