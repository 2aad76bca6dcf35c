"""What underflows in the sweeps of a chain's map: they are swept once more, with two numbers a node
in place of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lipcert.network import Backward, Forward, Network, Sum, backward, forward
from lipcert.network.activations import Activation
from lipcert.network.operators import Operator
from lipcert.norms import largest_sums
from lipcert.numbers import OUT32, OUT64
from lipcert.rounding import FLOAT64_TINY


def lost_in_sweeps(
    network: Network, node: int, path: Sequence[int], mask: float, weight: float, size: int
) -> float:
    """At least what underflow takes from the length of ``G v``, divided by ``1 + ‖v‖``, for the map
    of a chain of this node of ``size`` values; ``mask`` and ``weight`` are its largest."""
    heaviest, weight = max(1.0, mask), max(1.0, weight)
    there = _LossesBack(network)
    backward(network, node, _Loss(heaviest, FLOAT64_TINY), there)
    found = forward(network, _LossesForth(there.seen, weight), along=path)
    lost = OUT64.add(OUT64.times(heaviest, found[node].lost), FLOAT64_TINY)
    return OUT64.times(lost, math.sqrt(size))


@dataclass(frozen=True)
class _Loss:
    """Of all values of a node: how large they are, and how much of them underflow has taken."""

    size: float
    lost: float

    def __add__(self, other: _Loss) -> _Loss:
        return _Loss(OUT64.add(self.size, other.size), OUT64.add(self.lost, other.lost))

    def grown(self, factor: float = 1.0, terms: int = 1) -> _Loss:
        """After one step of a sweep, of so many roundings, which multiplies by the factor."""
        fresh = OUT64.times(OUT64.add(self.size, 1.0), (terms + 2) * FLOAT64_TINY)
        size, lost = (OUT64.times(part, factor) for part in (self.size, self.lost))
        return _Loss(size, OUT64.add(lost, fresh))


def _slope(activation: Activation) -> float:
    """At least the largest middle and half-width of an activation: secants are widened by 16
    roundings of the type of the analysis, which may be float32."""
    return OUT32.up(activation.lipschitz, 64)


@dataclass(frozen=True, eq=False)
class _LossesBack(Backward[_Loss]):
    """What ``_ToSources`` loses; ``seen`` keeps what arrives at each source."""

    network: Network
    seen: dict[int, _Loss] = field(default_factory=dict)

    def affine(self, i: int, operator: Operator, value: _Loss) -> _Loss:
        return value.grown(largest_sums(operator)[1], operator.transposed_terms)

    def activation(self, i: int, activation: Activation, value: _Loss) -> _Loss:
        return value.grown(_slope(activation))

    def add(self, one: _Loss, other: _Loss) -> _Loss:
        return one + other

    def arrived(self, i: int, value: _Loss) -> _Loss:
        if i in self.network.sources:
            self.seen[i] = value
        # Values pass a sum as they are; it is charged like any other step.
        return value.grown() if isinstance(self.network.nodes[i].kind, Sum) else value


@dataclass(frozen=True, eq=False)
class _LossesForth(Forward[_Loss]):
    """What ``_FromSources`` loses, with the largest ``weight`` in every share."""

    seen: dict[int, _Loss]
    weight: float

    def input(self, i: int) -> _Loss:
        return _Loss(0.0, 0.0).grown() + self._share(i, 1.0)

    def sum(self, i: int, parts: list[_Loss]) -> _Loss:
        return sum(parts[1:], parts[0]).grown()

    def affine(self, i: int, operator: Operator, before: _Loss) -> _Loss:
        return before.grown(largest_sums(operator)[0], operator.terms)

    def activation(self, i: int, activation: Activation, before: _Loss) -> _Loss:
        slope = _slope(activation)
        return before.grown(slope) + self._share(i, slope)

    def _share(self, i: int, slope: float) -> _Loss:
        seen, steep = self.seen[i], max(1.0, slope)
        share = OUT64.times(2 * self.weight, steep, steep)
        lost = OUT64.times(OUT64.add(seen.size, 3.0), FLOAT64_TINY)
        return _Loss(OUT64.times(share, seen.size), OUT64.add(OUT64.times(share, seen.lost), lost))
