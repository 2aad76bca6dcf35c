"""What came of reading a graph."""

from __future__ import annotations

from dataclasses import dataclass

from lipcert.loading.operator_row import OperatorRow
from lipcert.network import Network


@dataclass(frozen=True)
class Reading:
    """``network`` is None exactly where ``problems`` says why; ``logits`` is the value of the graph
    before the head that was ``stripped``."""

    network: Network | None
    problems: tuple[str, ...]
    operators: tuple[OperatorRow, ...]
    input_name: str
    output_name: str
    double: bool
    any_batch: bool
    stripped: str | None
    logits: str | None = None
    half: bool = False
