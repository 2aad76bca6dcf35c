"""Certified L2 robustness of pretrained classifiers by local Lipschitz bounds.

>>> import lipcert
>>> model = lipcert.load("model.onnx", mean=(0.1307,), std=(0.3081,))
>>> result = lipcert.certify(model, images, labels, eps=["0.5", "36/255"])
>>> result.summary["certified_accuracy"]

torch is imported when something of this is first used, not before.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcert.api import certify, load
    from lipcert.run import Model, Result

__version__ = "0.1.0"
__all__ = ["Model", "Result", "__version__", "certify", "load"]

# Two functions share their names with the packages that do the work, and Python binds a package
# as an attribute here whenever it is imported. So the packages themselves can be called.
_CALLABLE = ("load", "certify")


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        api = importlib.import_module("lipcert.api")
        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Lipcert(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLABLE and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _CALLABLE:
            return importlib.import_module(f"lipcert.{name}")
        if name in __all__:
            return getattr(importlib.import_module("lipcert.run"), name)
        raise AttributeError(f"module 'lipcert' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Lipcert
