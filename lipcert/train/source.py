"""What is trained: a pretrained file, weights for a named architecture, or one from scratch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from lipcert.data import Dataset
from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import LoadedModel, architectures
from lipcert.loading.onnx_file import check, opset
from lipcert.loading.reader import network_of, read
from lipcert.loading.weights import STATE_DICTS, replace_weights
from lipcert.network import Network
from lipcert.run import Model, ModelSource, Preprocessing, open_model
from lipcert.train.patches import PatchTrainable
from lipcert.train.recipe import Recipe
from lipcert.train.rewriting import Rewritten, rewrite
from lipcert.train.trainable import Trainable


@dataclass(frozen=True)
class Source:
    """``model`` as it was before; ``pretrained``: whether there is anything to compare with."""

    model: Model
    pretrained: bool


def open_source(
    path: Path | None,
    weights: Path | None,
    arch: str | None,
    preprocessing: Preprocessing,
    data: Dataset,
    seed: int,
    output: str | None = None,
) -> Source:
    """``path``: an ONNX file, weights for ``arch``, or None for ``arch`` from scratch; ``output``:
    which one of a file's several outputs.

    Raises ``UsageError`` and ``CannotCertify``.
    """
    shape = tuple(data.images.shape[1:])
    if path is None and arch is None:
        raise UsageError("MODEL: give a file to fine-tune, or --arch for a network from scratch")
    if arch is None or ":" in arch:
        if path is None:
            raise UsageError(f"--arch {arch}: goes with a .safetensors file; give it as MODEL")
        source = ModelSource(path, weights, arch, output)
        return Source(open_model(source, preprocessing, image_shape=shape), True)
    if output is not None:
        raise UsageError(f"--output-name {output}: --arch {arch} has one output; leave it out")
    if path is not None and weights is not None:
        raise UsageError(f"{path.name}: holds the weights of --arch {arch}; leave out {weights}")
    model = architectures.build(arch, shape, data.classes, seed)
    given = path or weights
    if given is not None and given.suffix not in (".safetensors", *STATE_DICTS):
        raise UsageError(
            f"{given.name}: --arch {arch} takes its weights from a .safetensors file or a state "
            f"dict ({', '.join(STATE_DICTS)}); fine-tune an ONNX file without --arch"
        )
    files = {} if given is None else {given.name: replace_weights(model, given, arch)}
    return Source(Model(as_model(model, arch, files), preprocessing), given is not None)


def as_model(model: onnx.ModelProto, name: str, files: dict[str, str] | None = None) -> LoadedModel:
    """A graph that no file holds, as if it were loaded; ``files``: those its weights are of."""
    check(model, name)
    reading = read(model, name)
    return LoadedModel(
        network=network_of(reading, name),
        path=Path(name),
        files=files or {},
        format="architecture",
        opset=opset(model),
        input_name=reading.input_name,
        output_name=reading.output_name,
        stripped=reading.stripped,
        operators=reading.operators,
        runtime_bytes=model.SerializeToString(),
        double=reading.double,
        any_batch=reading.any_batch,
    )


def make_trainable(model: Model, recipe: Recipe, data: Dataset) -> tuple[Trainable, Rewritten]:
    """The model's parameters and thresholds, behind the model's preprocessing.

    Raises ``CannotCertify`` for a network that no training bound covers.
    """
    loaded = model.loaded
    if joints := loaded.network.joints_told:
        raise CannotCertify(
            f"{model.name}: cannot be fine-tuned: it has joints ({joints}), which the bounds of "
            "training do not cover; lipcert certify takes it as it is"
        )
    rewritten = rewrite(
        loaded.runtime_bytes,
        model.name,
        recipe.activation,
        recipe.thresholds,
        np.zeros(loaded.network.in_shape, dtype=np.float64 if loaded.double else np.float32),
    )

    wanted = architectures.ARCHITECTURES.get(model.name)
    scratch = loaded.format == "architecture"

    def preprocessed(network: Network) -> Network:
        return replace(model, loaded=replace(loaded, network=network)).on_images(
            data.images.shape[1:]
        )

    if scratch and isinstance(wanted, architectures.PatchArchitecture):
        patches = PatchTrainable(rewritten.model, model.name, preprocessed, wanted)
        return patches, rewritten
    return Trainable(rewritten.model, model.name, preprocessed), rewritten
