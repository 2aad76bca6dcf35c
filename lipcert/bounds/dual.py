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

At a joint ``A·Δf = (Lᵀ A)·Δz + A·e`` with ``|e| ≤ r`` over the boxes of its inputs: it costs
``|A|·r``, and nothing is free to choose. Its inputs are ``Identity``, which objectives pass as they
are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.bounds.ascent import StepSize, ascend
from lipcert.bounds.coupled import LayerMultipliers, coupled_minimum, layer_multipliers
from lipcert.bounds.objectives import DualVariables, Objectives
from lipcert.bounds.reverse import RigorousSweep, carry_back, length
from lipcert.bounds.state import Layer, State, to_dtype
from lipcert.bounds.terms import (
    against,
    drift_worth,
    error_worth,
    least_at_input,
    rounding_of,
)
from lipcert.bounds.underflow import MOST_OF_JOINTS
from lipcert.network import Network
from lipcert.network.activations import Elementwise, Identity, Relaxation
from lipcert.network.activations.piecewise_linear import PiecewiseLinear
from lipcert.network.joints import Derivative, Joint
from lipcert.numbers import EXACT, OUT64
from lipcert.rounding import gamma

# Where the search starts: a multiplier of so much ‖A‖/ρ; 0.3 is best where balls count, less where
# boxes do.
_FIRST_MULTIPLIERS = (0.3, 0.03, 0.0003)
_SLOPE_RATE, _MULTIPLIER_RATE = 0.05, 0.1
_SLOPES = (-1.5, 2.5)

