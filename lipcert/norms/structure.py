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

from lipcert.network import Forward, Node, Segment, forward
from lipcert.network.operators import (
    Convolution,
    Dense,
    Diagonal,
    Operator,
    Select,
    TransposedConvolution,
)  # fmt: skip
from lipcert.norms.matrix import spectral_norm
from lipcert.norms.merged import merged
from lipcert.norms.spectrum import convolution_norm, symbol_work, unfolded_norm
from lipcert.numbers import OUT64, Outward, outward_of
from lipcert.rounding import FLOAT64_TINY

_NORMS: WeakKeyDictionary[Operator, float] = WeakKeyDictionary()
_UNFOLDED: WeakKeyDictionary[Operator, float] = WeakKeyDictionary()
# More products than this take some ten seconds.
_READY = 1.5e10
_SUMS: WeakKeyDictionary[Operator, tuple[float, float]] = WeakKeyDictionary()


def operator_norm(operator: Operator) -> float:
    """A deterministic upper bound of ``‖A‖₂`` of one operator, by its structure or by its entries'
    magnitudes; found once."""
    if operator not in _NORMS:
        _NORMS[operator] = min(_norm_by_structure(operator), absolute_norm(operator))
    return _NORMS[operator]


def ready_norm(operator: Operator) -> float:
    """The same, or what takes no long time where that would, for roundings, which are small: there
    a larger bound costs next to nothing."""
    convolution = operator.convolution if isinstance(operator, TransposedConvolution) else operator
    if not isinstance(convolution, Convolution) or symbol_work(convolution) <= _READY:
        return operator_norm(operator)
    if operator not in _UNFOLDED:
        _UNFOLDED[operator] = min(unfolded_norm(convolution), absolute_norm(operator))
    return _UNFOLDED[operator]


def row_norms(operator: Operator, like: Tensor, own: Outward = OUT64) -> Tensor:
    """Upper bounds of the 2-norms of the rows of ``A``, ``(1, *out_shape)``, in the type and on the
    device of ``like``: ``sqrt((A∘A) 1)``, or the 1-norm ``|A| 1``, which has no squares and no
    product but with 1, where that is less."""
    ones = like.new_ones(1, *operator.in_shape)
    sums = own.up(operator.magnitude(ones), operator.terms)
    # Squares that overflow meet the zeros of a padding as NaN: there the 1-norm has to do.
    return torch.fmin(own.root(own.squared(operator, ones)), sums)


def largest_sums(operator: Operator) -> tuple[float, float]:
    """Upper bounds of ``‖A‖_∞`` and ``‖A‖_1``: the largest sums of magnitudes of a row and of a
    column; found once. Entries are multiplied by 1, so that nothing underflows."""
    if operator not in _SUMS:
        entries = operator.entries()
        kind = torch.zeros((), dtype=torch.float64) if entries is None else entries
        rows = operator.magnitude(kind.new_ones(1, *operator.in_shape))
        columns = operator.transpose_magnitude(kind.new_ones(1, *operator.out_shape))
        own = outward_of(kind.dtype)
        _SUMS[operator] = (
            own.up(_largest(rows), operator.terms),
            own.up(_largest(columns), operator.transposed_terms),
        )
    return _SUMS[operator]


def absolute_norm(operator: Operator) -> float:
    """``sqrt(‖|A|‖_1 ‖|A|‖_∞)``, an upper bound of ``‖|A|‖₂`` that is always at hand."""
    rows, columns = largest_sums(operator)
    return OUT64.up(math.sqrt(rows) * math.sqrt(columns), 3)


def structural_norm(segment: Segment) -> float:
    """Norms multiply along a path and add up where branches meet, but where neighbours are one
    map together (``norms.merged``)."""
    start = {segment.source: 1.0}
    found = forward(segment.network, _Products(segment, start), known=start, along=segment.path)
    return found[segment.sink]


@dataclass(frozen=True, eq=False)
class _Products(Forward[float]):
    """``reached``: what is known of the nodes so far."""

    segment: Segment
    reached: dict[int, float]

    def sum(self, i: int, parts: list[float]) -> float:
        return OUT64.add(*parts)

    def affine(self, i: int, operator: Operator, before: float) -> float:
        return OUT64.times(operator_norm(operator), before)

    def found(self, i: int, node: Node, value: float) -> float:
        whole = merged(self.segment.network, i)
        if whole is not None and whole.source in self.reached:
            value = min(value, OUT64.times(whole.norm, self.reached[whole.source]))
        self.reached[i] = value
        return value


def is_known_exactly(segment: Segment) -> bool:
    """Whether the structural norm is the truth but for rounding: one matrix, written down."""
    nodes = segment.network.nodes
    return len(segment.path) == 1 and isinstance(nodes[segment.path[0]].kind, Dense)


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
        start = {segment.source: cls(1.0, 1.0, 0.0, 0.0)}
        found = forward(segment.network, _Sums(), known=start, along=segment.path)
        return found[segment.sink]


class _Sums(Forward[Sizes]):
    """The rules of ``Sizes.of``. What a sweep back loses at a node, twice where it gathers parts,
    goes on to the source by the columns up to there, and is counted for every way to the sink."""

    def sum(self, i: int, parts: list[Sizes]) -> Sizes:
        return self._step(parts, 1.0, 1.0, len(parts), len(parts))

    def affine(self, i: int, operator: Operator, before: Sizes) -> Sizes:
        terms = operator.terms, operator.transposed_terms
        return self._step([before], *largest_sums(operator), *terms)

    def _step(
        self, parts: list[Sizes], row: float, column: float, terms: int, terms_back: int
    ) -> Sizes:
        add, times = OUT64.add, OUT64.times
        rows, columns = add(*(p.rows for p in parts)), add(*(p.columns for p in parts))
        lost, back = add(*(p.lost for p in parts)), add(*(p.lost_back for p in parts))
        step, step_back = (terms + 1) * FLOAT64_TINY, 2 * (terms_back + 1) * FLOAT64_TINY
        return Sizes(
            times(row, rows),
            times(column, columns),
            add(times(row, lost), step),
            add(back, times(step_back, columns)),
        )


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
            return OUT64.up(math.sqrt(operator.multiplicity), 1)
    raise TypeError(f"no norm is known for {type(operator).__name__}")


def _largest(values: Tensor) -> float:
    return float(values.detach().max()) if values.numel() else 0.0
