"""The block row of a chain as a map without a matrix: one sweep back and one forth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.chain import (
    BALANCING,
    balance,
    chain_sources,
    euclidean,
    middle_and_half,
    radii_of,
    safe,
)
from lipcert.bounds.chain_losses import lost_in_sweeps
from lipcert.bounds.state import State
from lipcert.network import Backward, Forward, Network, ancestors, backward, forward
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.operators import Operator
from lipcert.norms import GramMap, times
from lipcert.norms.scaling import power


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
        mask, weight, size = float(self.mask.max()), float(self.weights.max()), self.mask[0].numel()
        lost = lost_in_sweeps(self.network, self.node, self.path, mask, weight, size)
        return torch.full_like(self.weights[:, 0], lost).nan_to_num(torch.inf, torch.inf)

    def scaled(self, by: Tensor) -> ChainMap:
        if by.device.type == "cpu" and not bool(by.any()):
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
