"""Masks of attention: scores of which a constant −∞ leaves some out of a softmax.

``softmax(scores + mask)`` and ``softmax(Where(keep, scores, −∞))`` share out among the scores that
are left. A number below ``−2^100``, such as the least of float32, is as good as −∞: what it leaves
of a share is less than any number of any format, and ``Softmax`` knows nothing of scores that could
come near it. What masks say goes along as ``Masked`` from the mask to the softmax; any other use of
such scores is refused where it stands. Exporters ask of the shares whether one is NaN, as it would
be of a row without any score: here every row has one, and values that could overflow are never
certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from lipcert.loading.assembler import Assembler, Index, Variable
from lipcert.loading.value import Array, Unknown, Unsupported, Value
from lipcert.network.joints import NEVER, Softmax
from lipcert.network.operators import Select

NOTHING_LEFT = "a mask that leaves no score of a row"
LEFT_OUT = "scores that a mask of −inf leaves out have another use than a softmax"


@dataclass(frozen=True)
class Masked(Unknown):
    """Scores with those left out where ``kept``, of their shape, is false."""

    scores: Variable
    kept: bytes

    @classmethod
    def of(cls, scores: Variable, kept: Array) -> Masked:
        return cls(True, scores, np.broadcast_to(kept, scores.shape).tobytes())

    @property
    def mask(self) -> Array:
        return np.frombuffer(self.kept, dtype=bool).reshape(self.scores.shape)

    def shares(self, scores: Variable, flat: Index, assembler: Assembler) -> Variable:
        """The softmax of the scores, moved as ``flat`` says, along the last axis."""
        kept = self.mask.reshape(-1)[flat]
        if not kept.any(-1).all():
            raise Unsupported(NOTHING_LEFT)
        return softmax(scores, kept, assembler)


def left_out(mask: Array) -> Array:
    """Where a mask is as good as −∞."""
    return mask.astype(np.float64) <= NEVER


def softmax(scores: Variable, kept: Array, assembler: Assembler) -> Variable:
    """Along the last axis, of what is kept."""
    mask = torch.from_numpy(np.ascontiguousarray(kept, dtype=np.float64))
    return assembler.joint(Softmax(scores.shape, mask), [scores])


def masked(
    node: onnx.NodeProto, inputs: Sequence[Value | None], assembler: Assembler
) -> Value | None:
    """What a mask, or a question after NaN, makes of its inputs; None for any other node."""
    if node.domain not in ("", "ai.onnx"):
        return None
    match node.op_type, list(inputs):
        case "Add", (
            [Variable() as x, np.ndarray() as mask] | [np.ndarray() as mask, Variable() as x]
        ):
            return _added(x, mask, assembler)
        case "Where", [np.ndarray() as keep, Variable() as x, np.ndarray() as other]:
            return _kept(x, keep.astype(bool), other)
        case "Where", [np.ndarray() as leave, np.ndarray() as other, Variable() as x]:
            return _kept(x, ~leave.astype(bool), other)
        case "IsNaN", [Variable() as x] if _is_shares(x, assembler):
            return np.zeros(x.shape, dtype=bool)
    return None


def _added(x: Variable, mask: Array, assembler: Assembler) -> Masked | None:
    """Scores and a constant of their shape."""
    if mask.dtype.kind != "f" or not (never := left_out(mask)).any():
        return None
    shape = np.broadcast_shapes(mask.shape, x.shape)
    rest = np.where(never, 0.0, mask.astype(np.float64))
    if not np.isfinite(rest).all():
        return None
    x = x if shape == x.shape else assembler.expand(x, shape)
    if rest.any():
        x = assembler.diagonal(x, None, torch.from_numpy(rest).clone())
    return Masked.of(x, ~never)


def _kept(x: Variable, keep: Array, other: Array) -> Masked | None:
    if other.dtype.kind != "f" or not other.size or not left_out(other).all():
        return None
    shape = np.broadcast_shapes(keep.shape, other.shape, x.shape)
    return Masked.of(x, keep) if shape == x.shape else None


def _is_shares(x: Variable, assembler: Assembler) -> bool:
    """Whether a value is a softmax, maybe moved."""
    nodes, node = assembler.builder.nodes, x.node
    while isinstance(nodes[node].kind, Select):
        node = nodes[node].inputs[0]
    return isinstance(nodes[node].kind, Softmax)
