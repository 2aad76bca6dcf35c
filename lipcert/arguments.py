"""Messages as the library says them: what the command line calls an option is an argument here."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lipcert.errors import LipcertError

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Where arrays are at hand their owner does at once what the command line has an option for.
_PHRASES = (
    (r"say which class each label is with --label-(?:offset or --label-)?map",
     "number the labels as the model's outputs are"),
    (r"give --label-offset (-?\d+)", r"add \1 to them"),
    (r"--label-map says which class each of them is", "give numbers from 0 to have it otherwise"),
    (r"; folders and archives of pictures are brought to that size by --resize \d+,\d+", ""),
)  # fmt: skip
_NAMES = {"range": "value_range", "output-name": "output", "data": "images",
          "input-shape": "image_shape"}  # fmt: skip
# Two numbers with a comma between are a pair.
_PAIR = re.compile(r"--((?:data-)?range)[ =](-?[\w.]+),(-?[\w.]+)")
_VALUE = re.compile(r"--([a-z][a-z-]*[a-z])[ =](?=['\"\d-])")
_OPTION = re.compile(r"--([a-z][a-z-]*[a-z])")


def spoken(message: str) -> str:
    """``--data-range 0,255`` as ``data_range=(0, 255)``, ``--effort 'slow'`` as ``effort='slow'``,
    and every other option as the name of its argument."""
    for said, instead in _PHRASES:
        message = re.sub(said, instead, message)
    message = _PAIR.sub(lambda m: f"{_argument(m[1])}=({m[2]}, {m[3]})", message)
    message = _VALUE.sub(lambda m: f"{_argument(m[1])}=", message)
    return _OPTION.sub(lambda m: _argument(m[1]), message)


def _argument(option: str) -> str:
    return _NAMES.get(option, option.replace("-", "_"))


def in_python(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, with its errors in the words of the library."""

    @functools.wraps(function)
    def said(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except LipcertError as error:
            raise type(error)(spoken(str(error))) from error

    return said
