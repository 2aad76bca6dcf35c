"""``lipcert doctor``: is everything here that a run needs?"""

from __future__ import annotations

import json as jsons
import platform
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.shared import DataDir, Debug
from lipcert.config import file_in
from lipcert.errors import CannotCertify, UsageError
from lipcert.version import VERSION

_NEEDED = ("torch", "numpy", "onnx", "onnxruntime", "safetensors", "typer", "rich", "platformdirs")
_USEFUL = ("onnx2torch", "onnxscript", "pillow", "pyarrow", "torchvision")


def doctor(
    data_dir: DataDir = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show versions, devices, datasets, cache and configuration; exit code 3 if any is missing.

    Example:

      lipcert doctor
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(f"--data-dir or LIPCERT_DATA_DIR {data_dir}: there is no such folder")
    found, problems = dict(_versions()), list(_problems())
    if not problems:
        found |= dict(_devices()) | dict(_data(data_dir))
    found["configuration"] = file_in(Path()) or "none"
    if json:
        typer.echo(jsons.dumps(found | {"problems": problems}, indent=2, ensure_ascii=False))
    else:
        width = max(map(len, found))
        typer.echo("\n".join(f"{name.ljust(width)}  {value}" for name, value in found.items()))
    if problems:
        raise CannotCertify(f"{'; '.join(problems)}; install lipcert again with pip")


def _versions() -> Iterator[tuple[str, str]]:
    yield "lipcert", VERSION
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in (*_NEEDED, *_USEFUL):
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"


def _problems() -> Iterator[str]:
    for package in _NEEDED:
        try:
            import_module(package)
        except Exception as error:
            yield f"{package} cannot be imported ({type(error).__name__}: {error})"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus = ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names))
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield "torch build", build
    yield "devices", f"cpu with {torch.get_num_threads()} threads" + (f", {gpus}" if gpus else "")


def _data(data_dir: Path | None) -> Iterator[tuple[str, str]]:
    from lipcert.data import available
    from lipcert.data.named import cache_folder

    yield "cache", str(cache_folder() or "none, as there is no home folder; set XDG_CACHE_HOME")
    yield "data: digits", "embedded"
    for name, split, where in available(data_dir):
        yield f"data: {name} {split}", str(where or "not here")
