"""Weights from a safetensors file, which holds numbers and nothing that runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
import safetensors.torch
import torch
from torch import Tensor

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading.onnx_file import LARGEST_FILE, one_line

FLOATS = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors by name and the file's sha256."""
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise UsageError(f"{path}: {what}; give the path of a .safetensors file")
    if path.stat().st_size > LARGEST_FILE:
        raise CannotCertify(f"{path.name}: larger than 2 GiB, which is not read")
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:
        raise CannotCertify(f"{path.name}: not a safetensors file: {one_line(error)}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CannotCertify(f"{path.name}: tensor {name!r} has values that are not finite")
    return tensors, hashlib.sha256(content).hexdigest()


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
    if told:
        listed = "".join(f"\n  {line}" for line in told)
        raise CannotCertify(f"{weights} does not fit {model}:{listed}")


def replace_weights(model: onnx.ModelProto, path: Path, name: str) -> str:
    """Puts the file's tensors in the place of the model's initializers; returns its sha256.

    All floating initializers with at least one axis must be there, and nothing but initializers.
    """
    tensors, digest = read_weights(path)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = {
        key: (tuple(tensor.dims), FLOATS[tensor.data_type])
        for key, tensor in initializers.items()
        if tensor.data_type in FLOATS and (tensor.dims or key in tensors)
    }
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
