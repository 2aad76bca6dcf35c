"""Sorting, however a file writes it, becomes one comparison.

``relu(a − b) + b``, ``b − relu(b − a)``, ``(a + b + |a − b|)/2``, ``−max(−a, −b)``,
``a + b − min(a, b)`` are all the maximum of ``a`` and ``b``, and moves may stand anywhere between.
By norms such a layer costs ``1 + 2 √2`` where sorting costs 1. So values are written as short
linear combinations (``forms``), and where every value of a node is one of

    s max(a, b) = s/2 (a + b) + s/2 |a − b|,   s min(a, b),   s a,

by its coefficients, exactly, the node is put together from one ``MaxMin``. It is the same function
of real numbers, and compared at a few points as well. What the file's own way rounds stays
charged: ``MaxMin.spelling`` says how much. Reflections that are written out are comparisons in a
rotated frame (``mirrors``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.loading.candidates import candidates
from lipcert.loading.forms import DEEPEST, HIGHER_ORDERS, MAGNITUDES, Forms
from lipcert.loading.mirrors import NEAR, Mirrored, mirrored
from lipcert.loading.rebuilding import Rebuilding
from lipcert.network import Network, fold
from lipcert.network.activations import Activation, MaxMin
from lipcert.network.operators import (
    Convolution,
    Dense,
    Diagonal,
    TransposedConvolution,
)
from lipcert.rounding import Arithmetic

# How much may be rounded and how large a value may be on the way, in the larger value of a pair;
# how many comparisons may be nested.
_MOST_ROUNDED, _MOST = 64.0, 8.0
_ROUNDS = 64
# More additions than any that are charged well.
_MANY = 2**16


def respelled(network: Network) -> Network:
    """The same function with every sorting that is written out as a comparison."""
    for _ in range(_ROUNDS):
        # Of comparisons by their parts first, then of comparisons of what was compared.
        changed = _once(network, whole=False) or _once(network, whole=True)
        if changed is None:
            return network
        network = changed
    return network


@dataclass(frozen=True, eq=False)
class _Sorted:
    """A node whose values are sorted ones: of each the first and the second of its pair, or the
    first alone (second −1), the sign of the second, whether it is the larger one, and a factor."""

    first: Tensor
    second: Tensor
    sign: Tensor
    larger: Tensor
    factor: Tensor
    spelling: float
    additions: float
    format: Arithmetic | None


def _once(network: Network, *, whole: bool) -> Network | None:
    """With the sortings that are written out of values before; None where there are none."""
    forms = Forms(network, whole)
    reached = candidates(network, forms)
    if not reached:
        return None
    found: dict[int, _Sorted | Mirrored] = {}
    for i in sorted(reached):
        known = _sorted(forms, i) or mirrored(forms, i)
        if known is not None:
            found[i] = known
    return _Making(network, found, forms).rebuilt()


def _sorted(forms: Forms, i: int) -> _Sorted | None:
    """None unless every value of the node is a sorted one, of more than one comparison."""
    form = forms.of(i)
    if len(form.formats) != 1 or form.terms.shape[1] != 3:
        return None
    if not form.computed and len(form.compared) < 2 and not _repeats(forms, form.compared):
        # One comparison, moved and scaled, is as it should be.
        return None
    three = form.live.all(1)
    one = form.live.sum(1) == 1
    if not bool((three | one).all()) or bool((form.terms[one, 0] >= MAGNITUDES).any()):
        return None
    a, b, size = form.coefficients.unbind(1)
    pairs = torch.tensor(list(forms.pairs), dtype=torch.float64)
    own = pairs[torch.where(three, form.terms[:, 2] - MAGNITUDES, 0)]
    fits = (own[:, 0] == form.terms[:, 0]) & (own[:, 1] == form.terms[:, 1])
    ratio = own[:, 2]
    fits = fits & (ratio.abs() == 1) & (b == -ratio * a) & (size.abs() == a.abs())
    if not bool((fits | one).all()):
        return None
    # What is rounded counts before the factor; a value alone is taken as it is.
    factor = torch.where(three, 2 * a, a)
    spelling = float((form.off / factor.abs() * HIGHER_ORDERS).max())
    if not spelling <= _MOST_ROUNDED or form.depth > DEEPEST:
        return None
    if float((form.mag / factor.abs()).max()) > _MOST:
        return None
    if bool((form.off[one] > 0).any()):
        return None
    return _Sorted(
        form.terms[:, 0],
        torch.where(three, form.terms[:, 1], -1),
        torch.where(three, -ratio, 1.0),
        (size * a > 0) | one,
        factor,
        spelling,
        form.behind,
        next(iter(form.formats)),
    )


def _repeats(forms: Forms, compared: frozenset[int]) -> bool:
    """Whether a comparison compares the same two values several times, as of a value with itself,
    moved."""
    for i in compared:
        form = forms.of(i)
        sizes = form.terms[form.live & (form.terms >= MAGNITUDES)]
        if forms.is_transparent(i) and 2 * len(set(sizes.tolist())) < len(form.terms):
            return isinstance(forms.network.nodes[i].kind, MaxMin)
    return False


class _Making(Rebuilding[_Sorted | Mirrored]):
    """Puts sorted nodes into the network that is built; one ``MaxMin`` for the same pairs."""

    def __init__(
        self, network: Network, known: dict[int, _Sorted | Mirrored], forms: Forms
    ) -> None:
        # A file's own constants are those of a reflection only nearly, which is charged.
        exact = all(isinstance(one, _Sorted) for one in known.values())
        super().__init__(network, known, *() if exact else (math.sqrt(NEAR),))
        self.forms = forms
        self.shared: dict[tuple[bytes, float, float], int] = {}
        self.behind = _additions(network)

    def made(self, i: int, known: _Sorted | Mirrored) -> int:
        return self._sort(i, known) if isinstance(known, _Sorted) else self._mirror(i, known)

    def _mirror(self, i: int, known: Mirrored) -> int:
        """``Rᵀ (min, max)(R z)`` of all pairs ``z``."""
        node, builder, count = self.network.nodes[i], self.builder, len(known.pairs)
        builder.format = known.format
        atoms, shape, mirror = known.pairs.T.reshape(-1), (2, count), known.mirror
        z = builder.sum(self.gathered(atoms, shape, node.origin), node.origin)
        z = z if mirror.straight else self._turned(z, mirror.p, -mirror.q, node.origin)
        spelling = known.spelling + self._merged(known.pairs)
        y = builder.activation(MaxMin(0, spelling, known.additions), z, node.origin)
        # The smaller one first.
        places = torch.arange(2 * count).reshape(shape)
        y = self.select(y, places.flip(0), shape, node.origin)
        y = y if mirror.straight else self._turned(y, mirror.p, mirror.q, node.origin)
        index = torch.empty(2 * count, dtype=torch.int64)
        index[known.places.T.reshape(-1)] = places.reshape(-1)
        return self.select(y, index, tuple(node.shape), node.origin)

    def _turned(self, z: int, p: Tensor, q: Tensor, origin: str) -> int:
        """``(p z₁ + q z₂, −q z₁ + p z₂)``."""
        shape = self.builder.shape(z)
        swapped = self.select(z, torch.arange(2 * len(p)).reshape(shape).flip(0), shape, origin)
        parts = (z, torch.stack([p, p])), (swapped, torch.stack([q, -q]))
        return self.builder.sum(
            [
                self.builder.operator(Diagonal.of(scale, None, shape), part, origin)
                for part, scale in parts
            ],
            origin,
        )

    def _sort(self, i: int, known: _Sorted) -> int:
        node, builder = self.network.nodes[i], self.builder
        builder.format = known.format
        pair = known.second >= 0
        keys = torch.stack([known.first, known.second, known.sign.long()], 1)[pair]
        unique, back = _in_order(keys)
        spelling = known.spelling + self._merged(unique)
        kind = MaxMin(0, spelling, known.additions)
        name = unique.numpy().tobytes(), spelling, known.additions
        if name not in self.shared:
            self.shared[name] = self._compared(unique, kind, node.origin)
        count = len(unique)
        index = torch.full((len(known.first),), -1)
        index[pair] = back + count * (~known.larger[pair]).long()
        shape = tuple(node.shape)
        parts = [self.select(self.shared[name], index, shape, node.origin)]
        if not bool(pair.all()):
            alone = torch.where(pair, -1, known.first)
            parts += self.gathered(alone, shape, node.origin)
        found = builder.sum(parts, node.origin)
        if bool((known.factor != 1).any()):
            scale = known.factor.reshape(shape)
            if bool((scale == scale.flatten()[0]).all()):
                scale = scale.flatten()[0].clone()
            found = builder.operator(Diagonal.of(scale, None, shape), found, node.origin)
        return found

    def _compared(self, pairs: Tensor, kind: MaxMin, origin: str) -> int:
        """The ``MaxMin`` of pairs ``(first, second, sign)``: node of shape ``(2, count)``."""
        shape = (2, len(pairs))
        both = torch.cat([pairs[:, 0], pairs[:, 1]])
        node = self.builder.sum(self.gathered(both, shape, origin), origin)
        if bool((pairs[:, 2] != 1).any()):
            scale = torch.stack([torch.ones(len(pairs)), pairs[:, 2]]).double()
            node = self.builder.operator(Diagonal.of(scale, None, shape), node, origin)
        return self.builder.activation(kind, node, origin)

    def _merged(self, pairs: Tensor) -> float:
        """Where both values of a pair are sums of their own, either may be merged into the sum
        that makes the other: each of its additions then rounds at the size of both."""
        first, second = self.owners(pairs[:, 0]), self.owners(pairs[:, 1])
        apart = first != second
        most = torch.cat([first[apart], second[apart]])
        return 4.0 * max((self.behind[i] for i in set(most.tolist())), default=0)


def _additions(network: Network) -> list[int]:
    """How many additions each value may have behind it since the last activation, at most."""

    def behind(i: int, parts: list[int]) -> int:
        kind = network.nodes[i].kind
        if not parts or isinstance(kind, Activation):
            return 0
        if isinstance(kind, Dense | Convolution | TransposedConvolution):
            return min(kind.terms + 1, _MANY)
        return min(sum(parts) + len(parts), _MANY)

    return fold(network, behind)


def _in_order(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows in the order of their first occurrence, and which one each row is."""
    unique, back = torch.unique(keys, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(keys)).scatter_reduce(
        0, back, torch.arange(len(keys)), "amin"
    )
    order = first.argsort()
    return unique[order], order.argsort()[back]
