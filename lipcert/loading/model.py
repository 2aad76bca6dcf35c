"""From files to a network: ONNX, ONNX with other weights, or safetensors with a factory."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from lipcert.errors import UsageError
from lipcert.loading.factory import build_model, export, try_on
from lipcert.loading.onnx_file import check, deployed_part, open_onnx, opset
from lipcert.loading.operator_row import OperatorRow
from lipcert.loading.reader import network_of, read
from lipcert.loading.weights import replace_weights
from lipcert.network import Network


@dataclass(frozen=True)
class LoadedModel:
    """A file's function of one sample, and what it takes to run the file itself.

    ``network`` is float64, as the file has it: not simplified, no preprocessing added.
    ``files`` has the sha256 of every file read. ``stripped`` names a softmax left out at the end.
    ``runtime_bytes`` is the deployed model, a whole ONNX file with the weights in use, and without
    what the output does not need, so that running it takes no more than was allowed; it takes
    ``any_batch`` or one sample at a time, in float64 (``double``) or float32.
    """

    network: Network
    path: Path
    files: dict[str, str]
    format: str
    opset: int
    input_name: str
    output_name: str
    stripped: str | None
    operators: tuple[OperatorRow, ...]
    runtime_bytes: bytes
    double: bool
    any_batch: bool


def load_model(
    path: Path,
    *,
    weights: Path | None = None,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    output: str | None = None,
) -> LoadedModel:
    """Reads ``model.onnx``, perhaps with ``weights`` from a safetensors file, or
    ``weights.safetensors`` with ``arch="package.module:factory"`` and the ``input_shape``, without
    the batch, of its images. ``output`` names the logits of a graph with several outputs.

    ``UsageError``: a path or an option that does not fit, an error in the factory.
    ``CannotCertify``: a broken file, weights that do not fit, anything not supported, all listed.
    """
    path = Path(path)
    files: dict[str, str] = {}
    if path.suffix == ".safetensors":
        if arch is None or input_shape is None:
            raise UsageError(
                f"{path.name}: weights alone are no model; add the factory (package.module:name) "
                "and the input shape, or give an ONNX file"
            )
        if weights is not None:
            raise UsageError(f"{path.name} holds the weights already; leave out {weights}")
        module, files[path.name] = build_model(arch, path, input_shape)
        model, kind = export(module, arch, input_shape), "safetensors+arch"
    elif arch is not None:
        raise UsageError(f"{path.name}: a factory ({arch}) goes with a .safetensors file")
    else:
        opened = open_onnx(path)
        model, files, kind = opened.model, opened.files, "onnx"
        if weights is not None:
            weights = Path(weights)
            files[weights.name] = replace_weights(model, weights, path.name)
    if arch is not None or weights is not None:
        check(model, path.name)
    return _loaded(model, path, files, kind, output)


def load_module(module: nn.Module, input_shape: tuple[int, ...]) -> LoadedModel:
    """A module as it is, by torch's export to ONNX for one sample of ``input_shape``; the export
    must compute what the module does.

    A copy on the CPU is put in evaluation mode; the module itself stays as it is. The name is that
    of its class, and ``files`` has the sha256 of the export. ``UsageError``: it does not take such
    a sample, or its weights are not float32. ``CannotCertify``: it cannot be exported, or anything
    in it is not supported, all listed.
    """
    name = type(module).__name__
    other = {str(p.dtype) for p in module.parameters() if p.dtype != torch.float32}
    if other:
        raise UsageError(
            f"{name}: has weights of {', '.join(sorted(other))}; give module.float(), or export it "
            "to an ONNX file in its own type and load that"
        )
    kept = copy.deepcopy(module).cpu().eval()
    try_on(kept, name, input_shape)
    model = export(kept, name, input_shape)
    check(model, name)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return _loaded(model, Path(name), {name: digest}, "torch")


def _loaded(
    model: onnx.ModelProto,
    path: Path,
    files: dict[str, str],
    kind: str,
    output: str | None = None,
) -> LoadedModel:
    reading = read(model, path.name, output)
    return LoadedModel(
        network=network_of(reading, path.name),
        path=path,
        files=files,
        format=kind,
        opset=opset(model),
        input_name=reading.input_name,
        output_name=reading.output_name,
        stripped=reading.stripped,
        operators=reading.operators,
        runtime_bytes=deployed_part(model, reading.output_name).SerializeToString(),
        double=reading.double,
        any_batch=reading.any_batch,
    )


def affordable(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The part of a checked model that its output needs, once it is known what running it takes.

    Raises ``CannotCertify`` where that is more than ``allowance`` has, or cannot be told.
    """
    reading = read(model, name)
    network_of(reading, name)
    return deployed_part(model, reading.output_name)


def inspect_operators(path: Path) -> tuple[OperatorRow, ...]:
    """Every node that the first output needs, supported or not, with the reason; only a file that
    cannot be opened is refused."""
    path = Path(path)
    return read(open_onnx(path).model, path.name).operators