# Of each joint a linear map and an error, for the boxes of its inputs.
Lines = dict[int, tuple[Derivative, Tensor]]
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
        relaxations, lines = self._relaxations(state, rough=True), self._lines(state)
        second, box = self._start(state, relaxations, lines, objectives, crown=True)
        if crown:
            return second
        first, ball = self._start(state, relaxations, lines, objectives, crown=False)
        better = box > ball

        def chosen(one: Tensor, other: Tensor) -> Tensor:
            return torch.where(better.reshape(-1, *(1,) * (one.dim() - 1)), other, one)

        return DualVariables(
            {i: chosen(slope, second.slopes[i]) for i, slope in first.slopes.items()},
            {i: chosen(log, second.logs[i]) for i, log in first.logs.items()},
        )

    def _start(
        self,
        state: State,
        relaxations: dict[int, Relaxation],
        lines: Lines,
        objectives: Objectives,
        *,
        crown: bool,
    ) -> tuple[DualVariables, Tensor]:
        """Slopes, at each layer the best of a few multipliers for them, and the change they give.

        CROWN takes the chord above, and below the slope in the middle of the box.
        """
        slopes, logs = {}, {}
        total = torch.zeros_like(state[0].radius)

        def relax(i: int, value: Tensor) -> Tensor:
            nonlocal total
            if self._is_kept(i):
                return value
            layer, kind = state[i], self._kind(i)
            slope = kind.derivative(layer.anchor)
            if crown:
                wide = layer.upper - layer.lower
                rise = kind.value(layer.upper) - kind.value(layer.lower)
                middle = kind.derivative((layer.lower + layer.upper) / 2)
                chord = torch.where(wide > 0, rise / torch.where(wide > 0, wide, 1), middle)
                slope = torch.where(value < 0, chord, middle).nan_to_num(0.0).clamp(*_SLOPES)
            slopes[i] = (slope * layer.varying).expand_as(value)
            size = value.flatten(1).norm(dim=1).clamp(min=1e-12)
            first = size / layer.radius.clamp(min=1e-12)
            best = torch.full_like(total, -torch.inf)
            logs[i] = first.log()
            for share in _FIRST_MULTIPLIERS:
                log = (share * first).log()
                multipliers = LayerMultipliers.of(layer, log)
                passed, gained = self._relax(
                    relaxations[i], i, value, layer, slopes[i], multipliers
                )
                better = gained > best
                best, logs[i] = torch.where(better, gained, best), torch.where(better, log, logs[i])
            total = total + best
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            nonlocal total
            parts, lost = _joined(*lines[i], value)
            total = total - lost
            return parts

        rest = carry_back(self.network, objectives.node, objectives.coefficients, relax, join)
        if rest is not None:
            total = total + least_at_input(rest, state[0], images=self.images)[0]
        return DualVariables(slopes, logs), total

    def change(self, state: State, objectives: Objectives, found: DualVariables) -> Tensor:
        """A lower bound of how much each objective changes over the ball, but for rounding:
        ``(N,)``.

        Differentiable in the multipliers.
        """
        return self._change(state, self._relaxations(state), self._lines(state), objectives, found)

    def _change(
        self,
        state: State,
        relaxations: dict[int, Relaxation],
        lines: Lines,
        objectives: Objectives,
        found: DualVariables,
    ) -> Tensor:
        multipliers_at = layer_multipliers(self.network, state, found)

        def choose(i: int, value: Tensor) -> tuple[Tensor, LayerMultipliers]:
            return found.slopes[i] * state[i].varying, multipliers_at(i)

        return self._swept(state, relaxations, lines, objectives, choose)

    def change_by(self, state: State, objectives: Objectives, choose: Choose) -> Tensor:
        """``change`` with slopes and multipliers that are chosen on the way; differentiable in the
        state too, with piecewise linear activations."""
        relaxations, lines = self._relaxations(state), self._lines(state)
        return self._swept(state, relaxations, lines, objectives, choose)

    def _swept(
        self,
        state: State,
        relaxations: dict[int, Relaxation],
        lines: Lines,
        objectives: Objectives,
        choose: Choose,
    ) -> Tensor:
        total = torch.zeros_like(state[0].radius)

        def relax(i: int, value: Tensor) -> Tensor:
            nonlocal total
            if self._is_kept(i):
                return value
            slope, multipliers = choose(i, value)
            passed, gained = self._relax(relaxations[i], i, value, state[i], slope, multipliers)
            total = total + gained
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            nonlocal total
            parts, lost = _joined(*lines[i], value)
            total = total - lost
            return parts

        rest = carry_back(self.network, objectives.node, objectives.coefficients, relax, join)
        if rest is None:
            return total
        return total + least_at_input(rest, state[0], images=self.images)[0]

    @torch.no_grad()
    def drifts(self, state: State, objectives: Objectives) -> Tensor:
        """What the drifts of all layers are worth to each objective, to first order: ``(N,)``."""
        total, lines = torch.zeros_like(state[0].radius), self._lines(state)

        def relax(i: int, value: Tensor) -> Tensor:
            nonlocal total
            layer = state[i]
            passed = value * self._kind(i).derivative(layer.anchor) * layer.varying
            if layer.drift is not None:
                total = total + drift_worth(passed, layer, EXACT)
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            return _joined(*lines[i], value)[0]

        carry_back(self.network, objectives.node, objectives.coefficients, relax, join)
        return total

    def _relaxations(self, state: State, *, rough: bool = False) -> dict[int, Relaxation]:
        """What each activation's box is to a backward pass."""
        found = {}
        for i, layer in state.items():
            if i and not self._is_kept(i):
                kind = self._kind(i)
                relaxation = kind.rough_relaxation if rough else kind.relaxation
                found[i] = relaxation(layer.anchor, layer.lower, layer.upper, layer.varying)
        return found

    def _lines(self, state: State) -> Lines:
        """What each joint is over the boxes of its inputs: a linear map, and an error."""
        found = {}
        for i in self.network.joints:
            node = self.network.nodes[i]
            layers = [state[j] for j in node.inputs]
            anchors = [layer.anchor for layer in layers]
            assert isinstance(node.kind, Joint)
            found[i] = (
                node.kind.derivative(anchors),
                node.kind.remainder(anchors, [(layer.lower, layer.upper) for layer in layers]),
            )
        return found

    @torch.no_grad()
    def losses(
        self, state: State, objectives: Objectives, found: DualVariables
    ) -> dict[int, Tensor]:
        """How far the relaxed minimum of each neuron lies below 0, its value at the sample."""
        losses, multipliers_at = {}, layer_multipliers(self.network, state, found)
        lines = self._lines(state)

        def relax(i: int, value: Tensor) -> Tensor:
            if self._is_kept(i):
                return value
            slope = found.slopes[i] * state[i].varying
            losses[i] = -self._minima(self._kind(i), value, state[i], slope, multipliers_at(i))
            return value * slope

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            return _joined(*lines[i], value)[0]

        carry_back(self.network, objectives.node, objectives.coefficients, relax, join)
        return losses

    def _kind(self, node: int) -> Elementwise:
        kind = self.network.nodes[node].kind
        assert isinstance(kind, Elementwise)
        return kind

    def _is_kept(self, node: int) -> bool:
        """Whether objectives pass it as they are."""
        return isinstance(self.network.nodes[node].kind, Identity)

    def _relax(
        self,
        relaxation: Relaxation,
        i: int,
        value: Tensor,
        layer: Layer,
        slope: Tensor,
        multipliers: LayerMultipliers,
    ) -> tuple[Tensor, Tensor]:
        """The coefficients before an activation, and its least error over box and ball: ``(N,)``.

        Neurons that cannot vary have no error, and no part in the ball.
        """
        if multipliers.taken is None:
            passed, least = relaxation(value, slope, against(multipliers.multiplier, value))
        else:
            minima = self._minima(self._kind(i), value, layer, slope, multipliers)
            passed, least = value * slope, minima.flatten(1).sum(1)
        return passed, least - multipliers.cost

    def _minima(
        self,
        activation: Elementwise,
        value: Tensor,
        layer: Layer,
        slope: Tensor,
        multipliers: LayerMultipliers,
    ) -> Tensor:
        """The relaxed minimum of each neuron."""
        column = against(multipliers.multiplier, value)
        if multipliers.taken is None:
            minima = activation.relaxed_minimum(
                value, slope, column, layer.anchor, layer.lower, layer.upper
            )
        else:
            assert isinstance(activation, PiecewiseLinear)
            taken = against(multipliers.taken, value)
            minima = coupled_minimum(activation, value, slope, column, taken, layer)
        return torch.where(layer.varying != 0, minima, 0)

    def certified(self, state: State, objectives: Objectives, found: DualVariables) -> Tensor:
        """As ``change``, with every rounding charged: ``(N,)``, in float64.

        Let ``v`` be what the coefficients on an activation's output should be, and ``w`` what was
        computed for them since the last activation, ``‖v − w‖₂ ≤ E``. As ``v·Δa ≥ w·Δa − E ‖Δa‖₂``,
        ``E ‖Δa‖₂`` is charged there, with the box's ``Δa``, and the pass goes on from ``w`` as if
        it were exact. So no error is carried past an activation, where it would grow like a product
        of norms with the depth; at the input it costs ``E eps``. What values drift from those of
        the layers before is charged value by value. The sums are charged by ``γ`` of their absolute
        terms.
        """
        state, found = to_dtype(state, torch.float64), found.to(torch.float64)
        objectives = objectives.to(self.network.anchor.dtype)
        eps, unit = state[0].radius, self.network.outward.unit
        total, charge = torch.zeros_like(eps), torch.zeros_like(eps)
        relaxations, multipliers_at = (
            self._relaxations(state),
            layer_multipliers(self.network, state, found),
        )
        lines, steep = self._lines(state), torch.ones_like(eps)

        def relax(i: int, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal total, charge
            if self._is_kept(i):
                charge = OUT64.add(charge, error_worth(error, state[i]))
                if state[i].drift is not None:
                    charge = OUT64.add(charge, drift_worth(value, state[i], OUT64))
                return value, torch.zeros_like(error)
            layer, multipliers, dtype, value = (
                state[i],
                multipliers_at(i),
                value.dtype,
                value.double(),
            )
            slope = found.slopes[i] * layer.varying
            passed, gained = self._relax(relaxations[i], i, value, layer, slope, multipliers)
            total, passed = total + gained, passed.to(dtype)
            charge = charge + rounding_of(self._kind(i), value, error, layer, slope, multipliers)
            # The product with the slope is rounded, and to the network's type.
            error = OUT64.times(length(passed), 4 * unit)
            if layer.drift is not None:
                lost = OUT64.times(error, layer.drifted)
                charge = OUT64.add(charge, drift_worth(passed, layer, OUT64), lost)
            return passed, error

        def join(i: int, joint: Joint, value: Tensor, error: Tensor) -> list[tuple[Tensor, Tensor]]:
            nonlocal charge, steep
            (line, rest), dtype = lines[i], value.dtype
            norms = line.steepness(joint.in_shapes, joint.out_shape, value.double())
            steep = steep * torch.stack(norms).sum(0).clamp(min=1)
            lost = OUT64.sum(OUT64.times(value.double().abs(), rest))
            charge = OUT64.add(charge, lost, OUT64.times(error, length(rest)))
            # Of the transpose, as it is computed, and of rounding to the network's type.
            made = OUT64.times(length(value), 4 * unit * (line.transposed_terms + 9))
            error, parts = OUT64.add(error, made), line.transpose(value.double()[:, None])
            pairs = zip(parts, norms, strict=True)
            return [(part[:, 0].to(dtype), OUT64.times(error, norm)) for part, norm in pairs]

        reached = self._sweep(objectives.node, objectives.coefficients, relax, join)
        # What squares that underflow can cost was bounded for joints that amplify no more.
        charge = torch.where(steep <= MOST_OF_JOINTS, charge, torch.inf)
        if reached is not None:
            rest, error = reached
            least, sizes = least_at_input(rest.double(), state[0], images=self.images)
            total = total + least
            charge = charge + eps * error + gamma(math.prod(rest.shape[1:]) + 32) * sizes
        summed = OUT64.gamma(4 * len(state) + 16) * total.abs()
        return OUT64.below(total, OUT64.up(charge, 8 * (len(state) + 4)), summed)

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
        relaxations, lines = self._relaxations(state, rough=True), self._lines(state)
        steep, flat = len(found.slopes), len(found.numbers) - len(found.slopes)
        step_sizes = [StepSize(rate * _SLOPE_RATE, _SLOPES)] * steep + [
            StepSize(rate * _MULTIPLIER_RATE)
        ] * flat
        best, numbers = ascend(
            lambda now: self._change(state, relaxations, lines, objectives, found.of(now)),
            found.numbers, step_sizes, steps,
        )  # fmt: skip
        better = found.of(numbers)
        if not any(self._kind(i).rough for i in relaxations):
            return best, better
        with torch.no_grad():
            first, best = (self.change(state, objectives, some) for some in (found, better))
        worse = (~(best > first)).nonzero().flatten()
        return torch.maximum(first, best), better.replaced(worse, found.select(worse))


def _joined(line: Derivative, rest: Tensor, value: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Coefficients before a joint, one tensor an input, and what its remainder costs each
    objective."""
    parts = tuple(part[:, 0] for part in line.transpose(value[:, None]))
    return parts, (value.abs() * rest).flatten(1).sum(1)
