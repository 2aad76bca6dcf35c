"""The dual bound: one pass backwards for each margin, over box and ball of every layer jointly.

Write ``A`` for the coefficient of an activation's output in the margin. With any slope ``c`` a
neuron, ``A·Δa = (A∘c)·Δz + Σ_k A_k e_k(z_k)``, ``e_k(z) = σ(z) − σ(z0) − c_k (z − z0)``, and by
weak duality, for any multiplier ``λ > 0`` of the layer's ball ``‖M Δz‖ ≤ ρ``,

    Σ A_k e_k ≥ Σ_k min over the box of (A_k e_k(z) + λ (z − z0_k)²) − λ ρ².

The rest ``(A∘c)`` goes on through the affine operators to the activations before; at the input it
costs ``eps ‖A‖₂``. With boxes alone this is CROWN (Zhang et al., NeurIPS 2018), with balls alone
SDP-CROWN (ICML 2025, Theorem 4.1). Every slope and multiplier is sound, so an optimiser that runs
in float32 need not be trusted: ``certified`` evaluates what it found and charges every rounding,
in float64 but for the affine operators, which are applied in the network's type. Slopes of neurons
that cannot vary stay 0, because the ball leaves these neurons out.

At a joint ``A·Δf ≥ (Lᵀ A')·Δz − lost`` over the boxes of its inputs, ``A'`` the part of ``A`` that
its relaxation keeps, and nothing is free to choose. Its inputs are ``Identity``, which objectives
pass as they are; their balls are the half-diagonals of these boxes, and say nothing more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.bounds.ascent import StepSize, ascend
from lipcert.bounds.charged import ChargedPass
from lipcert.bounds.coupled import LayerMultipliers, layer_multipliers
from lipcert.bounds.objectives import DualVariables, Objectives
from lipcert.bounds.relaxed import RelaxedState
from lipcert.bounds.reverse import RigorousSweep, carry_back
from lipcert.bounds.state import Layer, State, to_dtype
from lipcert.bounds.terms import drift_worth
from lipcert.network import Network
from lipcert.network.activations import Elementwise
from lipcert.network.joints import Joint
from lipcert.numbers import EXACT

# Where the search starts: a multiplier of so much ‖A‖/ρ; 0.3 is best where balls count, less where
# boxes do.
_FIRST_MULTIPLIERS = (0.3, 0.03, 0.0003)
_SLOPE_RATE, _MULTIPLIER_RATE = 0.05, 0.1
_SLOPES = (-1.5, 2.5)

# Slopes and multipliers at an activation, from the coefficients on its output.
Choose = Callable[[int, Tensor], tuple[Tensor, LayerMultipliers]]


class DualBound:
    """Backward passes over one network with element-wise activations.

    Every method takes N objectives, with a state of N rows: a row for each objective. ``images``:
    only inputs within the box of the state's input count, those in [0, 1].
    """

    def __init__(self, network: Network, *, images: bool = False) -> None:
        self.network, self.images = network, images
        self._sweep = RigorousSweep(network)

    @torch.no_grad()
    def start(self, state: State, objectives: Objectives, *, crown: bool = False) -> DualVariables:
        """Of two places to start from the better one, for each objective: slopes as at the sample,
        or those of CROWN for the box; with ``crown`` the latter."""
        relaxed = RelaxedState(self.network, state, rough=True)
        second, box = self._started(relaxed, objectives, crown=True)
        if crown:
            return second
        first, ball = self._started(relaxed, objectives, crown=False)
        better = box > ball

        def chosen(one: Tensor, other: Tensor) -> Tensor:
            return torch.where(better.reshape(-1, *(1,) * (one.dim() - 1)), other, one)

        return DualVariables(
            {i: chosen(slope, second.slopes[i]) for i, slope in first.slopes.items()},
            {i: chosen(log, second.logs[i]) for i, log in first.logs.items()},
        )

    def _started(
        self, relaxed: RelaxedState, objectives: Objectives, *, crown: bool
    ) -> tuple[DualVariables, Tensor]:
        """Slopes, at each layer the best of a few multipliers for them, and the change they give.

        CROWN takes the chord above, and below the slope in the middle of the box.
        """
        found = DualVariables({}, {})

        def go(i: int, value: Tensor) -> tuple[Tensor, Tensor]:
            layer, kind = relaxed.state[i], relaxed.kind(i)
            slope = crown_slopes(kind, layer, value) if crown else kind.derivative(layer.anchor)
            slope = found.slopes[i] = (slope * layer.varying).expand_as(value)
            size = value.flatten(1).norm(dim=1).clamp(min=1e-12)
            first = size / layer.radius.clamp(min=1e-12)
            best, found.logs[i] = torch.full_like(first, -torch.inf), first.log()
            for share in _FIRST_MULTIPLIERS:
                log = (share * first).log()
                multipliers = LayerMultipliers.of(layer, log)
                passed, gained = relaxed.passed(i, value, slope, multipliers)
                better = gained > best
                best = torch.where(better, gained, best)
                found.logs[i] = torch.where(better, log, found.logs[i])
            return passed, best

        return found, relaxed.change(objectives, go, images=self.images)

    def change(self, state: State, objectives: Objectives, found: DualVariables) -> Tensor:
        """A lower bound of how much each objective changes over the ball, but for rounding:
        ``(N,)``.

        Differentiable in the multipliers.
        """
        return self._change(RelaxedState(self.network, state), objectives, found)

    def _change(
        self, relaxed: RelaxedState, objectives: Objectives, found: DualVariables
    ) -> Tensor:
        multipliers_at = layer_multipliers(self.network, relaxed.state, found)

        def go(i: int, value: Tensor) -> tuple[Tensor, Tensor]:
            slope = found.slopes[i] * relaxed.state[i].varying
            return relaxed.passed(i, value, slope, multipliers_at(i))

        return relaxed.change(objectives, go, images=self.images)

    def change_by(self, state: State, objectives: Objectives, choose: Choose) -> Tensor:
        """``change`` with slopes and multipliers that are chosen on the way; differentiable in the
        state too, with piecewise linear activations."""
        relaxed = RelaxedState(self.network, state)

        def go(i: int, value: Tensor) -> tuple[Tensor, Tensor]:
            return relaxed.passed(i, value, *choose(i, value))

        return relaxed.change(objectives, go, images=self.images)

    @torch.no_grad()
    def drifts(self, state: State, objectives: Objectives) -> Tensor:
        """What the drifts of all layers are worth to each objective, to first order: ``(N,)``."""
        relaxed, total = RelaxedState(self.network, state), torch.zeros_like(state[0].radius)

        def relax(i: int, value: Tensor) -> Tensor:
            nonlocal total
            layer = state[i]
            passed = value * relaxed.kind(i).derivative(layer.anchor) * layer.varying
            if layer.drift is not None:
                total = total + drift_worth(passed, layer, EXACT)
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            return relaxed.joined(i, value)[0]

        carry_back(self.network, objectives.node, objectives.coefficients, relax, join)
        return total

    @torch.no_grad()
    def losses(
        self, state: State, objectives: Objectives, found: DualVariables
    ) -> dict[int, Tensor]:
        """How far the relaxed minimum of each neuron lies below 0, its value at the sample."""
        losses, multipliers_at = {}, layer_multipliers(self.network, state, found)
        relaxed = RelaxedState(self.network, state)

        def relax(i: int, value: Tensor) -> Tensor:
            if relaxed.is_kept(i):
                return value
            slope = found.slopes[i] * state[i].varying
            losses[i] = -relaxed.minima(i, value, slope, multipliers_at(i))
            return value * slope

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            return relaxed.joined(i, value)[0]

        carry_back(self.network, objectives.node, objectives.coefficients, relax, join)
        return losses

    def certified(self, state: State, objectives: Objectives, found: DualVariables) -> Tensor:
        """As ``change``, with every rounding charged: ``(N,)``, in float64 (``charged.py``)."""
        state, found = to_dtype(state, torch.float64), found.to(torch.float64)
        objectives = objectives.to(self.network.anchor.dtype)
        charged = ChargedPass(self.network, state, found)
        start = objectives.node, objectives.coefficients
        reached = self._sweep(*start, charged.relax, charged.join)
        return charged.proven(reached, images=self.images)

    def optimise(
        self,
        state: State,
        objectives: Objectives,
        found: DualVariables,
        steps: int,
        *,
        rate: float = 1.0,
    ) -> tuple[Tensor, DualVariables]:
        """Gradient ascent; the best change seen of each pair, and where it was seen."""
        if not found.slopes:
            return self.change(state, objectives, found), found
        relaxed = RelaxedState(self.network, state, rough=True)
        steep, flat = len(found.slopes), len(found.numbers) - len(found.slopes)
        step_sizes = [StepSize(rate * _SLOPE_RATE, _SLOPES)] * steep + [
            StepSize(rate * _MULTIPLIER_RATE)
        ] * flat
        best, numbers = ascend(
            lambda now: self._change(relaxed, objectives, found.of(now)),
            found.numbers, step_sizes, steps,
        )  # fmt: skip
        better = found.of(numbers)
        if not any(relaxed.kind(i).rough for i in relaxed.activations):
            return best, better
        with torch.no_grad():
            first, best = (self.change(state, objectives, some) for some in (found, better))
        worse = (~(best > first)).nonzero().flatten()
        return torch.maximum(first, best), better.replaced(worse, found.select(worse))


def crown_slopes(kind: Elementwise, layer: Layer, value: Tensor) -> Tensor:
    """CROWN's slopes for objectives: the chord above, and below the slope in the box's middle."""
    wide = layer.upper - layer.lower
    rise = kind.value(layer.upper) - kind.value(layer.lower)
    middle = kind.derivative((layer.lower + layer.upper) / 2)
    chord = torch.where(wide > 0, rise / torch.where(wide > 0, wide, 1), middle)
    return torch.where(value < 0, chord, middle).nan_to_num(0.0).clamp(*_SLOPES)
