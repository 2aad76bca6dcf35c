"""The files that a run hands back: a model that any runtime loads, its weights, its recipe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from onnx import numpy_helper
from torch import Tensor

from lipcert.errors import InternalError
from lipcert.loading.cross_check import as_deployed
from lipcert.loading.onnx_file import check
from lipcert.loading.runtime import Runtime
from lipcert.loading.weights import FLOATS, GRAPH, graph_digest
from lipcert.train.checkpoint import write_bytes
from lipcert.train.trainable import Trainable

MODEL, WEIGHTS, RECIPE = "model.onnx", "model.safetensors", "recipe.json"

_LARGEST_DIFFERENCE = 1e-4


def export(
    trainable: Trainable, weights: dict[str, Tensor], folder: Path, samples: Tensor
) -> dict[str, str]:
    """Write ``model.onnx`` and ``model.safetensors``, which is loadable over it; their sha256.

    The file is run by onnxruntime on ``samples`` before it is written: another result than that of
    the network that was trained, behind the head that reading left out, is an ``InternalError``.
    """
    model = trainable.exported({name: tensor.cpu() for name, tensor in weights.items()})
    check(model, MODEL)
    content = model.SerializeToString()
    _compare(trainable, weights, content, samples)
    tensors = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
        if tensor.data_type in FLOATS and tensor.dims
    }
    files = {MODEL: content, WEIGHTS: safetensors.torch.save(tensors, {GRAPH: graph_digest(model)})}
    for name, data in files.items():
        write_bytes(folder / name, data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def recipe_text(record: dict[str, Any]) -> str:
    """The content of ``recipe.json``."""
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_recipe(folder: Path, record: dict[str, Any]) -> None:
    write_bytes(folder / RECIPE, recipe_text(record).encode())


@torch.no_grad()
def _compare(
    trainable: Trainable, weights: dict[str, Tensor], content: bytes, samples: Tensor
) -> None:
    before = trainable.weights()
    trainable.load_weights(weights)
    inputs, expected = trainable.input_and_logits(samples)
    trainable.load_weights(before)
    runtime = Runtime(content, MODEL)
    inputs = inputs.double() if trainable.reads_double else inputs
    answers = torch.from_numpy(as_deployed(trainable.stripped, expected.cpu().double().numpy()))
    for image, answer in zip(inputs.cpu(), answers, strict=True):
        found = torch.from_numpy(runtime.run(image.numpy(), trainable.output_name)).reshape(-1)
        difference = float((found.double() - answer).abs().max())
        scale = max(1e-6, float(answer.abs().max()))
        if not difference <= _LARGEST_DIFFERENCE * scale:
            raise InternalError(
                f"{MODEL}: differs by {difference:g} from the network that was trained; please "
                "report this"
            )
