"""A safetensors file and the user's own ``package.module:factory``, which is run and exported."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import architectures
from lipcert.loading.onnx_file import LARGEST_FILE, one_line
from lipcert.loading.runtime import Runtime
from lipcert.loading.weights import (
    differences,
    fitted,
    read_weights,
    refuse,
    replace_weights,
)


def from_weights(
    arch: str, weights: Path, input_shape: tuple[int, ...]
) -> tuple[onnx.ModelProto, str]:
    """The graph of weights alone, and the file's sha256: of an architecture by its name, or of the
    module of ``package.module:factory``. Raises what ``build_model`` and ``export`` raise."""
    if ":" in arch:
        module, digest = build_model(arch, weights, input_shape)
        return export(module, arch, input_shape), digest
    if arch not in architectures.ARCHITECTURES:
        raise UsageError(
            f"{arch!r}: expected package.module:factory, or one of "
            f"{', '.join(architectures.ARCHITECTURES)}"
        )
    tensors, _ = read_weights(weights)
    rows = [tensors[key].shape[0] for key in tensors if key.split(".")[-2:] == ["logits", "bias"]]
    if not rows:
        raise CannotCertify(f"{weights.name}: holds no logits.bias, as the weights of {arch} do")
    model = architectures.build(arch, input_shape, int(rows[0]), seed=0)
    return model, replace_weights(model, weights, arch)


def build_model(arch: str, weights: Path, input_shape: tuple[int, ...]) -> tuple[nn.Module, str]:
    """``factory()`` with the file's weights, in evaluation mode, and the file's sha256.

    ``UsageError`` for whatever goes wrong in the user's code, ``CannotCertify`` for weights that
    do not fit it to the last tensor.
    """
    tensors, digest = read_weights(weights)
    module = _call(arch)
    state = {key: (tuple(value.shape), value.dtype) for key, value in module.state_dict().items()}
    tensors = with_tied(module, fitted(tensors, state))
    refuse(differences(tensors, state), weights.name, arch)
    module.load_state_dict({key: tensors[key] for key in state})
    module.eval()
    try_on(module, arch, input_shape)
    return module, digest


def try_on(module: nn.Module, name: str, input_shape: tuple[int, ...]) -> None:
    """Raises ``UsageError`` where the module does not take a sample of that shape."""
    try:
        with torch.no_grad():
            module(torch.zeros(1, *input_shape))
    except Exception as error:
        raise UsageError(
            f"{name}: the model does not take {[1, *input_shape]}: {_told(error)}"
        ) from error


def with_tied(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with those beside that the module shares with one of them under another name, of
    which ``safetensors.torch.save_model`` keeps a single one."""
    shared: dict[tuple[object, ...], list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if value.numel():
            key = value.data_ptr(), value.dtype, tuple(value.shape), value.stride()
            shared.setdefault(key, []).append(name)
    found = dict(tensors)
    for names in shared.values():
        there = [name for name in names if name in tensors]
        if len(there) == 1:
            found |= dict.fromkeys(names, tensors[there[0]])
    return found


def _call(arch: str) -> nn.Module:
    name, _, factory = arch.partition(":")
    if not name or not factory.isidentifier():
        raise UsageError(f"{arch!r}: expected package.module:factory")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = getattr(importlib.import_module(name), factory)()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{arch}: {_told(error)}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{arch}: it returns a {type(module).__name__}, not a torch.nn.Module")
    return module


def export(module: nn.Module, arch: str, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """The module as ONNX, by torch's exporter, for a batch of one."""
    try:
        # The exporter reports its steps to people, on both streams.
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            example = (torch.zeros(1, *input_shape),)
            program = torch.onnx.export(module, example, dynamo=True, verbose=False)
    except ImportError as error:
        raise UsageError(f"{arch}: the export needs onnxscript; pip install onnxscript") from error
    except Exception as error:
        raise CannotCertify(f"{arch}: torch cannot export the model: {_told(error)}") from error
    assert program is not None
    model = program.model_proto
    if model.ByteSize() > LARGEST_FILE:
        raise CannotCertify(f"{arch}: the exported model is larger than 2 GiB")
    _check_export(module, model.SerializeToString(), arch, input_shape)
    return model


def _check_export(
    module: nn.Module, content: bytes, arch: str, input_shape: tuple[int, ...]
) -> None:
    """The export must compute what the module does: nothing after it looks at the module."""
    runtime = Runtime(content, arch)
    samples = torch.rand(4, 1, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for sample in samples:
            expected = np.asarray(module(sample), dtype=np.float64)
            found = runtime.run(sample.numpy())
            scale = max(1e-6, float(np.abs(expected).max()))
            if found.shape != expected.shape or not np.abs(found - expected).max() <= 1e-4 * scale:
                raise CannotCertify(f"{arch}: the exported model differs from the module")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
