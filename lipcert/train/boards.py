"""Where the metrics of a run are shown beside ``metrics.jsonl``: TensorBoard, W&B, MLflow.

Each is an extra of the installation, and none is imported unless it is asked for. A run that is
continued goes on in the place where it was: its number there is kept in ``boards.json``.
"""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lipcert.errors import UsageError
from lipcert.train.checkpoint import write_bytes

BoardName = Literal["tensorboard", "wandb", "mlflow"]
TENSORBOARD = "tensorboard"
FILE = "boards.json"
# Of W&B and of MLflow, which has experiments.
_PROJECT = "lipcert"
_MODULES: dict[BoardName, str] = {
    "tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow",
}  # fmt: skip


class Board(ABC):
    """Shows the record of each epoch."""

    @abstractmethod
    def resume(self, epoch: int) -> None:
        """The records up to this epoch stay, later ones come again."""

    @abstractmethod
    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """The numbers of one epoch."""

    @abstractmethod
    def close(self) -> None:
        """The run is over, finished or not."""


def parse(names: Sequence[str]) -> tuple[BoardName, ...]:
    """Raises ``UsageError`` for a name of none."""
    for name in names:
        if name not in _MODULES:
            raise UsageError(f"--log {name}: choose among {', '.join(_MODULES)}")
    return tuple(name for name in _MODULES if name in names)


def package(name: BoardName) -> Any:
    """The module of a board. Raises ``UsageError`` where it is not installed."""
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise UsageError(
            f"--log {name}: needs the package {name}; pip install 'lipcert[{name}]'"
        ) from error


def opened(
    names: Sequence[BoardName], folder: Path, recipe: Mapping[str, Any]
) -> tuple[Board, ...]:
    """The boards of these names, of the run in ``folder``; ``recipe`` is what they say of it."""
    return tuple(_BOARDS[name](folder, recipe) for name in names)


class TensorBoard(Board):
    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._folder = folder / TENSORBOARD
        self._writer = package("tensorboard").SummaryWriter(str(self._folder))

    def resume(self, epoch: int) -> None:
        """Readers of the events forget those of earlier runs from there on."""
        self._writer.close()
        made = package("tensorboard").SummaryWriter(str(self._folder), purge_step=epoch + 1)
        self._writer = made

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Board):
    """A run of the project ``lipcert``; ``WANDB_PROJECT`` and the other variables of wandb hold."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        wandb, kept = package("wandb"), _kept(folder)
        given = {"id": kept["wandb"], "resume": "allow"} if "wandb" in kept else {}
        self._run = wandb.init(
            name=folder.name, dir=str(folder), config=dict(recipe), **_project(), **given
        )
        _keep(folder, "wandb", self._run.id)

    def resume(self, epoch: int) -> None:
        """W&B leaves out what comes twice by its step."""

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(figures), step=epoch)

    def close(self) -> None:
        self._run.finish()


class MLflow(Board):
    """A run where ``MLFLOW_TRACKING_URI`` says, or in the folder that mlflow takes by default."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._mlflow, kept = package("mlflow"), _kept(folder)
        given = {"run_id": kept["mlflow"]} if "mlflow" in kept else {"run_name": folder.name}
        self._run = self._mlflow.start_run(**given)
        if not kept.get("mlflow"):
            self._mlflow.log_params(dict(recipe))
        _keep(folder, "mlflow", self._run.info.run_id)

    def resume(self, epoch: int) -> None:
        """MLflow keeps every value of a step and shows the last one."""

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        self._mlflow.log_metrics(dict(figures), step=epoch)

    def close(self) -> None:
        self._mlflow.end_run()


_BOARDS: dict[BoardName, type[TensorBoard] | type[WeightsAndBiases] | type[MLflow]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow,
}  # fmt: skip


def _project() -> dict[str, str]:
    return {} if os.environ.get("WANDB_PROJECT") else {"project": _PROJECT}


def _kept(folder: Path) -> dict[str, str]:
    """The numbers of earlier parts of this run, by board."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: is damaged: {error}; remove it to start anew there") from error
    return found


def _keep(folder: Path, name: str, number: str) -> None:
    write_bytes(folder / FILE, json.dumps(_kept(folder) | {name: number}).encode())
