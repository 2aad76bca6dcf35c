"""Chains: how far a node moves, from the balls of all layers before it at once.

Write ``C`` and ``R`` for the middle and the half-width of an activation's secant range, so that
``Δa = C Δz + R q`` with ``|q| ≤ |Δz|`` and so ``‖q‖₂ ≤ ρ``, the layer's ball. Unrolled back to the
input, ``M Δv = Σ_i P_i q_i`` over all sources i, with ``P_i = M A C … A_{i+1} R_i``, and ``P_0 Δx``
for the input itself. For any weights ``x_i > 0``

    ‖M Δv‖₂ ≤ ‖[√x_0 P_0, √x_1 P_1, …]‖₂ · (Σ_i ρ_i² / x_i)^½.

With ``x_i = ρ_i / ‖P_i‖`` this is never more than the sum ``Σ_i ‖P_i‖ ρ_i`` (compare LipLT, Fazlyab
et al., NeurIPS 2023), and much less where the sources move the node in different directions: norms
of a block row in place of sums of norms. All blocks together are one map and take one norm. What
an anchor drifts from the anchors before it, ``δ_i``, goes on from there as ``C δ_i``: one more
block of each activation, ``D_i = M A C … A_{i+1} C_i``, with the ball ``‖δ_i‖ ≤ d_i``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.state import Layer, State
from lipcert.network import Backward, Forward, Network, Sum, ancestors, backward, forward
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.operators import Operator
from lipcert.norms import GramMap, largest_sums, times
from lipcert.norms.scaling import power
from lipcert.numbers import OUT32, OUT64, Outward, for_samples, halves
from lipcert.rounding import FLOAT64_TINY

# Rounds of balancing, the first of full length.
BALANCING = 5


@dataclass(frozen=True, eq=False)
class Chain:
    """``‖M Δv‖₂ ≤ norm · (Σ_b r_b² / x_b)^½`` over the blocks b, the ``P`` of all S sources and
    then the ``D`` of all but the input: ``norm`` ``(B,)``, ``weights`` ``(B, 2S − 1)`` the ``x``.

    It holds at every radius up to the one it was found at, as secant ranges only widen.
    """

    sources: tuple[int, ...]
    weights: Tensor
    norm: Tensor

    def select(self, rows: Tensor) -> Chain:
        """Of some of the samples."""
        return Chain(self.sources, self.weights[rows], self.norm[rows])

    def length(self, state: State) -> Tensor:
        radii, own = radii_of(self.sources, state), for_samples(self.norm.dtype)
        squares = own.quotient(own.times(radii, radii), self.weights)
        return own.times(self.norm, own.root(own.sum(squares)))


def radii_of(sources: tuple[int, ...], state: State) -> Tensor:
    """The balls of the blocks, ``ρ`` and then ``d``: ``(B, 2S − 1)``."""
    balls, drifts = [state[i].radius for i in sources], [state[i].drifted for i in sources[1:]]
    return torch.stack([*balls, *drifts], 1)


def middle_and_half(activation: Elementwise, layer: Layer, own: Outward) -> tuple[Tensor, Tensor]:
    """``C`` and ``R ≥ 0`` of one activation, 0 where it cannot vary."""
    secants = activation.secant(layer.lower, layer.upper, layer.anchor)
    middle, half = halves(secants, own)
    return middle * layer.varying, half * layer.varying


def chain_sources(network: Network, node: int) -> tuple[int, ...]:
    """The sources among them; none but the input: no chain, as the segment says it all."""
    sources = set(network.sources) & set(ancestors(network, node))
    return tuple(sorted(sources)) if len(sources) > 1 else ()


@dataclass(frozen=True, eq=False)
class ChainMap(GramMap):
    """The block row ``[√x_b P_b]`` of a node, matrix-free, by its Gram map ``Σ_b x_b P_b P_bᵀ``.

    One sweep back and one forth serve all blocks: what goes back past an activation comes forth
    again through its ``C``, and the share ``x R² + x' C²`` of its two blocks is added there.
    """

    network: Network
    node: int
    middles: dict[int, Tensor]
    halves: dict[int, Tensor]
    weights: Tensor
    mask: Tensor

    @classmethod
    def of(cls, network: Network, node: int, state: State, mask: Tensor) -> ChainMap:
        """With weights 1 for balls and 0 for drifts, as yet."""
        middles, halves = {}, {}
        for i in chain_sources(network, node)[1:]:
            kind = network.nodes[i].kind
            assert isinstance(kind, Elementwise)
            middles[i], halves[i] = middle_and_half(kind, state[i], network.outward)
        weights = mask.new_zeros(len(mask), 2 * len(middles) + 1)
        weights[:, : len(middles) + 1] = 1
        return cls(network, node, middles, halves, weights, mask)

    @property
    def sources(self) -> tuple[int, ...]:
        return (0, *self.middles)

    @property
    def support(self) -> Tensor:
        return self.mask

    @cached_property
    def path(self) -> tuple[int, ...]:
        return ancestors(self.network, self.node)

    @cached_property
    def terms(self) -> int:
        """The roundings of all the path's nodes together: more than of any one way through."""
        total = 8
        for i in self.path:
            node = self.network.nodes[i]
            total += len(node.inputs) + 8
            if isinstance(node.kind, Operator):
                total += node.kind.terms + node.kind.transposed_terms
        return total

    @cached_property
    def underflow(self) -> Tensor:
        """The sweeps of ``_gram`` once more, with two numbers a node in place of its values: a
        bound of their size, and of what underflow has taken of them."""
        heaviest, weight = max(1.0, float(self.mask.max())), max(1.0, float(self.weights.max()))
        there = _LossesBack(self.network)
        backward(self.network, self.node, _Loss(heaviest, FLOAT64_TINY), there)
        found = forward(self.network, _LossesForth(there.seen, weight), along=self.path)
        lost = OUT64.add(OUT64.times(heaviest, found[self.node].lost), FLOAT64_TINY)
        lost = OUT64.times(lost, math.sqrt(self.mask[0].numel()))
        return torch.full_like(self.weights[:, 0], lost).nan_to_num(math.inf, math.inf)

    def scaled(self, by: Tensor) -> ChainMap:
        if not bool(by.any()):
            return self
        factor = power(by).to(self.mask.dtype)
        return replace(self, mask=self.mask * factor.reshape(-1, *(1,) * (self.mask.dim() - 1)))

    @cached_property
    def shares(self) -> dict[int, Tensor]:
        """What the blocks of each source add to the Gram map."""
        shape = self.network.in_shape
        shares = {0: self.weights[:, 0].reshape(-1, *(1,) * len(shape)).expand(-1, *shape)}
        for k, (i, half) in enumerate(self.halves.items(), start=1):
            x, y = (
                self.weights[:, place].reshape(-1, *(1,) * (half.dim() - 1))
                for place in (k, k + len(self.halves))
            )
            shares[i] = x * half.square() + y * self.middles[i].square()
        return shares

    def gram(self, v: Tensor) -> Tensor:
        return self._gram(v, absolute=False)

    def absolute_gram(self, v: Tensor) -> Tensor:
        return self._gram(v, absolute=True)

    def over(self, network: Network) -> ChainMap:
        dtype = network.anchor.dtype
        middles = {i: middle.to(dtype) for i, middle in self.middles.items()}
        halves = {i: half.to(dtype) for i, half in self.halves.items()}
        weights, mask = self.weights.to(dtype), self.mask.to(dtype)
        return ChainMap(network, self.node, middles, halves, weights, mask)

    def weighted(self, weights: Tensor) -> ChainMap:
        return ChainMap(self.network, self.node, self.middles, self.halves, weights, self.mask)

    def balanced(self, state: State) -> ChainMap:
        """With weights that make the bound small.

        At the best ones ``x_b = r_b / ‖P_bᵀ u‖``, ``u`` the top singular vector: a few rounds of
        power iteration move towards that, from a vector that has nothing to do with any coins.
        """
        radii = radii_of(self.sources, state).to(self.weights.dtype)
        index = torch.arange(self.mask[0].numel(), device=radii.device)
        index = index.reshape(self.mask[0].shape)
        u, mapping = torch.cos(1.0 + index.to(self.mask)) * self.mask, self
        for step in range(BALANCING):
            for _ in range(2):
                u = u / safe(euclidean(u)).reshape(-1, *(1,) * (u.dim() - 1))
                u = mapping.gram(u)
            weights = balance(mapping.weights, radii, mapping._sizes(u), first=step == 0)
            mapping = mapping.weighted(weights)
        return mapping

    def _sizes(self, u: Tensor) -> Tensor:
        """``‖P_bᵀ u‖``, ``(B, 2S − 1)``."""
        seen = self._back(u * self.mask, absolute=False)
        blocks = [seen[0]]
        for factors in (self.halves, self.middles):
            blocks += [seen[i] * factor for i, factor in factors.items()]
        return torch.stack([euclidean(block) for block in blocks], 1)

    def _back(self, v: Tensor, *, absolute: bool) -> dict[int, Tensor]:
        """The coefficients that arrive at each source."""
        rules = _ToSources(self, absolute)
        backward(self.network, self.node, v, rules)
        return rules.seen

    def _gram(self, v: Tensor, *, absolute: bool) -> Tensor:
        seen = self._back(times(v, self.mask), absolute=absolute)
        found = forward(self.network, _FromSources(self, seen, absolute), along=self.path)
        return times(found[self.node], self.mask)

    def middle(self, node: int, absolute: bool) -> Tensor:
        return self.middles[node].abs() if absolute else self.middles[node]


