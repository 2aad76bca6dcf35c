"""A second opinion on what a file computes: onnx2torch, where it can read the file.

It never decides a run by failing; only numbers of its own that differ do.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch

from lipcert.loading.onnx_file import one_line


def second_logits(
    content: bytes, inputs: Sequence[np.ndarray[Any, Any]]
) -> tuple[list[np.ndarray[Any, Any]] | None, str]:
    """The outputs for each input (one at a time), or None and why they are not available."""
    model = onnx.ModelProto.FromString(content)
    if len(model.graph.output) != 1:
        return None, "not available: the graph has several outputs"
    if any(a.name == "value" and a.f for n in model.graph.node if n.op_type == "Pad"
           for a in n.attribute):  # fmt: skip
        return None, "not available: it takes the value of an old Pad for 0"
    if any(_resized_otherwise(node) for node in model.graph.node):
        return None, "not available: it reads Resize by the rule of torch, whatever the file says"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module = _converter()(model).eval()
            results = [module(torch.from_numpy(x)) for x in inputs]
    except Exception as error:
        return None, f"not available: {type(error).__name__}: {one_line(error)}"
    if not all(isinstance(result, torch.Tensor) for result in results):
        # Where the output is one of several results of a node, it hands over all of them.
        return None, "not available: the output is one result of several"
    return [result.numpy() for result in results], "compared"


def _resized_otherwise(node: onnx.NodeProto) -> bool:
    """Whether a Resize has other coordinates than those that onnx2torch gives every one: of the
    nearest, those of the asymmetric rule, rounded down; else those of half pixels or of corners."""
    if node.op_type != "Resize":
        return False
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    rule = given.get("coordinate_transformation_mode", b"half_pixel")
    if given.get("mode", b"nearest") == b"nearest":
        return bool(rule != b"asymmetric" or given.get("nearest_mode", b"") != b"floor")
    return bool(rule not in (b"half_pixel", b"pytorch_half_pixel", b"align_corners"))


@cache
def _converter() -> Callable[[onnx.ModelProto], torch.nn.Module]:
    with _torchvision():
        from onnx2torch import convert
    return convert  # type: ignore[no-any-return]


class _Absent(ModuleType):
    """Stands for a module whose contents are named on import and never used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@contextmanager
def _torchvision() -> Iterator[None]:
    """Where torchvision is absent, or does not fit torch, a stand-in for the time of an import:
    onnx2torch needs it for detection operators alone."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        names = ("torchvision", "torchvision.ops")
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules.update({name: _Absent(name) for name in names})
        try:
            yield
        finally:
            for name in names:
                sys.modules.pop(name, None)
    else:
        yield
