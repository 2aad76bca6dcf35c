"""The sketched tube as a training bound: an estimate of what certifies deep networks.

As ``lipcert.bounds.sketch`` has it, with ``J`` the network linearised by one slope a neuron, the
change of neuron ``k`` in a ball is about ``shift_k ± (eps ‖row_k(J)‖₂ + Σ |J_kj| r_j)``, ``r`` the
remainders of the activations before it. A few random tangents measure both norms of all neurons in
one forward pass: normal ones the first, by their root mean square, and Cauchy ones of the sizes
``r`` the second, by their scale. Both estimates are differentiable, so training follows how slopes,
remainders and rows change with the weights. The margins of the closest classes are found by a dual
in these boxes, as in a certificate, and so by exact rows.

All samples share their coins, so that tangents are the same for all up to the first activation.
Every step of a training draws new ones, and its errors average out; a validation always has the
same, and more of them. Nothing is charged for chance, so this is an ESTIMATE: a certificate takes
some hundreds of tangents and a factor for what they may miss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.coupled import LayerMultipliers
from lipcert.bounds.dual import DualBound, crown_slopes
from lipcert.bounds.state import Layer, State, select
from lipcert.network import Forward, Network, Segment, forward, lower
from lipcert.network.activations import Activation, Elementwise
from lipcert.network.operators import Operator
from lipcert.numbers import EXACT
from lipcert.rounding import column
from lipcert.train.estimate import Estimate, TrainingBound, closest_rivals
from lipcert.train.norms import WarmNorms

# Tangents of either kind in a step, and in a validation. With 8 of them the scale of one neuron is
# known within a half, that of a margin, to which hundreds of neurons add, far better.
_TANGENTS, _CAREFUL = 8, 32
# Steps towards the most likely scale; the last one moves it by less than the coins do.
_SCALE_STEPS = 4
# A root at 0 has no slope, and a Cauchy number no end.
_TINY, _LARGEST = 1e-12, 1e6
# So small a multiplier that the relaxed minimum is that of the remainder alone.
_NO_MULTIPLIER = 1e-20
# So near the end of a box a remainder is that at the end, but for rounding.
_NEAR = 1e-5
# Of the seeds of steps, so that no two steps and nodes share one.
_NODES = 2**20


class TubeLossBound(TrainingBound):
    """The estimated tube, and duals in its boxes for the ``pairs`` closest classes; the margins of
    the others are measured by the same tangents."""

    def __init__(self, pairs: int = 2) -> None:
        super().__init__()
        self.pairs = pairs
        # How many steps there were, which names their coins: a training that is continued goes on
        # with those that it would have drawn.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    steps: Tensor

    def prepare(self, network: Network) -> list[Segment]:
        """Tangents take no norms."""
        return []

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        network = lower(network)
        values = network.values(pixels)
        if self.training:
            self.steps += 1
        count = _TANGENTS if self.training else _CAREFUL
        seed = int(self.steps) * _NODES if self.training else 0
        rules = _Estimating(network, values, eps, _Coins(seed, count))
        flow = forward(network, rules, release=True)[network.output]
        logits = values[-1].flatten(1)
        margins = _measured(flow, logits, labels, eps)
        state = rules.state
        forms, others = closest_rivals(network, margins, labels, self.pairs)

        def choose(i: int, value: Tensor) -> tuple[Tensor, LayerMultipliers]:
            layer, kind = rows[i], network.nodes[i].kind
            assert isinstance(kind, Elementwise)
            multiplier = torch.full_like(layer.radius, _NO_MULTIPLIER)
            none = LayerMultipliers(multiplier, torch.zeros_like(multiplier))
            return crown_slopes(kind, layer, value) * layer.varying, none

        rows = select(state, forms.rows)
        change = DualBound(network).change_by(rows, forms, choose).reshape(others.shape)
        clean = logits.gather(1, labels[:, None]) - logits.gather(1, others)
        boxes = {i: (layer.lower, layer.upper) for i, layer in state.items() if i}
        return Estimate(network, logits, margins.scatter(1, others, clean + change), boxes)


@dataclass(frozen=True)
class _Coins:
    """Numbers that all samples share, by the node where they enter: ``(1, count, *shape)``."""

    seed: int
    count: int

    def normals(self, node: int, like: Tensor) -> Tensor:
        shape = (1, self.count, *like.shape[1:])
        return torch.randn(shape, generator=self._generator(node)).to(like)

    def cauchy(self, node: int, like: Tensor) -> Tensor:
        even = torch.rand((1, self.count, *like.shape[1:]), generator=self._generator(node))
        return torch.tan(math.pi * (even - 0.5)).clamp(-_LARGEST, _LARGEST).to(like)

    def _generator(self, node: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + node)


@dataclass(frozen=True, eq=False)
class _Flow:
    """At one node: normal tangents ``rows`` and Cauchy ones ``errors``, ``(B or 1, t, *shape)``,
    and the ``shift`` ``(B, *shape)``; None where no activation lies before it."""

    rows: Tensor
    errors: Tensor | None
    shift: Tensor | None


class _Estimating(Forward[_Flow]):
    """Rules that leave the ``state`` of every activation's input behind."""

    def __init__(self, network: Network, values: list[Tensor], eps: Tensor, coins: _Coins) -> None:
        self.network, self.values, self.eps, self.coins = network, values, eps, coins
        x, ones = values[0], torch.ones_like(values[0])
        width = column(eps, x)
        self.state: State = {0: Layer(x, x - width, x + width, eps, ones, ones)}

    def input(self, i: int) -> _Flow:
        return _Flow(self.coins.normals(i, self.values[i]), None, None)

    def sum(self, i: int, parts: list[_Flow]) -> _Flow:
        errors = [part.errors for part in parts if part.errors is not None]
        shifts = [part.shift for part in parts if part.shift is not None]
        return _Flow(
            _total([part.rows for part in parts]),
            _total(errors) if errors else None,
            _total(shifts) if shifts else None,
        )

    def affine(self, i: int, operator: Operator, before: _Flow) -> _Flow:
        def past(tangents: Tensor) -> Tensor:
            found = operator.apply(tangents.flatten(0, 1))
            return found.reshape(*tangents.shape[:2], *found.shape[1:])

        return _Flow(
            past(before.rows),
            None if before.errors is None else past(before.errors),
            None if before.shift is None else operator.apply(before.shift),
        )

    def activation(self, i: int, activation: Activation, before: _Flow) -> _Flow:
        assert isinstance(activation, Elementwise)
        anchor = self.values[self.network.nodes[i].inputs[0]]
        width = _width(before.rows, before.errors, column(self.eps, anchor))
        middle = anchor if before.shift is None else anchor + before.shift
        # A box holds the sample.
        low, high = torch.minimum(middle - width, anchor), torch.maximum(middle + width, anchor)
        slope, moved, rest = _linearised(activation, anchor, low, high)
        gain = activation.gain(low, high).detach()
        way = torch.maximum(high - anchor, anchor - low).detach()
        self.state[i] = Layer(anchor, low, high, EXACT.length(way), gain, (gain != 0).to(anchor))
        errors = self.coins.cauchy(i, anchor) * rest[:, None]
        if before.errors is not None:
            errors = errors + before.errors * slope[:, None]
        shift = moved if before.shift is None else moved + slope * before.shift
        return _Flow(before.rows * slope[:, None], errors, shift)


