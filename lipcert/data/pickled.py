"""Unpickling without executing: numbers, strings, containers and numeric numpy arrays.

A pickle builds an object by calling globals that it names. The few that a pickled array names are
played here by stand-ins that only look at bytes, so that not even numpy's own state setters run on
what a stranger wrote; every other global is refused.
"""

import io
import pickle
import re
from typing import Any

import numpy as np

from lipcert.data.dataset import Array
from lipcert.errors import CannotCertify
from lipcert.mistaken import mistaken


def unpickle(data: bytes, source: str) -> Any:
    """The object pickled in `data`, its arrays as `PickledArray`; text of Python 2 as latin-1.

    Raises `CannotCertify` naming the first forbidden global, or for a damaged pickle.
    """
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except _Forbidden as error:
        raise CannotCertify(
            f"{source}: this pickle asks for {error}, which plain arrays do not need; "
            "nothing of it was executed"
        ) from error
    except Exception as error:  # a damaged pickle can fail with nearly any type
        raise CannotCertify(
            f"{source}: not a sound pickle{mistaken(data) or f': {error}'}"
        ) from error


class PickledArray:
    """Stands in for numpy.ndarray while unpickling; `array` is the real one."""

    array: Array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.array = _from_bytes(raw, dtype, shape, "F" if is_fortran else "C")


class _PickledDtype:
    """Stands in for numpy.dtype: one of the plain integers and floats, in either byte order."""

    def __init__(self, code: str, _align: bool = False, _copy: bool = False) -> None:
        if not re.fullmatch(r"[iuf][1248]", code):
            raise _Forbidden(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Forbidden(Exception):
    pass


def _from_bytes(data: Any, dtype: _PickledDtype, shape: Any, order: Any) -> Array:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(_subtype: Any, _shape: Any, _code: Any) -> PickledArray:
    return PickledArray()


def _frombuffer(data: Any, dtype: _PickledDtype, shape: Any, order: Any) -> PickledArray:
    pickled = PickledArray()
    pickled.array = _from_bytes(data, dtype, shape, order)
    return pickled


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Forbidden(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
    **{
        (core + module, stand_in.__name__): stand_in
        for core in ("numpy.core", "numpy._core")  # numpy 1 and 2
        for module, stand_in in ((".multiarray", _reconstruct), (".numeric", _frombuffer))
    },
    **{
        (module, plain.__name__): plain
        for module in ("builtins", "__builtin__")  # Python 3 and 2
        for plain in (dict, list, bytes, str)
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return _ALLOWED[module, name]
