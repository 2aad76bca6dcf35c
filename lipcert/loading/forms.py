"""Values as short linear combinations, of values before them and of magnitudes of two of these.

For every value of a node that is made by moves, sums, scales and kinks alone, its *form*

    y = Σ_t c_t a_t + Σ_t d_t |a_t + r_t b_t|,

with few terms: ``a`` and ``b`` are values of nodes that are made otherwise. Every piecewise linear
function of a difference is of this form, since ``max(z, s z) = (1 + s)/2 z + (1 − s)/2 |z|``; so is
the maximum of two values, in whatever way it is written. Beside it goes what computing it rounds:
``mag`` and ``off`` bound every partial result by ``mag · m`` and its error by

    |v̂ − v| ≤ off · u (1 + u)^depth · m,

``m`` the largest magnitude of the values ``a_t``, ``b_t`` of the row, ``depth`` the roundings on
the longest way. By induction, with ``|v| ≤ mag · m``:

- of k − 1 additions in any order, ``(1 + u)^(k−1) − 1 ≤ (k − 1) u (1 + u)^(k−1)``: the errors of
  the summands grow by ``(1 + u)^(k−1)``, and their sizes add ``(k − 1) mag`` to ``off``;
- of a product with a constant, which is rounded too, ``(1 + u)² − 1 ≤ 2 u (1 + u)²``, of which
  twice as much is counted: ``4 mag``, and ``depth`` grows by 2;
- kinks and comparisons move nothing further than their inputs, or by their slope; a comparison
  that was written out adds its own ``spelling`` S, of inputs as they were computed, which are at
  most ``(1 + S u) ≤ (1 + u)^S`` times further off: ``depth`` grows by S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lipcert.loading.affine_form import NONE, AffineForm, stacked, turned
from lipcert.loading.rebuilding import starts
from lipcert.network import Network
from lipcert.network.activations import Clip, GroupMax, MaxMin, PReLU
from lipcert.network.nodes import Node, Sum
from lipcert.network.operators import Convolution, Dense, Diagonal, Operator, Select
from lipcert.rounding import BFLOAT16

# So many terms has a form, and the rows of an operator that is looked through.
_TERMS = 4
_LARGEST = 2**20
# Magnitudes are numbered from here on, values of nodes below.
MAGNITUDES = 2**48
# What errors of errors add, ``(1 + u)^depth`` in the coarsest format, and how deep that goes.
HIGHER_ORDERS = 1.25
DEEPEST = math.log(HIGHER_ORDERS) / math.log1p(BFLOAT16.unit)


@dataclass(eq=False)
class Forms:
    """The forms of a network's nodes, found where they are asked for. ``whole``: comparisons are
    values of their own, whatever they compare. ``alone``: magnitudes may be of one value.
    ``pairs``: the magnitudes, by their numbers less ``MAGNITUDES``: ``(a, b, r)``, or
    ``(a, NONE, 0)``."""

    network: Network
    whole: bool = False
    alone: bool = False
    pairs: dict[tuple[int, int, float], int] = field(default_factory=dict)
    _known: dict[int, AffineForm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.starts = starts(self.network)

    def of(self, i: int) -> AffineForm:
        """The form of a node, by its own values where it is made otherwise."""
        if i not in self._known:
            self._known[i] = self.made(i) or self._own(i)
        return self._known[i]

    def is_transparent(self, i: int) -> bool:
        """Whether a node has a form by others' values."""
        found = self.of(i)
        start = self.starts[i]
        own = torch.arange(start, self.starts[i + 1])[:, None]
        return found.terms.shape[1] != 1 or not torch.equal(found.terms, own)

    def _own(self, i: int) -> AffineForm:
        size = self.starts[i + 1] - self.starts[i]
        terms = torch.arange(self.starts[i], self.starts[i + 1])[:, None]
        one = torch.ones(size, dtype=torch.float64)
        return AffineForm(terms, one[:, None], one, torch.zeros_like(one))

    def made(self, i: int) -> AffineForm | None:
        """The form by the values of the nodes that it is made of; None where it has none."""
        node = self.network.nodes[i]
        if not node.inputs or self.starts[i + 1] - self.starts[i] > _LARGEST:
            return None
        found = self._made(node)
        if found is None or found.terms.shape[1] > _TERMS:
            return None
        if _is_guard(node):
            return found
        compared = found.compared | ({i} if isinstance(node.kind, MaxMin | GroupMax) else set())
        return replace(found, formats=found.formats | {node.format}, compared=compared)

    def _made(self, node: Node) -> AffineForm | None:
        kind, shape = node.kind, self.network.nodes[node.inputs[0]].shape
        match kind:
            case Sum():
                return self.added([self.of(j) for j in node.inputs])
            case Select():
                return self.of(node.inputs[0]).rows(kind.index)
            case Diagonal() if _is_guard(node):
                before, limit = self.of(node.inputs[0]), node.format
                assert limit is not None
                # Of values of which it is a sum of so many.
                reach = limit.largest / max(1.0, float(before.mag.max()))
                return replace(before, within=min(before.within, reach))
            case Diagonal() if kind.bias is None and kind.scale is not None:
                scale = kind.scale.double().expand(node.shape).reshape(-1)
                return self.of(node.inputs[0]).scaled(scale)
            case Dense() | Convolution() if is_sparse(kind):
                return self._mixed(self.of(node.inputs[0]), kind)
            case Clip() if kind.upper is None and _is_zero(kind.lower):
                return self._kinked(self.of(node.inputs[0]), torch.zeros(()))
            case Clip() if kind.lower is None and _is_zero(kind.upper):
                # min(z, 0) = −max(−z, 0).
                found = self._kinked(turned(self.of(node.inputs[0])), torch.zeros(()))
                return None if found is None else turned(found)
            case PReLU():
                slope = kind.slope.double().expand(shape).reshape(-1)
                return self._kinked(self.of(node.inputs[0]), slope)
            case MaxMin() if not self.whole:
                places = torch.arange(math.prod(shape)).reshape(shape)
                a, b, rest = (part.flatten() for part in kind.parts(places, kind.axis))
                before = self.of(node.inputs[0])
                both = self._compared(before, a, b, kind)
                if both is None:
                    return None
                order = torch.cat([a, b, rest]).argsort()
                return stacked((*both, before.rows(rest))).rows(order)
            case GroupMax() if shape[-1] == 2 and not self.whole:
                places = torch.arange(math.prod(shape)).reshape(-1, 2)
                both = self._compared(
                    self.of(node.inputs[0]), places[:, 0], places[:, 1], MaxMin(0)
                )
                return None if both is None else both[0]
        return None

    def _mixed(self, before: AffineForm, kind: Operator) -> AffineForm | None:
        """Past an operator with few products a row: tap by tap, which value and what weight."""
        entries = kind.entries()
        assert entries is not None
        size = math.prod(kind.in_shape)
        places = torch.arange(size, dtype=torch.float64).reshape(1, *kind.in_shape)
        ones, parts = torch.ones_like(places), []
        flat = entries.double().flatten(1)
        count = int((flat != 0).sum(1).amax())
        taps = (flat != 0).double().sort(dim=1, descending=True, stable=True).indices[:, :count]
        for tap in taps.unbind(1):
            alone = torch.zeros_like(flat).scatter(1, tap[:, None], 1.0).reshape(entries.shape)
            # A padding reads nothing: its weight is 0.
            weight = kind._forward(ones, alone * entries.double()).flatten()
            index = kind._forward(places, alone).flatten().long()
            index = torch.where(weight == 0, -1, index)
            parts.append(before.rows(index).scaled(weight))
        return self.added(parts)

    def added(self, parts: list[AffineForm]) -> AffineForm | None:
        """The sum; rounded where a value has several parts. None where it gets long.

        A value that cancels is in no term any more, but what it rounded on the way is as large as
        it was: unless it is among those of the row still, nothing bounds that.
        """
        if sum(part.terms.shape[1] for part in parts) > 4 * _TERMS:
            return None
        terms = torch.cat([part.terms for part in parts], 1)
        coefficients = torch.cat([part.coefficients for part in parts], 1)
        order = terms.argsort(dim=1, stable=True)
        terms, coefficients = terms.gather(1, order), coefficients.gather(1, order)
        before = terms
        # Like terms come together in the last of them.
        for t in range(terms.shape[1] - 1):
            same = terms[:, t] == terms[:, t + 1]
            coefficients[:, t + 1] += torch.where(same, coefficients[:, t], 0.0)
            coefficients[:, t] = torch.where(same, 0.0, coefficients[:, t])
        terms = torch.where(coefficients == 0, NONE, terms)
        lost = self._lost(before, terms)
        order = terms.argsort(dim=1, stable=True)
        terms, coefficients = terms.gather(1, order), coefficients.gather(1, order)
        width = max(1, int((terms != NONE).sum(1).amax()))
        several = torch.stack([part.live.any(1) for part in parts]).sum(0)
        mag = torch.stack([part.mag for part in parts]).sum(0)
        off = torch.stack([part.off for part in parts]).sum(0)
        more = max(0, int(several.max()) - 1)
        return AffineForm(
            terms[:, :width], coefficients[:, :width], mag,
            torch.where(lost, torch.inf, off + (several - 1).clamp(min=0) * mag),
            max(part.depth for part in parts) + more,
            sum(part.behind for part in parts) + (more + 1 if more else 0),
            any(part.computed for part in parts) or more > 0,
            frozenset().union(*(part.formats for part in parts)),
            frozenset().union(*(part.compared for part in parts)),
            min(part.within for part in parts),
        )  # fmt: skip

    def _lost(self, before: Tensor, after: Tensor) -> Tensor:
        """The rows of which a value is among these terms ``before``, in a magnitude or alone, and
        not ``after``: ``(n,)``."""
        first, second = self._values(before), self._values(after)
        gone = (before != after).any(1).nonzero().flatten()
        lost = torch.zeros(len(before), dtype=torch.bool)
        kept = (first[gone][:, :, None] == second[gone][:, None, :]).any(2)
        lost[gone] = (~kept & (first[gone] != NONE)).any(1)
        return lost

    def _values(self, terms: Tensor) -> Tensor:
        """The values in the terms of every row, two for each term."""
        pairs = torch.tensor([pair[:2] for pair in self.pairs] or [(NONE, NONE)])
        size = (terms >= MAGNITUDES) & (terms != NONE)
        both = pairs[torch.where(size, terms - MAGNITUDES, 0)]
        alone = torch.stack([terms, torch.full_like(terms, NONE)], -1)
        return torch.where(size[..., None], both, alone).flatten(1)

    def _kinked(self, z: AffineForm, slope: Tensor) -> AffineForm | None:
        """``max(z, s z)`` or, of a slope above 1, ``min``: that is ``PReLU``."""
        size = self._magnitude(z)
        if size is None:
            return None
        slope = slope.double().expand(len(z.terms))
        half = self.added([z.scaled((1 + slope) / 2), size.scaled((1 - slope) / 2)])
        if half is None:
            return None
        steep = slope.abs().clamp(min=1)
        rounds = torch.where((slope == 0) | (slope.abs() == 1), 0.0, 4.0) * slope.abs()
        off = steep * z.off + rounds * z.mag
        depth = z.depth + (2 if bool((rounds > 0).any()) else 0)
        return replace(
            z, terms=half.terms, coefficients=half.coefficients, mag=z.mag * steep, off=off,
            depth=depth, behind=0.0, computed=True,
        )  # fmt: skip

    def _compared(
        self, z: AffineForm, a: Tensor, b: Tensor, kind: MaxMin
    ) -> tuple[AffineForm, AffineForm] | None:
        """Maximum and minimum of the values in two lists of places."""
        first, second = z.rows(a), z.rows(b)
        difference = self.added([first, turned(second)])
        size = None if difference is None else self._magnitude(difference)
        total = self.added([first, second])
        if size is None or total is None:
            return None
        half = torch.full((len(a),), 0.5, dtype=torch.float64)
        largest = self.added([total.scaled(half), size.scaled(half)])
        smallest = self.added([total.scaled(half), size.scaled(-half)])
        if largest is None or smallest is None:
            return None
        mag = torch.maximum(first.mag, second.mag)
        off = torch.maximum(first.off, second.off) + kind.spelling * mag
        one, other = (
            replace(
                z, terms=form.terms, coefficients=form.coefficients, mag=mag, off=off,
                depth=z.depth + math.ceil(kind.spelling), behind=kind.additions,
            )
            for form in (largest, smallest)
        )  # fmt: skip
        return one, other

    def _magnitude(self, z: AffineForm) -> AffineForm | None:
        """``|z|`` where every row is one difference or sum of two values, or one value alone."""
        count = z.live.sum(1)
        if z.terms.shape[1] > 2 or bool((z.live & (z.terms >= MAGNITUDES)).any()):
            return None
        if not bool(((count == 2) | (count == 1) & self.alone).all()):
            return None
        places, values = F.pad(z.terms, (0, 1), value=NONE), F.pad(z.coefficients, (0, 1))
        first, ratio = values[:, 0], values[:, 1] / values[:, 0]
        ratio = torch.where(count == 2, ratio, 0.0)
        keys = torch.stack([places[:, 0].double(), places[:, 1].double(), ratio], 1)
        unique, back = torch.unique(keys, dim=0, return_inverse=True)
        numbers = [
            self.pairs.setdefault((int(a), int(b), r), len(self.pairs))
            for a, b, r in unique.tolist()
        ]
        terms = torch.tensor(numbers)[back][:, None] + MAGNITUDES
        return replace(z, terms=terms, coefficients=first.abs()[:, None])


def is_sparse(kind: Operator) -> bool:
    """Whether an operator without a bias has so few products a row that it is looked through."""
    if not isinstance(kind, Dense | Convolution) or kind.bias is not None:
        return False
    entries = kind.entries()
    return entries is not None and int((entries != 0).flatten(1).sum(1).amax()) <= _TERMS


def _is_guard(node: Node) -> bool:
    """Whether it does nothing but to say how large a value may be."""
    guards = isinstance(node.kind, Diagonal) and node.kind.is_identity
    return guards and node.format is not None and node.format.unit == 0


def _is_zero(limit: Tensor | None) -> bool:
    return limit is not None and bool((limit == 0).all())
