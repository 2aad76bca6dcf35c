"""The dual bound: one pass backwards for each margin, over box and ball of every layer jointly.

Write ``A`` for the coefficient of an activation's output in the margin. With any slope ``c`` a
neuron, ``A·Δa = (A∘c)·Δz + Σ_k A_k e_k(z_k)``, ``e_k(z) = σ(z) − σ(z0) − c_k (z − z0)``, and by
weak duality, for any multiplier ``λ > 0`` of the layer's ball ``‖M Δz‖ ≤ ρ``,

    Σ A_k e_k ≥ Σ_k min over the box of (A_k e_k(z) + λ (z − z0_k)²) − λ ρ².

The rest ``(A∘c)`` goes on through the affine operators to the activations before; at the input it
costs ``eps ‖A‖₂``. With boxes alone this is CROWN (Zhang et al., NeurIPS 2018), with balls alone
SDP-CROWN (ICML 2025, Theorem 4.1). Every slope and multiplier is sound, so an optimiser that runs
in float32 need not be trusted: ``certified`` evaluates what it found in float64 and charges every
rounding. Slopes of neurons that cannot vary stay 0, because the ball leaves these neurons out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.anchored import Layer
from lipcert.network import Input, Network, Sum
from lipcert.network.activations import Elementwise
from lipcert.network.operators import Operator
from lipcert.rounding import FLOAT64, gamma

# Where the search starts: a multiplier of 0.3 ‖A‖/ρ, found best in experiments.
_FIRST_MULTIPLIER = 0.3
_SLOPE_RATE, _MULTIPLIER_RATE, _DECAY = 0.05, 0.1, 0.98
_SLOPES = (-0.5, 1.5)


@dataclass(frozen=True, eq=False)
class Forms:
    """N linear forms to bound from below: ``coefficients[n] · Δ(value of node)`` of sample
    ``rows[n]``; ``(N, *shape of the node)`` and ``(N,)``."""

    node: int
    rows: Tensor
    coefficients: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: Tensor) -> Forms:
        return Forms(self.node, self.rows[keep], self.coefficients[keep])

    def to(self, dtype: torch.dtype) -> Forms:
        return Forms(self.node, self.rows, self.coefficients.to(dtype))


def margin_forms(network: Network, rows: Tensor, labels: Tensor, others: Tensor) -> Forms:
    """``f_label − f_other``, one for each of the three ``(N,)`` tensors' places."""
    form = network.anchor.new_zeros(len(rows), network.classes)
    form.scatter_(1, labels[:, None], 1.0)
    form.scatter_add_(1, others[:, None], form.new_full((len(rows), 1), -1.0))
    return Forms(network.output, rows, form.reshape(len(rows), *network.nodes[-1].shape))


@dataclass(frozen=True, eq=False)
class Multipliers:
    """What is optimised: for each activation slopes ``(N, *shape)`` and ``log λ`` ``(N,)``."""

    slopes: dict[int, Tensor]
    logs: dict[int, Tensor]

    def select(self, keep: Tensor) -> Multipliers:
        return Multipliers(
            {i: slope[keep] for i, slope in self.slopes.items()},
            {i: log[keep] for i, log in self.logs.items()},
        )

    @classmethod
    def joined(cls, parts: list[Multipliers]) -> Multipliers:
        """Of all forms, from those of some at a time."""
        if not parts:
            return cls({}, {})
        return cls(
            {i: torch.cat([part.slopes[i] for part in parts]) for i in parts[0].slopes},
            {i: torch.cat([part.logs[i] for part in parts]) for i in parts[0].logs},
        )

    def to(self, dtype: torch.dtype) -> Multipliers:
        return Multipliers(
            {i: slope.to(dtype) for i, slope in self.slopes.items()},
            {i: log.to(dtype) for i, log in self.logs.items()},
        )


