"""What the structure of an operator or a segment says of its size, without coins.

Sums of magnitudes along rows and columns are found without squares, so nothing underflows in them;
they tell in which power of two a map lives, and what numbers too small for a sweep can cost it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipcert.network import Segment, Sum
from lipcert.network.operators import (
    Convolution,
    Dense,
    Diagonal,
    Operator,
    Select,
    TransposedConvolution,
)  # fmt: skip
from lipcert.norms.matrix import spectral_norm
from lipcert.norms.spectrum import convolution_norm
from lipcert.rounding import FLOAT64, FLOAT64_TINY, gamma

_NORMS: WeakKeyDictionary[Operator, float] = WeakKeyDictionary()
_SUMS: WeakKeyDictionary[Operator, tuple[float, float]] = WeakKeyDictionary()


def operator_norm(operator: Operator) -> float:
    """A deterministic upper bound of ``‖A‖₂`` of one operator, by its structure; found once."""
    if operator not in _NORMS:
        _NORMS[operator] = _norm_by_structure(operator)
    return _NORMS[operator]


def row_norms(operator: Operator, like: Tensor) -> Tensor:
    """Upper bounds of the 2-norms of the rows of ``A``, ``(1, *out_shape)``, in the type and on the
    device of ``like``: ``sqrt((A∘A) 1)`` with what underflows in its squares made up for, or the
    1-norm ``|A| 1``, which has no squares, where that is less."""
    ones = like.new_ones(1, *operator.in_shape)
    lost = (operator.terms + 2) * FLOAT64_TINY
    # Squares that overflow meet the zeros of a padding as NaN: there the 1-norm has to do.
    rows = torch.fmin((operator.squared(ones) + lost).sqrt(), operator.magnitude(ones))
    return rows * (1 + gamma(operator.terms + 4))


def largest_sums(operator: Operator) -> tuple[float, float]:
    """Upper bounds of ``‖A‖_∞`` and ``‖A‖_1``: the largest sums of magnitudes of a row and of a
    column; found once."""
    if operator not in _SUMS:
        entries = operator.entries()
        kind = torch.zeros((), dtype=torch.float64) if entries is None else entries
        rows = operator.magnitude(kind.new_ones(1, *operator.in_shape))
        columns = operator.transpose_magnitude(kind.new_ones(1, *operator.out_shape))
        terms = operator.terms + operator.transposed_terms + 4
        slack = 1 + gamma(terms, torch.finfo(kind.dtype).eps)
        _SUMS[operator] = (_largest(rows) * slack, _largest(columns) * slack)
    return _SUMS[operator]


def structural_norm(segment: Segment) -> float:
    """Norms multiply along a path and add up where branches meet."""
    nodes = segment.network.nodes
    bound = {segment.source: 1.0}
    for i in segment.path:
        kind = nodes[i].kind
        parts = [bound[j] for j in nodes[i].inputs if j in bound]
        own = 1.0 if isinstance(kind, Sum) else operator_norm(kind)  # type: ignore[arg-type]
        bound[i] = at_least_tiny(own, sum(parts)) * (1 + (len(parts) + 2) * FLOAT64)
    return bound[segment.sink]


def is_known_exactly(segment: Segment) -> bool:
    """Whether the structural norm is the truth but for rounding: one matrix, written down."""
    nodes = segment.network.nodes
    return len(segment.path) == 1 and isinstance(nodes[segment.path[0]].kind, Dense)


def at_least_tiny(one: float, other: float) -> float:
    """The product of two upper bounds: 0 only where one of them is."""
    return max(one * other, FLOAT64_TINY) if one > 0 and other > 0 else one * other


@dataclass(frozen=True)
class Sizes:
    """Of a segment, from above: ``rows`` and ``columns`` are ``‖A‖_∞`` and ``‖A‖_1``; ``lost`` and
    ``lost_back`` what underflow takes at most from any value of a sweep forth and back, at the
    sink and at the source, whatever is swept."""

    rows: float
    columns: float
    lost: float
    lost_back: float

    @classmethod
    def of(cls, segment: Segment) -> Sizes:
        """One step of a sweep with n roundings loses ``n + 1`` times the smallest normal number,
        which the rest of the way multiplies by no more than its sums."""
        nodes = segment.network.nodes
        rows, columns, lost = {segment.source: 1.0}, {segment.source: 1.0}, {segment.source: 0.0}
        back = 0.0
        for i in segment.path:
            kind = nodes[i].kind
            parts = [j for j in nodes[i].inputs if j in rows]
            row, column, own, own_back = 1.0, 1.0, len(parts), len(parts)
            if isinstance(kind, Operator):
                (row, column), own, own_back = largest_sums(kind), kind.terms, kind.transposed_terms
            step, step_back = ((n + 1) * FLOAT64_TINY for n in (own, own_back))
            slack = 1 + gamma(len(parts) + 6)
            rows[i] = at_least_tiny(row, sum(rows[j] for j in parts)) * slack
            columns[i] = at_least_tiny(column, sum(columns[j] for j in parts)) * slack
            lost[i] = (at_least_tiny(row, sum(lost[j] for j in parts)) + step) * slack
            back += at_least_tiny(step_back, sum(columns[j] for j in parts)) * slack
        return cls(rows[segment.sink], columns[segment.sink], lost[segment.sink], back * 2)


def _norm_by_structure(operator: Operator) -> float:
    match operator:
        case Dense():
            return float(spectral_norm(operator.weight[None])[0])
        case Convolution():
            found = convolution_norm(operator)
            return math.inf if found is None else found
        case TransposedConvolution():
            return _norm_by_structure(operator.convolution)
        case Diagonal():
            return 1.0 if operator.scale is None else float(operator.scale.abs().max())
        case Select():
            return math.sqrt(operator.multiplicity) * (1 + FLOAT64)
    raise TypeError(f"no norm is known for {type(operator).__name__}")


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