def _total(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


def _width(rows: Tensor, errors: Tensor | None, eps: Tensor) -> Tensor:
    """``eps ‖row‖₂ + Σ |J| r``, as tangents along dimension 1 measure both."""
    width = eps * (rows.square().mean(1) + _TINY**2).sqrt()
    return width if errors is None else width + _scale(errors)


def _scale(cauchy: Tensor) -> Tensor:
    """The most likely scale of Cauchy numbers along dimension 1, where ``Σ x²/(x² + s²)`` is half
    their number.

    With ``u = s²/(x² + s²)`` the derivative of ``s`` there is ``s Σ x u² dx / Σ x² u²``: no number,
    however large or small, has much to say in it, unlike in that of a mean or a median.
    """
    x = cauchy.detach()
    squares = x.square() + _TINY**2
    scale = (squares.log().mean(1, keepdim=True) / 2).exp()
    for _ in range(_SCALE_STEPS):
        scale = scale * (2 * (squares / (squares + scale.square())).mean(1, keepdim=True)).square()
    weights = x * (scale.square() / (squares + scale.square())).square()
    whole = (weights * x).sum(1)
    along = (weights * cauchy).sum(1) / whole.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(whole > 0, scale.squeeze(1) * along, 0)


def _linearised(
    activation: Elementwise, anchor: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The chord ``c`` of the box, and ``m`` and ``r`` with ``|Δσ − c Δz − m| ≤ r`` over it; all of
    them differentiable in the box and the anchor."""
    flat, steep = activation.slopes(lower, upper)
    bent = (flat != steep) & (upper > lower)
    here, at_lower, at_upper = (activation.value(z) for z in (anchor, lower, upper))
    chord = (at_upper - at_lower) / torch.where(bent, upper - lower, 1)
    slope = torch.where(bent, torch.minimum(torch.maximum(chord, flat), steep), flat)
    # At both ends of the chord alike. A relaxed minimum need not know how it moves with them.
    end = at_lower - here - slope * (lower - anchor)
    one, small = torch.ones_like(slope), torch.full_like(slope, _NO_MULTIPLIER)
    least = activation.relaxed_minimum(one, slope, small, anchor, lower, upper)
    most = -activation.relaxed_minimum(-one, slope, small, anchor, lower, upper)
    near = _NEAR * end.abs().detach()
    least = torch.where(least < end - near, least, end)
    most = torch.where(most > end + near, most, end)
    # Where the box is straight nothing remains.
    middle, half = (least + most) / 2, (most - least) / 2
    return slope, torch.where(bent, middle, 0), torch.where(bent, half, 0)


def _measured(flow: _Flow, logits: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
    """Estimates of the margins ``(B, K)``, 0 at the label itself."""

    def rivals(values: Tensor) -> Tensor:
        values = values.reshape(*values.shape[: values.dim() - len(shape)], -1)
        values = values.expand(len(labels), *values.shape[1:])
        own = labels.reshape(-1, *(1,) * (values.dim() - 1)).expand(*values.shape[:-1], 1)
        return values.gather(-1, own) - values

    shape = flow.rows.shape[2:]
    errors = None if flow.errors is None else rivals(flow.errors)
    width = _width(rivals(flow.rows), errors, eps[:, None])
    margins = rivals(logits.reshape(-1, *shape)) - width
    if flow.shift is not None:
        margins = margins + rivals(flow.shift)
    return margins.scatter(1, labels[:, None], 0.0)
