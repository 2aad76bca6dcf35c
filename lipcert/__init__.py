"""Certified L2 robustness of pretrained classifiers by local Lipschitz bounds.

>>> import lipcert
>>> model = lipcert.load("model.onnx", mean=(0.1307,), std=(0.3081,))
>>> result = lipcert.certify(model, images, labels, eps=["0.5", "36/255"])
>>> result.summary["certified_accuracy"]

torch is imported when something of this is first used, not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lipcert.version import VERSION

if TYPE_CHECKING:
    from lipcert.api import certify, intervals, load
    from lipcert.result import Result
    from lipcert.run import Model

__version__ = VERSION
__all__ = ["Model", "Result", "__version__", "certify", "intervals", "load"]

_HOMES = {"certify": "api", "intervals": "api", "load": "api", "Model": "run", "Result": "result"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lipcert' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lipcert.{_HOMES[name]}"), name)
