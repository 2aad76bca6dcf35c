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

import torch
from torch import Tensor

from lipcert.bounds.anchored import Layer, State, to_dtype
from lipcert.bounds.ascent import Gait, ascend
from lipcert.bounds.coupled import Price, Prices, coupled_minimum, taken_sizes
from lipcert.bounds.forms import Forms, Multipliers
from lipcert.bounds.reverse import RigorousSweep, carry_back, length
from lipcert.bounds.underflow import MOST_OF_JOINTS
from lipcert.network import Network
from lipcert.network.activations import Crossing, Elementwise, Identity
from lipcert.network.activations.piecewise_linear import PiecewiseLinear
from lipcert.network.joints import Derivative, Joint
from lipcert.rounding import FLOAT64, gamma

# Where the search starts: a multiplier of so much ‖A‖/ρ; 0.3 is best where balls count, less where
# boxes do.
_FIRST_MULTIPLIERS = (0.3, 0.03, 0.0003)
_SLOPE_RATE, _MULTIPLIER_RATE = 0.05, 0.1
_INPUT_STEPS = 4
_SLOPES = (-1.5, 2.5)


# Of each joint a linear map and an error, for the boxes of its inputs.
Lines = dict[int, tuple[Derivative, Tensor]]


class DualBound:
    """Backward passes over one network with element-wise activations.

    Every method takes N forms, with a state of N rows: a row for each form. ``images``: only inputs
    within the box of the state's input count, those in [0, 1].
    """

    def __init__(self, network: Network, *, images: bool = False) -> None:
        self.network, self.images = network, images
        self._sweep = RigorousSweep(network)

    @torch.no_grad()
    def start(self, state: State, forms: Forms, *, crown: bool = False) -> Multipliers:
        """Of two places to start from the better one, for each form: slopes as at the sample, or
        those of CROWN for the box; with ``crown`` the latter."""
        crossings = self._crossings(state, rough=True)
        lines = self._lines(state)
        second, box = self._start(state, crossings, lines, forms, crown=True)
        if crown:
            return second
        first, ball = self._start(state, crossings, lines, forms, crown=False)
        better = box > ball

        def chosen(one: Tensor, other: Tensor) -> Tensor:
            return torch.where(better.reshape(-1, *(1,) * (one.dim() - 1)), other, one)

        return Multipliers(
            {i: chosen(slope, second.slopes[i]) for i, slope in first.slopes.items()},
            {i: chosen(log, second.logs[i]) for i, log in first.logs.items()},
        )

    def _start(
        self,
        state: State,
        crossings: dict[int, Crossing],
        lines: Lines,
        forms: Forms,
        *,
        crown: bool,
    ) -> tuple[Multipliers, Tensor]:
        """Slopes, at each layer the best of a few multipliers for them, and the change they give.

        CROWN takes the chord above, and below the slope in the middle of the box.
        """
        slopes, logs = {}, {}
        total = torch.zeros_like(state[0].radius)

        def cross(i: int, value: Tensor) -> Tensor:
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
                price = Price.of(layer, log)
                passed, gained = self._relax(crossings[i], kind, value, layer, slopes[i], price)
                better = gained > best
                best, logs[i] = torch.where(better, gained, best), torch.where(better, log, logs[i])
            total = total + best
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            nonlocal total
            parts, lost = _joined(*lines[i], value)
            total = total - lost
            return parts

        rest = carry_back(self.network, forms.node, forms.coefficients, cross, join)
        if rest is not None:
            total = total + self._least(rest, state[0])[0]
        return Multipliers(slopes, logs), total

    def change(self, state: State, forms: Forms, found: Multipliers) -> Tensor:
        """A lower bound of how much each form changes over the ball, but for rounding: ``(N,)``.

        Differentiable in the multipliers.
        """
        return self._change(state, self._crossings(state), self._lines(state), forms, found)

    def _change(
        self, state: State, crossings: dict[int, Crossing], lines: Lines, forms: Forms,
        found: Multipliers,
    ) -> Tensor:  # fmt: skip
        total, prices = torch.zeros_like(state[0].radius), Prices(self.network, state, found)

        def cross(i: int, value: Tensor) -> Tensor:
            nonlocal total
            if self._is_kept(i):
                return value
            layer, slope = state[i], found.slopes[i] * state[i].varying
            kind, price = self._kind(i), prices(i)
            passed, gained = self._relax(crossings[i], kind, value, layer, slope, price)
            total = total + gained
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            nonlocal total
            parts, lost = _joined(*lines[i], value)
            total = total - lost
            return parts

        rest = carry_back(self.network, forms.node, forms.coefficients, cross, join)
        return total if rest is None else total + self._least(rest, state[0])[0]

    @torch.no_grad()
    def drifts(self, state: State, forms: Forms) -> Tensor:
        """What the drifts of all layers are worth to each form, to first order: ``(N,)``."""
        total, lines = torch.zeros_like(state[0].radius), self._lines(state)

        def cross(i: int, value: Tensor) -> Tensor:
            nonlocal total
            layer = state[i]
            passed = value * self._kind(i).derivative(layer.anchor) * layer.varying
            total = total if layer.drift is None else total + _spent(passed, layer.drift)
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            return _joined(*lines[i], value)[0]

        carry_back(self.network, forms.node, forms.coefficients, cross, join)
        return total

    def _crossings(self, state: State, *, rough: bool = False) -> dict[int, Crossing]:
        """What each activation's box is to a backward pass."""
        found = {}
        for i, layer in state.items():
            if i and not self._is_kept(i):
                kind = self._kind(i)
                crossing = kind.rough_crossing if rough else kind.crossing
                found[i] = crossing(layer.anchor, layer.lower, layer.upper, layer.varying)
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
    def losses(self, state: State, forms: Forms, found: Multipliers) -> dict[int, Tensor]:
        """How far the relaxed minimum of each neuron lies below 0, its value at the sample."""
        losses, prices = {}, Prices(self.network, state, found)

        lines = self._lines(state)

        def cross(i: int, value: Tensor) -> Tensor:
            if self._is_kept(i):
                return value
            slope = found.slopes[i] * state[i].varying
            losses[i] = -self._minima(self._kind(i), value, state[i], slope, prices(i))
            return value * slope

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            return _joined(*lines[i], value)[0]

        carry_back(self.network, forms.node, forms.coefficients, cross, join)
        return losses

    def _least(self, form: Tensor, ball: Layer) -> tuple[Tensor, Tensor]:
        """``min form · Δx`` over the ball of inputs, or below it, and the sum of all its terms'
        magnitudes: ``(N,)`` each.

        ``−eps ‖form‖``; where only images count, over ball ∩ box: with ``λ`` near the best one,
        ``Σ_k min over the box of (form_k d + λ d²) − λ eps²``.
        """
        eps, form = ball.radius, form * ball.varying
        size = form.flatten(1).norm(dim=1)
        if not self.images:
            return -eps * size, eps * size
        with torch.no_grad():
            slack = 2 * FLOAT64 * (ball.anchor.abs() + ball.lower.abs() + ball.upper.abs())
            low, high = ball.lower - ball.anchor - slack, ball.upper - ball.anchor + slack
            wanted = size / (2 * eps)
            for _ in range(_INPUT_STEPS):
                multiplier = wanted.clamp(min=1e-30)
                column = multiplier.reshape(-1, *(1,) * (form.dim() - 1))
                place = (form / (-2 * column)).clamp(min=low, max=high)
                # The ball is met exactly at the best multiplier.
                wanted = multiplier * place.flatten(1).norm(dim=1) / eps
        terms = form * place + column * place.square()
        spent = multiplier * eps.square()
        sizes = (form * place).abs() + column * place.square()
        return terms.flatten(1).sum(1) - spent, sizes.flatten(1).sum(1) + spent

    def _kind(self, node: int) -> Elementwise:
        kind = self.network.nodes[node].kind
        assert isinstance(kind, Elementwise)
        return kind

    def _is_kept(self, node: int) -> bool:
        """Whether objectives pass it as they are."""
        return isinstance(self.network.nodes[node].kind, Identity)

    def _relax(
        self, crossing: Crossing, activation: Elementwise, value: Tensor, layer: Layer,
        slope: Tensor, price: Price,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The coefficients before an activation, and its least error over box and ball: ``(N,)``.

        Neurons that cannot vary have no error, and no part in the ball.
        """
        if price.owed is None:
            passed, least = crossing(value, slope, _column(price.multiplier, value))
        else:
            minima = self._minima(activation, value, layer, slope, price)
            passed, least = value * slope, minima.flatten(1).sum(1)
        return passed, least - price.cost

    def _minima(
        self, activation: Elementwise, value: Tensor, layer: Layer, slope: Tensor, price: Price
    ) -> Tensor:
        """The relaxed minimum of each neuron."""
        column = _column(price.multiplier, value)
        if price.owed is None:
            minima = activation.relaxed_minimum(
                value, slope, column, layer.anchor, layer.lower, layer.upper
            )
        else:
            assert isinstance(activation, PiecewiseLinear)
            owed = _column(price.owed, value)
            minima = coupled_minimum(activation, value, slope, column, owed, layer)
        return torch.where(layer.varying != 0, minima, 0)

    def certified(self, state: State, forms: Forms, found: Multipliers) -> Tensor:
        """As ``change``, with every rounding charged: ``(N,)``, in float64.

        Coefficients that are computed within a Euclidean error E of the real ones can be off by
        ``E ‖Δa‖₂`` at an activation, and by ``E eps`` at the input. What values drift from those
        of the layers before is charged value by value. The sums are charged by ``γ`` of
        their absolute terms.
        """
        state, found = to_dtype(state, torch.float64), found.to(torch.float64)
        forms = forms.to(self.network.anchor.dtype)
        eps, unit = state[0].radius, self.network.arithmetic.unit
        total, charge = torch.zeros_like(eps), torch.zeros_like(eps)
        crossings, prices = self._crossings(state), Prices(self.network, state, found)
        lines, steep = self._lines(state), torch.ones_like(eps)

        def cross(i: int, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal total, charge
            if self._is_kept(i):
                layer = state[i]
                if layer.drift is not None:
                    charge = charge + _spent(value, layer.drift) + error * layer.drifted
                return value, error
            layer, price, dtype, value = state[i], prices(i), value.dtype, value.double()
            slope, kind = found.slopes[i] * layer.varying, self._kind(i)
            passed, gained = self._relax(crossings[i], kind, value, layer, slope, price)
            total, passed = total + gained, passed.to(dtype)
            charge = charge + self._charge(kind, value, error, layer, slope, price)
            steepest, size = slope.flatten(1).abs().amax(1), length(passed)
            error = error * steepest * (1 + 4 * FLOAT64) + 4 * unit * size
            if layer.drift is not None:
                charge = charge + _spent(passed, layer.drift) + error * layer.drifted
            return passed, error

        def join(i: int, joint: Joint, value: Tensor, error: Tensor) -> list[tuple[Tensor, Tensor]]:
            nonlocal charge, steep
            (line, rest), dtype = lines[i], value.dtype
            norms = line.steepness(joint.in_shapes, joint.out_shape, value.double())
            steep = steep * torch.stack(norms).sum(0).clamp(min=1)
            charge = charge + _spent(value, rest) + error * length(rest)
            size = length(value)
            made = unit * 4 * (line.transposed_terms + 8) * size
            error = (error + made + 4 * unit * size) * (1 + 8 * FLOAT64)
            parts = line.transpose(value.double()[:, None])
            pairs = zip(parts, norms, strict=True)
            return [(part[:, 0].to(dtype), error * norm) for part, norm in pairs]

        reached = self._sweep(forms.node, forms.coefficients, cross, join)
        # What squares that underflow can cost was bounded for joints that amplify no more.
        charge = torch.where(steep <= MOST_OF_JOINTS, charge, torch.inf)
        if reached is not None:
            rest, error = reached
            least, sizes = self._least(rest.double(), state[0])
            total = total + least
            charge = charge + eps * error + gamma(math.prod(rest.shape[1:]) + 32) * sizes
        return (
            total
            - charge * (1 + gamma(8 * (len(state) + 4)))
            - gamma(4 * len(state) + 16) * total.abs()
        )

    def _charge(
        self,
        activation: Elementwise,
        value: Tensor,
        error: Tensor,
        layer: Layer,
        slope: Tensor,
        price: Price,
    ) -> Tensor:
        """What rounding at one activation can be worth: ``(N,)``."""
        anchor, lower, upper = layer.anchor, layer.lower, layer.upper
        low, high = activation.image(lower, upper)
        # A box that was cut may leave out the sample, from which changes count.
        here = activation.value(anchor)
        low, high = torch.minimum(low, here), torch.maximum(high, here)
        output = torch.maximum(low.abs(), high.abs())
        way = torch.maximum(upper - anchor, anchor - lower)
        multiplier = _column(price.multiplier, value)
        moved = torch.minimum(high - low, layer.gain * way) + 8 * FLOAT64 * output
        # Every number that enters a neuron's term, in absolute value.
        sizes = value.abs() * (4 * output + (slope.abs() + layer.gain + 1) * (way + anchor.abs()))
        sizes = (sizes + multiplier * way.square()) * layer.varying
        if price.owed is not None:
            sizes = sizes + _column(price.owed, value) * layer.varying * taken_sizes(
                layer, moved, output, activation.lipschitz
            )
        terms = (gamma(math.prod(sizes.shape[1:]) + 64) * sizes).flatten(1).sum(1)
        return terms + error * length(moved) + price.cost * gamma(64)

    def optimise(
        self,
        state: State,
        forms: Forms,
        found: Multipliers,
        steps: int,
        *,
        rate: float = 1.0,
    ) -> tuple[Tensor, Multipliers]:
        """Gradient ascent; the best change seen of each pair, and where it was seen."""
        if not found.slopes:
            return self.change(state, forms, found), found
        crossings, lines = self._crossings(state, rough=True), self._lines(state)
        steep, flat = len(found.slopes), len(found.numbers) - len(found.slopes)
        gaits = [Gait(rate * _SLOPE_RATE, _SLOPES)] * steep + [Gait(rate * _MULTIPLIER_RATE)] * flat
        best, numbers = ascend(
            lambda now: self._change(state, crossings, lines, forms, found.of(now)),
            found.numbers, gaits, steps,
        )  # fmt: skip
        better = found.of(numbers)
        if not any(self._kind(i).rough for i in crossings):
            return best, better
        with torch.no_grad():
            first, best = (self.change(state, forms, some) for some in (found, better))
        worse = (~(best > first)).nonzero().flatten()
        return torch.maximum(first, best), better.replaced(worse, found.select(worse))


def _joined(line: Derivative, rest: Tensor, value: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Coefficients before a joint, one tensor an input, and what its remainder costs each form."""
    parts = tuple(part[:, 0] for part in line.transpose(value[:, None]))
    return parts, (value.abs() * rest).flatten(1).sum(1)


def _spent(form: Tensor, drift: Tensor) -> Tensor:
    """``|form|·drift`` of each form, rounded up: ``(N,)``."""
    spent: Tensor = torch.linalg.vecdot(form.abs().double().flatten(1), drift.double().flatten(1))
    return spent * (1 + gamma(math.prod(form.shape[1:]) + 8))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.dim() - 1))
