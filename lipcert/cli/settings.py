"""Between the commands and ``lipcert.config``: which keys there are, and what they set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lipcert.config import Keys, Kind, Setting, Value, recipe
from lipcert.errors import UsageError

# Not settings: they ask for something once.
_ONCE = {"help", "debug", "show_config", "version", "allow_code", "config"}
# Names a file of settings, where a command has it.
_RECIPE = "--config"
# What may name a factory, whose code is run.
_CODE = ("arch", "data", "train_data")
_ALLOW = "allow_code"
_PATHS = {
    "--output", "--to", "--log-file", "--data", "--data-dir", "--weights", "--classes", "--labels",
    "--label-map", "--indices", "--baseline", "--train-data", "--model", "--config",
}  # fmt: skip
# Its formats are others than a report's, and all its input is on the command line.
_WITHOUT = {"compare"}

Found = Mapping[str, Setting]


def keys(group: Any) -> Keys:
    """Every option that can be configured, of any command, by its name with underscores."""
    kinds: dict[str, Kind] = {}
    for command in _commands(group):
        for key, option in _options(command).items():
            # Where one command takes several and another one, the file may hold several.
            if kinds.get(key) != "list":
                kinds[key] = _kind(option)
    return kinds


def recipe_settings(group: Any, arguments: Sequence[str]) -> dict[str, Setting]:
    """What the file sets that ``--config`` names; nothing without it, or where the command has no
    such option, which says so itself."""
    command = _command_in(group, arguments)
    if command is None or not any(_RECIPE in option.opts for option in command.params):
        return {}
    named = [*pairwise(arguments), *(part.split("=", 1) for part in arguments if "=" in part)]
    path = next((value for option, value in named if option == _RECIPE), None)
    own = {key: _kind(option) for key, option in _options(command).items()}
    return {} if path is None else recipe(own, Path(path))


def _command_in(group: Any, arguments: Sequence[str]) -> Any:
    """The command of a command line; None where it has none that is configured."""
    start = next((k for k, part in enumerate(arguments) if not part.startswith("-")), 0)
    name = arguments[start] if arguments else ""
    command = group.commands.get(name)
    return None if hasattr(command, "commands") or name in _WITHOUT else command


def default_map(group: Any, found: Found) -> dict[str, Any]:
    """The settings by command, in the form that typer looks its defaults up in."""
    made: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            made[name] = default_map(command, found)
        elif name not in _WITHOUT:
            made[name] = {
                option.name: _value(option, found[key])
                for key, option in _options(command).items()
                if key in found
            }
    return made


def _value(option: Any, setting: Setting) -> Value:
    """A list for an option that is given once is one text with commas."""
    value = setting.value
    return ",".join(value) if isinstance(value, list) and not option.multiple else value


def check_paths(arguments: Sequence[str]) -> None:
    """Raises ``UsageError`` for an empty path, as a variable leaves it that a shell does not know:
    it would be the working folder."""
    for option, value in pairwise(arguments):
        if option in _PATHS and not value.strip():
            raise UsageError(f"{option} {value!r}: is empty; name a path, or leave {option} out")


def check_code(group: Any, arguments: Sequence[str], found: Found) -> None:
    """Raises ``UsageError`` where the command in ``arguments`` would run code that a file or the
    environment names, without ``--allow-code`` on the command line; ``audit`` has no such option,
    as it looks into folders of other people."""
    command = _command_in(group, arguments)
    if command is None:
        return
    name, *rest = arguments[next(k for k, a in enumerate(arguments) if not a.startswith("-")) :]
    defaults = default_map(group, found)[name]
    context = command.make_context(name, rest, resilient_parsing=True, default_map=defaults)
    if context.params.get(_ALLOW):
        return
    allowed = any(option.name == _ALLOW for option in command.params)
    for key, option in _options(command).items():
        if key not in _CODE or key not in found:
            continue
        source = context.get_parameter_source(option.name)
        value = context.params.get(option.name)
        if source is None or source.name != "DEFAULT_MAP" or not _is_code(key, value):
            continue
        flag = "--" + key.replace("_", "-")
        remedy = f"give {flag} {value} on the command line if you trust it"
        if allowed:
            remedy += ", or --allow-code"
        raise UsageError(f"{found[key].source}: sets {key} to {value}, which is code: {remedy}")


def _is_code(key: str, value: object) -> bool:
    """Whether a loader could take it for ``package.module:factory``: of data no path."""
    text = str(value or "")
    return ":" in text and (key == "arch" or not {"/", "\\"} & set(text))


def show(group: Any, arguments: Sequence[str], found: Found) -> str:
    """Every setting of the command in ``arguments`` as TOML, each with its source."""
    rest = [argument for argument in arguments if argument != "--show-config"]
    name = rest[0] if rest else ""
    command = group.commands.get(name)
    if command is None or hasattr(command, "commands") or name in _WITHOUT:
        raise UsageError("--show-config: goes with a command, as in lipcert certify --show-config")
    defaults = default_map(group, found)[name]
    context = command.make_context(name, rest[1:], resilient_parsing=True, default_map=defaults)
    lines = [f"# lipcert {name}"]
    for key, option in _options(command).items():
        value = context.params.get(option.name)
        source = context.get_parameter_source(option.name).name
        where = "command line" if source == "COMMANDLINE" else "default"
        if source == "DEFAULT_MAP":
            where = found[key].source
        written = key.replace("_", "-")
        if value in (None, (), []):
            lines.append(f"# {written} is not set")
        else:
            lines.append(f"{written} = {_toml(value)}  # {where}")
    return "\n".join(lines) + "\n"


def _commands(group: Any) -> Iterator[Any]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command)
        elif name not in _WITHOUT:
            yield command


def _options(command: Any) -> dict[str, Any]:
    """The options of a command by key: the long name, with underscores."""
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in _ONCE]
    return {max(o.opts, key=len).removeprefix("--").replace("-", "_"): o for o in options}


def _kind(option: Any) -> Kind:
    if option.is_flag:
        return "flag"
    return "list" if option.multiple else "value"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return json.dumps([str(part) for part in value], ensure_ascii=False)
    return json.dumps(str(value), ensure_ascii=False)
