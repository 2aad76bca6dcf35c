"""Weights from a safetensors file, or a state dict of torch read as numbers alone, so that nothing
in it runs."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import safetensors.torch
import torch
from torch import Tensor

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading.onnx_file import LARGEST_FILE, one_line
from lipcert.mistaken import mistaken

FLOATS = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}

HALVES, WIDE = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
# What wrappers put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Differences that a message lists.
_SHOWN = 8
# Under what checkpoints keep the state dict.
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net", "params", "weights")
STATE_DICTS = (".pt", ".pth", ".ckpt")

# Under this key a file of weights says which graph it was written with.
GRAPH = "lipcert.graph"
# As lipcert 0.1.0 before its release wrote it.
_GRAPH_BEFORE = "graph"


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors by name and the file's sha256."""
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {what}; give the path of a .safetensors file or a state dict")
    if path.stat().st_size > LARGEST_FILE:
        raise CannotCertify(f"{path.name}: larger than 2 GiB, which is not read")
    content = path.read_bytes()
    tensors = _state_dict(content, path) if path.suffix in STATE_DICTS else _safe(content, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CannotCertify(f"{path.name}: tensor {name!r} has values that are not finite")
    return tensors, hashlib.sha256(content).hexdigest()


def _safe(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as error:
        said = mistaken(content) or f": {one_line(error)}; give a .safetensors file"
        raise CannotCertify(f"{path.name}: not a safetensors file{said}") from error


def _state_dict(content: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors by name, as ``torch.save(model.state_dict())`` writes them, perhaps under
    one of the usual names in a checkpoint; never a pickled module, which would run code."""
    _check_unpacked(content, path)
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        if said := mistaken(content):
            raise CannotCertify(f"{path.name}: not a state dict{said}") from error
        raise CannotCertify(
            f"{path.name}: holds more than a state dict, which is not read as it could run code; "
            f"save model.state_dict() as .safetensors, or export the model to ONNX "
            f"({one_line(error)[:120]})"
        ) from error
    for key in CHECKPOINT_KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):  # fmt: skip
        raise CannotCertify(f"{path.name}: no state dict: expected tensors by name")
    if any(value.layout != torch.strided or value.is_quantized for value in found.values()):
        raise CannotCertify(f"{path.name}: has sparse or quantised tensors; store them dense")
    return {name: value.detach() for name, value in found.items()}


def _check_unpacked(content: bytes, path: Path) -> None:
    """A state dict is an archive: what it unpacks to must not pass what a file may hold."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return
    if size > LARGEST_FILE:
        raise CannotCertify(f"{path.name}: unpacks to more than 2 GiB, which is not read")


def fitted(
    found: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> dict[str, Tensor]:
    """The tensors under the names and in the types that are wanted, as far as no number changes.

    A prefix of a wrapper (DataParallel, torch.compile, Lightning) goes where all names have it, and
    are wanted without; float16 and bfloat16 are widened, which every number survives.
    """
    tensors = dict(found)
    for _ in PREFIXES:
        for prefix in PREFIXES:
            missing = tensors.keys() - wanted.keys()
            if missing and tensors and all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    for name, value in tensors.items():
        if name in wanted and value.dtype in HALVES and wanted[name][1] in WIDE:
            tensors[name] = value.to(wanted[name][1])
    return tensors


def differences(
    found: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> list[str]:
    """Every tensor that is missing, superfluous, or of another shape or type.

    The step counters of batch norm may be left over: no inference reads them.
    """
    told = []
    for name in sorted({*found, *wanted}):
        if name not in found:
            told.append(f"missing: {name!r} {list(wanted[name][0])}")
        elif name not in wanted:
            if not name.endswith("num_batches_tracked"):
                told.append(f"not a parameter of the model: {name!r} {list(found[name].shape)}")
        else:
            shape, dtype = wanted[name]
            if tuple(found[name].shape) != shape:
                told.append(f"{name!r} is {list(found[name].shape)}, expected {list(shape)}")
            elif found[name].dtype != dtype:
                told.append(f"{name!r} has type {found[name].dtype}, expected {dtype}")
    return told


def refuse(told: list[str], weights: str, model: str) -> None:
    """Raises ``CannotCertify`` with the first of what differs, if anything does."""
    if told:
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise CannotCertify(
            f"{weights} does not fit {model}: {'; '.join(told[:_SHOWN])}{more}; give the weights "
            "that were saved of this model"
        )


def graph_digest(model: onnx.ModelProto) -> str:
    """Of what a graph computes but for its floating numbers: nodes, in order, with the names of
    their values and their attributes, and the other initializers."""
    digest = hashlib.sha256()
    for node in model.graph.node:
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        told = (node.domain, node.op_type, list(node.input), list(node.output), attributes)
        digest.update(repr(told).encode())
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOATS:
            digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _written_with(path: Path) -> str | None:
    """The digest of the graph that fine-tuning wrote the weights with; None of other files."""
    if path.suffix in STATE_DICTS:
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return metadata.get(GRAPH, metadata.get(_GRAPH_BEFORE))


def replace_weights(model: onnx.ModelProto, path: Path, name: str) -> str:
    """Puts the file's tensors in the place of the model's initializers; returns its sha256.

    All floating initializers with at least one axis must be there, and nothing but initializers.
    A file that says which graph it was written with goes over no other, whose tensors may have the
    same names and shapes: fine-tuning changes activations. Raises ``CannotCertify``.
    """
    tensors, digest = read_weights(path)
    if _written_with(path) not in (None, graph_digest(model)):
        raise CannotCertify(
            f"{path.name}: was written with another graph than {name}, whose layers or activations "
            "are not the same; give the .onnx file that was written beside it"
        )
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = {
        key: (tuple(tensor.dims), FLOATS[tensor.data_type])
        for key, tensor in initializers.items()
        if tensor.data_type in FLOATS and (tensor.dims or key in tensors)
    }
    tensors = fitted(tensors, wanted)
    refuse(differences(tensors, wanted), path.name, name)
    for key in wanted:
        if tensors[key].dtype == torch.bfloat16:
            raw = tensors[key].contiguous().view(torch.int16).numpy().tobytes()
        else:
            raw = tensors[key].contiguous().numpy().tobytes()
        fresh = onnx.TensorProto(name=key, data_type=initializers[key].data_type, raw_data=raw)
        fresh.dims.extend(initializers[key].dims)
        initializers[key].CopyFrom(fresh)
    return digest