@dataclass(frozen=True, eq=False)
class _ToSources(Backward[Tensor]):
    """Back through the linearised network; ``seen`` keeps what arrives at each source."""

    chain: ChainMap
    absolute: bool
    seen: dict[int, Tensor] = field(default_factory=dict)

    def affine(self, i: int, operator: Operator, value: Tensor) -> Tensor:
        return operator.transpose_magnitude(value) if self.absolute else operator.transpose(value)

    def activation(self, i: int, activation: Activation, value: Tensor) -> Tensor:
        return times(value, self.chain.middle(i, self.absolute))

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other

    def arrived(self, i: int, value: Tensor) -> Tensor:
        if i == 0 or i in self.chain.middles:
            self.seen[i] = value
        return value


@dataclass(frozen=True, eq=False)
class _FromSources(Forward[Tensor]):
    """Forth through the linearised network, each source adding its share of what was ``seen``."""

    chain: ChainMap
    seen: dict[int, Tensor]
    absolute: bool

    def input(self, i: int) -> Tensor:
        return times(self.seen[0], self.chain.shares[0])

    def sum(self, i: int, parts: list[Tensor]) -> Tensor:
        return sum(parts[1:], parts[0])

    def affine(self, i: int, operator: Operator, before: Tensor) -> Tensor:
        return operator.magnitude(before) if self.absolute else operator.apply(before)

    def activation(self, i: int, activation: Activation, before: Tensor) -> Tensor:
        passed = times(before, self.chain.middle(i, self.absolute))
        return passed + times(self.seen[i], self.chain.shares[i])


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


def balance(weights: Tensor, radii: Tensor, sizes: Tensor, *, first: bool) -> Tensor:
    """Half a step, on a logarithmic scale, from ``weights`` to ``ρ / sizes``, all ``(B, b)``; the
    first step goes all the way."""
    sizes = sizes.maximum(1e-6 * sizes.amax(1, keepdim=True))
    wanted = radii / safe(sizes)
    wanted = wanted / safe(wanted.amax(1, keepdim=True))
    moved = (wanted if first else (weights * wanted).sqrt()).clamp(min=1e-9)
    return torch.where(torch.isfinite(moved).all(1, keepdim=True), moved, 1.0)


def euclidean(values: Tensor) -> Tensor:
    """But for rounding."""
    found: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return found


def safe(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1)
