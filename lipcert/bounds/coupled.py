"""Coupled balls: a layer's ball, paid for by what the layers before it really do.

The ball ``‖M Δz‖ ≤ ρ`` of an activation's input takes the layers before it to fill balls of their
own. The norms that it was made with say more, ``‖M Δz‖² ≤ Σ_j g_j ‖Δσ_j / w_j‖² + rest`` over the
activations j before it (``Coupling``). Given a multiplier ``μ`` beside the ball's ``λ``, it adds
``μ Δz²`` to the minima of the layer's own neurons, and takes ``ν Δσ²``, ``ν = μ g_j / w_j²``, from
those of the neurons before it. On the pieces of a piecewise linear activation that is a parabola
still, so the minima stay exact; a smooth activation counts with its whole ball, ``μ g_j ρ_j²``.
With ``μ = 0`` this is the dual without. A neuron that branch and bound cuts shrinks the balls of
all later layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds.objectives import DualVariables
from lipcert.bounds.state import Layer, State
from lipcert.network import Network
from lipcert.network.activations.piecewise_linear import PiecewiseLinear
from lipcert.numbers import OUT64

# Of neurons with a smaller gain ``(Δσ/w)² ≤ Δz²`` is taken, which divides by nothing.
_THIN = 0.01
# A coupling starts with a multiplier that is smaller by a factor of e.
_BELOW = 1.0


@dataclass(frozen=True, eq=False)
class LayerMultipliers:
    """The multipliers of one layer, ``(N,)`` each: ``multiplier`` of its neurons' ``Δz²``,
    ``taken`` of what later layers take from them, ``−(Δσ/w)²``; and the ``cost`` of its balls."""

    multiplier: Tensor
    cost: Tensor
    taken: Tensor | None = None

    @classmethod
    def of(cls, layer: Layer, log: Tensor) -> LayerMultipliers:
        """Takes those of a ball without couplings."""
        multiplier = log.exp()
        return cls(multiplier, multiplier * layer.radius.square())


def layer_multipliers(
    network: Network, state: State, found: DualVariables
) -> Callable[[int], LayerMultipliers]:
    """Gives those of every layer in one sweep backwards. They are asked for from the last layer on,
    so that what a layer's coupling takes from those before it is known by then."""
    taken: dict[int, Tensor] = {}

    def multipliers_at(i: int) -> LayerMultipliers:
        layer = state[i]
        own = LayerMultipliers.of(layer, found.logs[i])
        multiplier, cost = own.multiplier, own.cost
        if i in found.couplings and layer.coupling is not None:
            more = found.couplings[i].exp()
            multiplier, cost_more = multiplier + more, more * layer.coupling.rest
            for j, factor in layer.coupling.factors.items():
                if isinstance(network.nodes[j].kind, PiecewiseLinear):
                    taken[j] = taken.get(j, 0) + more * factor
                else:
                    cost_more = cost_more + more * factor * state[j].radius.square()
            cost = cost + cost_more
        return LayerMultipliers(multiplier, cost, taken.get(i))

    return multipliers_at


def coupled(network: Network, state: State, found: DualVariables) -> DualVariables:
    """Adds a multiplier to start from for every ball that gains from a coupling."""
    couplings = {}
    for i, log in found.logs.items():
        coupling = state[i].coupling
        sources = () if coupling is None else coupling.factors
        if any(isinstance(network.nodes[j].kind, PiecewiseLinear) for j in sources):
            couplings[i] = log - _BELOW
    return replace(found, couplings=couplings)


def coupled_minimum(
    kind: PiecewiseLinear, coefficient: Tensor, slope: Tensor, multiplier: Tensor, taken: Tensor,
    layer: Layer,
) -> Tensor:  # fmt: skip
    """``min over the box of A (Δσ − c Δz) + λ Δz² − ν (Δσ/w)²`` for each neuron, up to rounding.

    ``multiplier``, ``λ`` of ball and coupling together, and ``taken``, ``ν``, broadcast against the
    box; differentiable in ``A``, ``c``, ``λ`` and ``ν``.
    """
    risen, moved = (taken * part for part in shares(layer.gain))
    curve = multiplier - moved
    anchor, lower, upper = layer.anchor, layer.lower, layer.upper
    with torch.no_grad():
        at_anchor = kind.value(anchor)
        best = torch.full_like(coefficient, torch.inf)
        change, rise = torch.zeros_like(best), torch.full_like(best, torch.nan)
        for start, end, steep, intercept in kind.pieces():
            left = torch.maximum(lower, torch.as_tensor(start, dtype=lower.dtype))
            right = torch.minimum(upper, torch.as_tensor(end, dtype=upper.dtype))
            low, high = left - anchor, right - anchor
            offset = steep * anchor + intercept - at_anchor
            # On the piece Δσ = steep Δz + offset: a parabola.
            bend = curve - steep * steep * risen
            tilt = coefficient * (steep - slope) - 2 * steep * offset * risen
            vertex = torch.minimum(torch.maximum(tilt / (-2 * bend), low), high)
            fall = tilt + bend * (low + high)
            # No number where the box has no end: what then is no number is below all.
            ends = torch.where(fall < 0, high, low) + 0 * fall
            place = torch.where(bend > 0, vertex, ends)
            value = offset * (coefficient - offset * risen) + place * (tilt + bend * place)
            value = torch.where(value.isnan(), -torch.inf, value)
            here = (left <= right) & (value < best)
            best = torch.where(here, value, best)
            change = torch.where(here, place, change)
            rise = torch.where(here, steep * place + offset, rise)
    gained = coefficient * (rise - slope * change) + curve * change.square()
    return gained - risen * rise.square()


def taken_sizes(layer: Layer, moved: Tensor, output: Tensor, lipschitz: float) -> Tensor:
    """Every number that enters ``r Δσ² + m Δz²``, in absolute value: what its rounding counts by.

    ``moved`` and ``output`` bound ``|Δσ|`` and ``|σ|`` over the box. On a piece ``Δσ`` is put
    together from ``steep Δz`` and an offset, which rounds as the values at the anchor do.
    """
    way = torch.maximum(layer.upper - layer.anchor, layer.anchor - layer.lower)
    whole = 4 * output + lipschitz * (way + layer.anchor.abs())
    parts = moved + lipschitz * way + OUT64.error(whole, 8)
    risen, straight = shares(layer.gain)
    return risen * parts * whole + straight * way.square()


def shares(gain: Tensor) -> tuple[Tensor, Tensor]:
    """``(r, m)`` with ``(Δσ/w)² ≤ r Δσ² + m Δz²`` for each neuron, one of them 0."""
    wide = gain > _THIN
    risen = torch.where(wide, 1 / torch.where(wide, gain, 1), 0).square()
    return risen, ((gain > 0) & ~wide).to(gain.dtype)
