"""Sorting, however a file writes it, becomes one comparison.

``relu(a − b) + b``, ``b − relu(b − a)``, ``(a + b + |a − b|)/2``, ``−max(−a, −b)``,
``a + b − min(a, b)`` are all the maximum of ``a`` and ``b``, and moves may stand anywhere between.
By norms such a layer costs ``1 + 2 √2`` where sorting costs 1. So values are written as short
linear combinations (``forms``), and where every value of a node is one of

    p max(a, b) + q min(a, b) = (p + q)/2 (a + b) + (p − q)/2 |a − b|,   s a,

by its coefficients, exactly, the node is put together from one ``MaxMin``: sorting itself, the
sum and the distance of two values, and ``relu(a)`` beside ``relu(−a)``, which sorts ``a`` and 0.
It is the same function of real numbers, and compared at a few points as well. What the file's own
way rounds stays charged: ``MaxMin.spelling`` says how much. Reflections that are written out are
comparisons in a rotated frame (``mirrors``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.loading.bends import Bent, bent
from lipcert.loading.candidates import candidates
from lipcert.loading.forms import Forms
from lipcert.loading.mirrors import NEAR, Mirrored, mirrored
from lipcert.loading.rebuilding import Rebuilding
from lipcert.loading.sorted_values import Sorted, sorted_values
from lipcert.network import Network, fold
from lipcert.network.activations import Activation, MaxMin, PReLU
from lipcert.network.operators import (
    Convolution,
    Dense,
    Diagonal,
    TransposedConvolution,
)
from lipcert.rounding import Arithmetic

# How many comparisons may be nested.
_ROUNDS = 64
# More additions than any that are charged well.
_MANY = 2**16


def respelled(network: Network) -> Network:
    """The same function with every sorting that is written out as a comparison."""
    for _ in range(_ROUNDS):
        # Of comparisons by their parts first, then of comparisons of what was compared, then of
        # values that are compared with 0.
        changed = (
            _once(Forms(network)) or _once(Forms(network, whole=True))
            or _once(Forms(network, alone=True))
        )  # fmt: skip
        if changed is None:
            return network
        network = changed
    return network


def _once(forms: Forms) -> Network | None:
    """With the sortings that are written out of values before; None where there are none."""
    reached = candidates(forms)
    if not reached:
        return None
    found: dict[int, Sorted | Mirrored | Bent] = {}
    for i in sorted(reached):
        other = bent(forms, i) if forms.alone else mirrored(forms, i)
        known = sorted_values(forms, i) or other
        if known is not None:
            found[i] = known
    return _Making(forms.network, found, forms).rebuilt()


class _Making(Rebuilding[Sorted | Mirrored | Bent]):
    """Puts sorted nodes into the network that is built; one ``MaxMin`` for the same pairs."""

    def __init__(
        self, network: Network, known: dict[int, Sorted | Mirrored | Bent], forms: Forms
    ) -> None:
        # A file's own constants are those of a reflection only nearly, which is charged.
        exact = not any(isinstance(one, Mirrored) for one in known.values())
        super().__init__(network, known, *() if exact else (math.sqrt(NEAR),))
        self.forms = forms
        self.shared: dict[tuple[bytes, bytes, float, float, float], int] = {}
        self.behind = _additions(network)

    def made(self, i: int, known: Sorted | Mirrored | Bent) -> int:
        match known:
            case Sorted():
                return self._sort(i, known)
            case Bent():
                return self._bend(i, known)
        return self._mirror(i, known)

    def _bend(self, i: int, known: Bent) -> int:
        """Behind as many products as round what the file does (``lower``)."""
        node, builder = self.network.nodes[i], self.builder
        builder.format, shape = known.format, tuple(node.shape)
        found = builder.sum(self.gathered(known.atoms, shape, node.origin), node.origin)
        for factor in (8.0, 0.125) * math.ceil(known.spelling / 8):
            scale = torch.tensor(factor, dtype=torch.float64)
            found = builder.operator(Diagonal.of(scale, None, shape), found, node.origin)
        slope = known.slope.reshape(shape)
        if bool((slope == slope.flatten()[0]).all()):
            slope = slope.flatten()[0].clone()
        found = builder.activation(PReLU(slope), found, node.origin)
        same = torch.arange(len(known.scale))
        return self._scaled(same, known.scale, shape, found, node.origin)

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

    def _sort(self, i: int, known: Sorted) -> int:
        node, builder = self.network.nodes[i], self.builder
        builder.format = known.format
        pair, shape = known.pair, tuple(node.shape)
        unique, back = _in_order(torch.stack([known.first, known.second, known.sign], 1)[pair])
        alone, which = _in_order(known.first[~pair, None])
        additions = known.additions + self._linear(known)
        kind = MaxMin(0, known.spelling + self._merged(unique), additions, len(alone))
        name = (
            unique.numpy().tobytes(), alone.numpy().tobytes(), kind.spelling, kind.additions,
            known.within,
        )  # fmt: skip
        if name not in self.shared:
            found = self._compared(unique, alone[:, 0], known.within, node.origin)
            self.shared[name] = builder.activation(kind, found, node.origin)
        places = torch.zeros_like(known.first)
        places[pair], places[~pair] = back, 2 * len(unique) + which
        larger = torch.where(known.larger != 0, places, -1)
        smaller = torch.where(known.smaller != 0, places + len(unique), -1)
        parts = [(larger, known.larger), (smaller, known.smaller)]
        if not bool(((larger >= 0) & (smaller >= 0)).any()):
            parts = [(torch.maximum(larger, smaller), known.larger + known.smaller)]
        return builder.sum(
            [self._scaled(index, factor, shape, self.shared[name], node.origin)
             for index, factor in parts],
            node.origin,
        )  # fmt: skip

    def _scaled(
        self, index: Tensor, factor: Tensor, shape: tuple[int, ...], node: int, origin: str
    ) -> int:
        """Values of a new node, by their places in it, −1 for 0, each times a factor."""
        found = self.select(node, index, shape, origin)
        if bool((factor == 1).all()):
            return found
        scale = factor.reshape(shape)
        if bool((scale == scale.flatten()[0]).all()):
            scale = scale.flatten()[0].clone()
        return self.builder.operator(Diagonal.of(scale, None, shape), found, origin)

    def _compared(self, pairs: Tensor, alone: Tensor, within: float, origin: str) -> int:
        """Pairs ``(first, second, sign)`` as ``MaxMin`` takes them, and others that pass: node of
        shape ``(2, count)``, with those behind it in one row."""
        shape: tuple[int, ...] = (2, len(pairs))
        if len(alone):
            shape = (2 * len(pairs) + len(alone),)
        both = torch.cat([pairs[:, 0], pairs[:, 1], alone])
        node = self.builder.sum(self.gathered(both, shape, origin), origin)
        if bool((pairs[:, 2] != 1).any()):
            one, rest = torch.ones(len(pairs)), torch.ones(len(alone))
            scale = torch.cat([one, pairs[:, 2], rest]).double().reshape(shape)
            node = self.builder.operator(Diagonal.of(scale, None, shape), node, origin)
        if within < math.inf:
            own, self.builder.format = self.builder.format, Arithmetic(0.0, 0.0, within)
            node = self.builder.operator(Diagonal.of(None, None, shape), node, origin)
            self.builder.format = own
        return node

    def _linear(self, known: Sorted) -> float:
        """A sum of both values bends nothing in the file, so that what made them is still behind
        it."""
        if not bool(((known.larger == known.smaller) & known.pair).any()):
            return 0.0
        values = torch.cat([known.first[known.pair], known.second[known.pair]])
        owners = self.owners(values[values >= 0])
        most: int = max(self.behind[i] for i in set(owners.tolist()))
        return 2.0 * most

    def _merged(self, pairs: Tensor) -> float:
        """Where both values of a pair are sums of their own, either may be merged into the sum
        that makes the other: each of its additions then rounds at the size of both."""
        pairs = pairs[pairs[:, 1] >= 0]
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
