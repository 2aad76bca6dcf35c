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

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.state import Layer, State
from lipcert.network import Network, ancestors
from lipcert.network.activations import Elementwise
from lipcert.numbers import Outward, for_samples, halves

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
