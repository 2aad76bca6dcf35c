"""The state of a run on disk, whole or not at all."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcert.bounded import check_stored
from lipcert.errors import CannotCertify, UsageError

FILE = "checkpoint.pt"


@dataclass
class Progress:
    """How far a run has come: ``step`` counts batches from the start of the run; ``sums`` are the
    totals of the epoch under way, as ``Objective`` returns them; ``best`` the validation's;
    ``spent`` the seconds of all finished epochs; ``plan`` what fits into the minutes that were
    given, as ``Plan`` has it."""

    step: int = 0
    seconds: float = 0.0
    sums: list[float] = field(default_factory=list)
    best_score: float = -1.0
    best_epoch: int = -1
    spent: float = 0.0
    plan: tuple[int, int, int] | None = None


def save(folder: Path, identity: dict[str, Any], progress: Progress, state: dict[str, Any]) -> Path:
    """Write ``checkpoint.pt``; ``identity`` is what a run must have in common to go on."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "progress": vars(progress), "state": state}, buffer)
    path = folder / FILE
    write_bytes(path, buffer.getvalue())
    return path


def load(folder: Path, identity: dict[str, Any]) -> tuple[Progress, dict[str, Any]]:
    """What ``save`` wrote. ``UsageError`` where there is none or it is of another run;
    ``CannotCertify`` where it is damaged."""
    path = required(folder)
    check_stored(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, progress = content["identity"], Progress(**content["progress"])
        state: dict[str, Any] = content["state"]
    except Exception as error:
        raise CannotCertify(f"{path}: is damaged: {type(error).__name__}") from error
    for name in identity | found:
        if found.get(name) != identity.get(name):
            raise UsageError(
                f"{path}: was written with another {name}"
                f"{_differences(found.get(name), identity.get(name))}; resume with the same "
                "options, or start afresh with --overwrite"
            )
    return progress, state


def required(folder: Path) -> Path:
    """The checkpoint of a run that is to go on. ``UsageError`` where there is none."""
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"--resume: {folder} holds no {FILE}; leave --resume out to start")
    return path


def _differences(found: Any, given: Any) -> str:
    if not (isinstance(found, dict) and isinstance(given, dict)):
        return ""
    names = [name for name in found | given if found.get(name) != given.get(name)]
    told = (f"{name} {found.get(name)} there, {given.get(name)} now" for name in names)
    return f" ({'; '.join(told)})"


def write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises ``UsageError`` where the folder cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
