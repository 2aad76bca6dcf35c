"""Settings outside the command line: ``lipcert.toml``, ``[tool.lipcert]``, and ``LIPCERT_*``.

A key is the long name of an option, ``min-certified`` or ``min_certified``, and means the same in
every command that has it. The command line outranks a recipe that ``--config`` names, that the
environment, that the file, that the default. Files are read from the working folder alone.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lipcert.errors import UsageError

FILE = "lipcert.toml"
PROJECT = "pyproject.toml"
PREFIX = "LIPCERT_"
# Of lipcert's own tests and benchmarks, which run commands that must not take them for settings.
_OWN = ("LIPCERT_TEST_", "LIPCERT_SHARED_DIR")

Kind = Literal["flag", "list", "value"]
Keys = Mapping[str, Kind]
Value = str | bool | list[str]

# What only whoever types the command may allow: code that settings name.
_ALLOW, _ALLOWED = "allow_code", "{}: is no setting; give --allow-code on the command line"


@dataclass(frozen=True)
class Setting:
    """What an option is set to, and by what: a file's name or a variable's."""

    value: Value
    source: str


def settings(keys: Keys, folder: Path, environment: Mapping[str, str]) -> dict[str, Setting]:
    """What the file in ``folder`` sets, and what the environment sets instead.

    ``keys``: every option's name, with underscores, and its kind. Raises ``UsageError`` for an
    unknown key, with the nearest one, for a value of the wrong kind, and for a damaged file.
    """
    return dict(_from_file(keys, folder)) | dict(_from_environment(keys, environment))


def recipe(keys: Keys, path: Path) -> dict[str, Setting]:
    """What the file sets that ``--config`` names.

    Raises ``UsageError`` as ``settings`` does, and where there is no such file.
    """
    table = _load(path)
    if table is None:
        raise UsageError(f"--config {path}: no such file")
    return dict(_read(keys, path.name, table))


def file_in(folder: Path) -> str | None:
    """The file that is read there, as one names it; None without any.

    Raises ``UsageError`` where there are two, or where one is damaged.
    """
    return next(_tables(folder), (None, {}))[0]


def _from_file(keys: Keys, folder: Path) -> Iterator[tuple[str, Setting]]:
    for source, table in _tables(folder):
        yield from _read(keys, source, table)


def _read(keys: Keys, source: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Setting]]:
    for written, value in table.items():
        key = written.replace("-", "_")
        if key == _ALLOW:
            raise UsageError(_ALLOWED.format(f"{source}: {written}"))
        # A table named like a command may be meant for it, also where a flag is called so.
        if isinstance(value, dict) and keys.get(key, "flag") == "flag":
            raise UsageError(
                f"{source}: unknown key {written!r}, a table: settings stand at the top, for "
                'every command, such as eps = "0.1"'
            )
        if key not in keys:
            nearest = _nearest(key, keys).replace("_", "-")
            raise UsageError(f"{source}: unknown key {written!r}; did you mean {nearest}?")
        yield key, Setting(_of_kind(keys[key], value, f"{source}: {written}"), source)


def _tables(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The one table of settings; nothing where there is none."""
    own, project = _load(folder / FILE), _load(folder / PROJECT)
    tool = (project or {}).get("tool", {})
    table = tool.get("lipcert") if isinstance(tool, dict) else None
    name = f"[tool.lipcert] in {PROJECT}"
    if own is not None and table is not None:
        raise UsageError(f"{FILE} and {name}: both configure lipcert; keep one of them")
    if own is not None:
        yield FILE, own
    elif isinstance(table, dict):
        yield name, table
    elif table is not None:
        raise UsageError(f"{PROJECT}: tool.lipcert must be a table, [tool.lipcert]")


def _load(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        # As written, so that 0.60 is exactly sixty hundredths.
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path.name}: cannot be read: {error}; correct it") from error
    except RecursionError:
        raise UsageError(f"{path.name}: cannot be read: nested too deeply; correct it") from None


def _from_environment(keys: Keys, environment: Mapping[str, str]) -> Iterator[tuple[str, Setting]]:
    for name, text in environment.items():
        if not name.startswith(PREFIX) or name.startswith(_OWN):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key == _ALLOW:
            raise UsageError(_ALLOWED.format(f"environment: {name}"))
        if key not in keys:
            nearest = PREFIX + _nearest(key, keys).upper()
            raise UsageError(f"environment: unknown variable {name}; did you mean {nearest}?")
        if text:
            yield key, Setting(_from_text(keys[key], text, name), name)


def _from_text(kind: Kind, text: str, where: str) -> Value:
    if kind == "flag":
        answers = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in answers:
            raise UsageError(f"{where}={text!r}: give 1 or 0, true or false")
        return answers[text.lower()]
    return [text] if kind == "list" else text


def _of_kind(kind: Kind, value: Any, where: str) -> Value:
    if kind == "flag":
        if not isinstance(value, bool):
            raise UsageError(f"{where} = {value!r}: give true or false")
        return value
    if kind == "list":
        parts = value if isinstance(value, list) else [value]
        return [_text(part, where) for part in parts]
    # Several numbers, of --mean for one, are one text with commas on the command line.
    if isinstance(value, list):
        return ",".join(_text(part, where) for part in value)
    return _text(value, where)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{where} = {value!r}: give text or a number")
    return str(value)


def _nearest(key: str, keys: Keys) -> str:
    return difflib.get_close_matches(key, list(keys), n=1, cutoff=0.0)[0]
