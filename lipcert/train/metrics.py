"""What a run tells of itself: a line of ``metrics.jsonl`` an epoch; TensorBoard if asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lipcert.errors import UsageError
from lipcert.train.checkpoint import write_bytes

FILE, BOARD = "metrics.jsonl", "tensorboard"
# What a training bound says is no certificate.
NOTE = "ESTIMATE: the training bound rests on power iteration; only certificate.json is sound"

Record = dict[str, Any]


class Metrics:
    """The records of a run, on disk after each epoch."""

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.path = folder / FILE
        self.records: list[Record] = []
        self._board = _writer(folder) if tensorboard else None

    def resume(self, epoch: int) -> None:
        """Keep the records of finished epochs, before ``epoch`` of training."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        records = [json.loads(line) for line in lines]
        self.records = [record for record in records if record["epoch"] <= epoch]
        if self._board is not None:
            self._board.close()
            self._board = _writer(self.path.parent, epoch + 1)

    def add(self, record: Record) -> None:
        self.records.append(record)
        lines = (json.dumps(r, allow_nan=False) + "\n" for r in self.records)
        write_bytes(self.path, "".join(lines).encode())
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, record["epoch"])
            self._board.flush()


def _writer(folder: Path, start: int | None = None) -> Any:
    """Readers of the events forget those of earlier runs from ``start`` on."""
    return summary_writer()(str(folder / BOARD), purge_step=start)


def summary_writer() -> Any:
    """TensorBoard's writer. Raises ``UsageError`` where the package is absent."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard: needs the package tensorboard; pip install 'lipcert[tensorboard]'"
        ) from error
    return SummaryWriter
