"""The balls of layers: norms of segments, and of chains back to the pixels.

A ball is no larger than the half-diagonal of its box. By segments, over the sources s of its sink,

    ‖M Δz‖ ≤ Σ_s ‖M A_s diag(gain_s)‖ ρ_s + ‖M drift‖.

By a chain, with ``Δa_b = C_b Δz_b + R_b q_b``, ``‖q_b‖ ≤ ρ_b``, unrolled back to the pixels over
all functions b before it, for any weights ``x, y > 0``

    ‖M Δz‖ ≤ ‖[√x_0 P_0, √x_b P_b R_b, √y_b P_b C_b]‖ · (eps²/x_0 + Σ ρ_b²/x_b + Σ d_b²/y_b)^½
             + ‖M drift‖,

where ``P_b`` leads from the results of b to the sink through all ``C``, and ``d_b`` is the length
of b's own drift where it varies. All blocks together are one map with one norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.audit.linear import Part
from lipcert.audit.proofs.graph import Graph, Segments, add
from lipcert.audit.proofs.norms import Coins, Gram, gamma, near, randomised_norm
from lipcert.audit.proofs.state import Layer, State

# A norm that serves all samples is found this near.
_EXCESS = 0.002

# A norm from above: of a Gram map on the masked neurons, with a scale near it and its roundings.
NormOf = Callable[[Gram, Tensor, Tensor, float], Tensor]


def shared_norms(graph: Graph, coins: Coins) -> dict[tuple[int, int], float]:
    """``‖A_s‖`` of whole segments, by sink and source: found once for all samples."""
    found = {}
    for sink in dict.fromkeys(graph.bend(value).input for value in graph.bends):
        segments = graph.segments[sink]
        for source in segments.sources:
            width, terms = graph.widths[sink], 2 * segments.terms + 8
            gram = segment_gram(segments, source, None, None)
            scale = (near(gram, width) * (1 + _EXCESS)).clamp(min=1e-100)
            value = randomised_norm(gram, width, scale, coins, terms, _EXCESS)
            found[sink, source] = float(value[0])
    return found


def segment_gram(segments: Segments, source: int, gain: Tensor | None, mask: Tensor | None) -> Gram:
    """``M A diag(gain²) Aᵀ M``."""

    def gram(v: Tensor, absolute: bool) -> Tensor:
        part: Part = "magnitudes" if absolute else "entries"
        row = segments.back(v if mask is None else v * mask, part)[source]
        there = segments.forth({source: row if gain is None else row * gain.square()}, part)
        return there if mask is None else there * mask

    return gram


def by_segments(
    state: State,
    sink: int,
    layer: Layer,
    shared: Mapping[tuple[int, int], float],
    scales: Tensor,
    norm_of: NormOf,
) -> Tensor:
    """The ball of a layer by its segments. ``scales`` ``(B, sources)``: near the squares of norms
    of the samples' own, where these are wanted, else 0."""
    segments, mask = state.graph.segments[sink], layer.mask
    total = torch.zeros_like(layer.ball)
    for place, source in enumerate(segments.sources):
        at = state.sources[source]
        found = shared[sink, source] * at.gain.amax(1)
        wanted = (scales[:, place] > 0).nonzero().flatten()
        if len(wanted):
            gram = segment_gram(segments, source, at.gain[wanted], mask[wanted])
            own = norm_of(gram, mask[wanted], scales[wanted, place], 2 * segments.terms + 16)
            found = found.index_copy(0, wanted, torch.fmin(found[wanted], own))
        total = total + found * at.radius
    return (total + layer.drift) * (1 + gamma(len(segments.sources) + 16))


@dataclass(frozen=True, eq=False)
class Chain:
    """The chain of the layer at ``value`` for some samples: its functions, block by block."""

    graph: Graph
    value: int
    bends: tuple[int, ...]
    middles: dict[int, Tensor]
    halves: dict[int, Tensor]
    mask: Tensor
    radii: Tensor  # (B, 2S − 1): eps, ρ_b, d_b

    @classmethod
    def of(cls, state: State, value: int, mask: Tensor, rows: Tensor) -> Chain:
        """For the samples ``rows`` of a state."""
        bends = state.graph.chains[value]
        layers = {b: state.layers[b] for b in bends}
        radii = [state.eps, *(a.ball for a in layers.values()), *(a.drift for a in layers.values())]
        middles = {b: layer.middle[rows] for b, layer in layers.items()}
        halves = {b: layer.half[rows] for b, layer in layers.items()}
        stacked = torch.stack(radii, 1)[rows]
        return cls(state.graph, value, bends, middles, halves, mask[rows], stacked)

    @property
    def terms(self) -> int:
        return 16 + sum(2 * self.graph.before(b).terms + 16 for b in (self.value, *self.bends))

    def back(self, v: Tensor, part: Part = "entries") -> dict[int, Tensor]:
        """What arrives at each source."""
        pending = self.graph.before(self.value).back(v * self.mask, part)
        for b in reversed(self.bends):
            middle = self.middles[b].abs() if part == "magnitudes" else self.middles[b]
            for source, down in self.graph.before(b).back(pending[b] * middle, part).items():
                add(pending, source, down)
        return pending

    def gram(self, weights: Tensor) -> Gram:
        """Of all blocks, with these weights ``(B, 2S − 1)``."""
        count = len(self.bends)

        def apply(v: Tensor, absolute: bool) -> Tensor:
            part: Part = "magnitudes" if absolute else "entries"
            seen = self.back(v, part)
            values = {0: seen[0] * weights[:, :1]} if 0 in seen else {}
            for place, b in enumerate(self.bends, start=1):
                segments = self.graph.before(b)
                known = {s: values[s] for s in segments.sources if s in values}
                middle, half = self.middles[b], self.halves[b]
                x, y = weights[:, place, None], weights[:, place + count, None]
                share = x * half.square() + y * middle.square()
                through = segments.forth(known, part) * (middle.abs() if absolute else middle)
                values[b] = through + seen[b] * share
            last = self.graph.before(self.value)
            return last.forth({s: values[s] for s in last.sources}, part) * self.mask

        return apply

    def ball(self, weights: Tensor, scale: Tensor, norm_of: NormOf) -> Tensor:
        """``‖M Δz‖`` but for the layer's own drift."""
        found = norm_of(self.gram(weights), self.mask, scale, self.terms)
        # A drift that is 0 spends nothing whatever its weight.
        return found * (self.radii.square() / weights).sum(1).sqrt() * (1 + gamma(64))
