"""What a run tells of itself: a line of ``metrics.jsonl`` an epoch, and boards if asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipcert.train.boards import Board
from lipcert.train.checkpoint import write_bytes

FILE = "metrics.jsonl"
# What a training bound says is no certificate.
NOTE = "ESTIMATE: the training bound rests on power iteration; only certificate.json is sound"

Record = dict[str, Any]


class Metrics:
    """The records of a run, on disk after each epoch, and on ``boards``."""

    def __init__(self, folder: Path, boards: Sequence[Board] = ()) -> None:
        self.path, self._boards = folder / FILE, boards
        self.records: list[Record] = []

    def resume(self, epoch: int) -> None:
        """Keep the records of finished epochs, before ``epoch`` of training."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        records = [json.loads(line) for line in lines]
        self.records = [record for record in records if record["epoch"] <= epoch]
        for board in self._boards:
            board.resume(epoch)

    def add(self, record: Record) -> None:
        self.records.append(record)
        lines = (json.dumps(r, allow_nan=False) + "\n" for r in self.records)
        write_bytes(self.path, "".join(lines).encode())
        numbers = {
            name: value
            for name, value in record.items()
            if isinstance(value, int | float) and name != "epoch"
        }
        for board in self._boards:
            board.add(numbers, record["epoch"])

    def close(self) -> None:
        """The run is over, finished or not."""
        for board in self._boards:
            board.close()