class DualBound:
    """Backward passes over one network with element-wise activations.

    Every method takes N forms, with a state of N rows and ``eps`` ``(N,)``: a row for each form.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    def start(self, state: dict[int, Layer], forms: Forms) -> Multipliers:
        """Slopes as at the sample, multipliers from the coefficients that these give."""
        slopes, logs = {}, {}
        pending = {forms.node: forms.coefficients}
        for i in range(forms.node, 0, -1):
            if i not in pending:
                continue
            node, value = self.network.nodes[i], pending.pop(i)
            if isinstance(node.kind, Elementwise):
                layer = state[i]
                slope = node.kind.derivative(layer.anchor) * layer.varying
                slopes[i] = slope
                radius = layer.radius.clamp(min=1e-12)
                size = value.flatten(1).norm(dim=1).clamp(min=1e-12)
                logs[i] = (_FIRST_MULTIPLIER * size / radius).log()
                value = value * slopes[i]
            self.pass_on(pending, i, value, "transpose")
        return Multipliers(slopes, logs)

    def change(
        self, state: dict[int, Layer], eps: Tensor, forms: Forms, found: Multipliers
    ) -> Tensor:
        """A lower bound of how much each form changes over the ball, but for rounding: ``(N,)``.

        Differentiable in the multipliers.
        """
        total = torch.zeros_like(eps)
        pending = {forms.node: forms.coefficients}
        for i in range(forms.node, 0, -1):
            if i not in pending:
                continue
            node, value = self.network.nodes[i], pending.pop(i)
            if isinstance(node.kind, Elementwise):
                gained, value = self._relax(node.kind, value, state[i], found, i)
                total = total + gained
            self.pass_on(pending, i, value, "transpose")
        if 0 in pending:
            total = total - eps * pending[0].flatten(1).norm(dim=1)
        return total

    def _relax(
        self,
        activation: Elementwise,
        value: Tensor,
        layer: Layer,
        found: Multipliers,
        node: int,
    ) -> tuple[Tensor, Tensor]:
        """An activation's least error over box and ball, and the coefficient on its input."""
        slope = found.slopes[node] * layer.varying
        multiplier = found.logs[node].exp()
        column = multiplier.reshape(-1, *(1,) * (value.dim() - 1))
        least = activation.relaxed_minimum(
            value, slope, column, layer.anchor, layer.lower, layer.upper
        )
        # Neurons that cannot vary have no error, and no part in the ball.
        least = torch.where(layer.varying != 0, least, 0)
        gained = least.flatten(1).sum(1) - multiplier * layer.radius.square()
        return gained, value * slope

    def certified(
        self, state: dict[int, Layer], eps: Tensor, forms: Forms, found: Multipliers
    ) -> Tensor:
        """As ``change``, in float64 and with every rounding charged: ``(N,)``.

        A coefficient that is computed differs from the real one by at most ``r = γ |A|ᵀ|v|``; what
        that can do is at most ``r·|Δa|`` over the box of the next activation, or ``eps ‖r‖`` at the
        input. The sums are charged by ``γ`` of their absolute terms.
        """
        total, charge = torch.zeros_like(eps), torch.zeros_like(eps)
        pending = {forms.node: forms.coefficients}
        noise = {forms.node: torch.zeros_like(forms.coefficients)}
        for i in range(forms.node, 0, -1):
            if i not in pending:
                continue
            node, value, fuzz = self.network.nodes[i], pending.pop(i), noise.pop(i)
            if isinstance(node.kind, Elementwise):
                layer = state[i]
                gained, passed = self._relax(node.kind, value, layer, found, i)
                total = total + gained
                charge = charge + self._charge(node.kind, value, fuzz, layer, found, i)
                value, fuzz = passed, 4 * FLOAT64 * passed.abs()
            self.pass_on(pending, i, value, "transpose")
            if isinstance(node.kind, Operator):
                # A few roundings more for coefficients that were fused themselves.
                slack = gamma(node.kind.transposed_terms + 24)
                fuzz = fuzz * (1 + slack) + slack * value.abs()
            self.pass_on(noise, i, fuzz, "transpose_magnitude")
        if 0 in pending:
            size = pending[0].flatten(1).norm(dim=1) + noise[0].flatten(1).norm(dim=1)
            total = total - eps * size * (1 + gamma(math.prod(pending[0].shape[1:]) + 16))
        return total - charge * (1 + 1e-9) - 64 * FLOAT64 * total.abs()

    def _charge(
        self,
        activation: Elementwise,
        value: Tensor,
        fuzz: Tensor,
        layer: Layer,
        found: Multipliers,
        node: int,
    ) -> Tensor:
        """What rounding at one activation can be worth: ``(N,)``."""
        anchor, lower, upper = layer.anchor, layer.lower, layer.upper
        low, high = activation.image(lower, upper)
        # A box that was cut may leave out the sample, from which changes count.
        here = activation.value(anchor)
        low, high = torch.minimum(low, here), torch.maximum(high, here)
        output = torch.maximum(low.abs(), high.abs())
        way = torch.maximum(upper - anchor, anchor - lower)
        slope = found.slopes[node].abs()
        multiplier = found.logs[node].exp().reshape(-1, *(1,) * (value.dim() - 1))
        moved = torch.minimum(high - low, layer.gain * way)
        # Every number that enters a neuron's term, in absolute value.
        sizes = value.abs() * (4 * output + (slope + layer.gain + 1) * (way + anchor.abs()))
        sizes = (sizes + multiplier * way.square()) * layer.varying
        terms = gamma(math.prod(sizes.shape[1:]) + 64) * sizes
        ball = multiplier.flatten() * layer.radius.square() * gamma(64)
        return (terms + fuzz * (moved + 8 * FLOAT64 * output)).flatten(1).sum(1) + ball

    def optimise(
        self,
        state: dict[int, Layer],
        eps: Tensor,
        forms: Forms,
        found: Multipliers,
        steps: int,
        *,
        rate: float = 1.0,
    ) -> tuple[Tensor, Multipliers]:
        """Gradient ascent (Adam); the best change seen of each pair, and where it was seen."""
        if not found.slopes:
            return self.change(state, eps, forms, found), found
        slopes = {i: slope.clone().requires_grad_(True) for i, slope in found.slopes.items()}
        logs = {i: log.clone().requires_grad_(True) for i, log in found.logs.items()}
        now = Multipliers(slopes, logs)
        best = torch.full((len(forms),), -torch.inf, dtype=eps.dtype, device=eps.device)
        kept = Multipliers(
            {i: s.detach().clone() for i, s in slopes.items()},
            {i: s.detach().clone() for i, s in logs.items()},
        )
        adam = torch.optim.Adam(
            [
                {"params": list(slopes.values()), "lr": _SLOPE_RATE * rate},
                {"params": list(logs.values()), "lr": _MULTIPLIER_RATE * rate},
            ]
        )
        for step in range(steps + 1):
            value = self.change(state, eps, forms, now)
            better = value.detach() > best
            best = torch.where(better, value.detach(), best)
            with torch.no_grad():
                for stored, current in ((kept.slopes, slopes), (kept.logs, logs)):
                    for i, tensor in current.items():
                        mask = better.reshape(-1, *(1,) * (tensor.dim() - 1))
                        stored[i] = torch.where(mask, tensor, stored[i])
            if step == steps:
                break
            adam.zero_grad()
            (-value.sum()).backward()  # type: ignore[no-untyped-call]
            adam.step()
            with torch.no_grad():
                for slope in slopes.values():
                    slope.clamp_(*_SLOPES)
            for group in adam.param_groups:
                group["lr"] *= _DECAY
        return best, kept

    def pass_on(self, pending: dict[int, Tensor], node: int, value: Tensor, name: str) -> None:
        """The coefficient of a node becomes that of its inputs."""
        kind = self.network.nodes[node].kind
        assert not isinstance(kind, Input)
        if isinstance(kind, Operator):
            value = getattr(kind, name)(value)
        for j in self.network.nodes[node].inputs:
            pending[j] = pending[j] + value if j in pending else value
            assert isinstance(kind, Sum) or len(self.network.nodes[node].inputs) == 1
