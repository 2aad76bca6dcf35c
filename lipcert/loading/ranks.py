"""Values taken by the places of sorted ones: ``x.gather(argsort(x))`` is ``sort(x)``.

Where a value stood before it was sorted jumps, and so does what else is read there: the places go
along as ``Places``, moved as they may be, until they take the very values that were sorted. These
are then the sorted ones, also where some are equal. Any other use is refused where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from lipcert.loading.assembler import Assembler, Index, Variable
from lipcert.loading.fold import evaluate
from lipcert.loading.reasons import JUMPS
from lipcert.loading.value import Call, Unknown, Unsupported, Value

ONLY_SORTED = (
    f"reads by the places of sorted values: it {JUMPS}; only GatherElements of the very values "
    "that TopK sorted, along the same axis, is known, as it gives these sorted"
)
_MOVES = (
    "Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip


@dataclass(frozen=True)
class Places(Unknown):
    """Where values of ``source`` stood along ``axis``: of each which one of the ``ordered`` values
    it is, ``at`` in ``shape``, by its number there."""

    source: Variable
    axis: int
    ordered: Variable
    at: bytes
    shape: tuple[int, ...]

    @classmethod
    def of(cls, source: Variable, axis: int, ordered: Variable, at: Index) -> Places:
        at = np.ascontiguousarray(at, dtype=np.int64)
        return cls(True, source, axis, ordered, at.tobytes(), at.shape)

    @property
    def index(self) -> Index:
        return np.frombuffer(self.at, dtype=np.int64).reshape(self.shape)


def ranked(call: Call, inputs: list[Value | None], assembler: Assembler) -> Value | None:
    """What becomes of places of sorted values, or of what they take; None where there are none."""
    if not any(isinstance(value, Places) for value in inputs):
        return None
    kind, attributes = call.node.op_type, call.attributes
    own = call.node.domain in ("", "ai.onnx")
    match inputs:
        case [Variable() as data, Places() as places] if own and kind == "GatherElements":
            taken = _taken(data, places, int(attributes["axis"]))
            if taken is not None:
                return assembler.select(places.ordered, taken)
        case [Places() as places, *rest] if own and kind in _MOVES:
            fixed = [value for value in rest if value is None or isinstance(value, np.ndarray)]
            whole = kind != "Cast" or attributes["to"] in (TensorProto.INT64, TensorProto.INT32)
            if whole and len(fixed) == len(rest):
                if kind == "Cast":
                    return places
                given = [places.index, *fixed]
                [moved] = evaluate(call.node, call.version, given, attributes, assembler.allowance)
                return Places.of(places.source, places.axis, places.ordered, moved)
    raise Unsupported(ONLY_SORTED)


def _taken(data: Variable, places: Places, axis: int) -> Index | None:
    """Which of the ordered values are taken; None where others are."""
    index, rank = places.index, len(data.shape)
    if data != places.source or index.ndim != rank or axis % rank != places.axis:
        return None
    stood = np.unravel_index(index, places.ordered.shape)
    own = np.indices(index.shape)
    others = [k for k in range(rank) if k != places.axis]
    return index if all(np.array_equal(stood[k], own[k]) for k in others) else None
