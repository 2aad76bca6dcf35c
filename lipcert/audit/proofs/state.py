"""How far every value of a network moves while its input stays in a ball: boxes and balls.

Around the sample all values of a run, of the deployed one in floating point too, are followed: a
run gives a sink ``ẑ = Σ A â + b + δ`` with ``|δ| ≤ r``, whatever order it sums in, and the sample's
own values were computed here within ``r0`` of ``Σ A a0 + b``. So with ``drift = r + r0``

    Δz = Σ_s A_s Δa_s + δ',  |δ'| ≤ drift,         Δa = σ(ẑ) − σ(z0) + τ,  |τ| ≤ t,

where ``t``, the rounding of ``σ`` itself, is passed on by ``|A|`` and counted with the drift of the
next sink. Nothing has to be known of how far a run is from real arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.proofs.bends import Pieces
from lipcert.audit.proofs.graph import Graph, Segments
from lipcert.audit.proofs.norms import UNDERFLOW, UNIT, gamma

# Roundings of one term beside those of its sum, for every step that it passes.
_EACH = 6.0


@dataclass(frozen=True, eq=False)
class Boxed:
    """For each of B samples ``value`` there, and its change, ``low ≤ 0 ≤ high``: ``(B, n)``."""

    value: Tensor
    low: Tensor
    high: Tensor

    @property
    def reach(self) -> Tensor:
        return torch.maximum(-self.low, self.high)


@dataclass(frozen=True, eq=False)
class Source(Boxed):
    """Pixels, or the results of a bent function; their change is in the box but for ``slack``, and
    ``Δa = diag(gain) q`` with ``‖q‖₂ ≤ radius``, ``(B,)``."""

    slack: Tensor
    gain: Tensor
    radius: Tensor


@dataclass(frozen=True, eq=False)
class Sink(Boxed):
    """What lies in front of a bent function, or the logits. A row that is carried back to the
    sources can lose ``|row| · loss`` to rounding."""

    drift: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """A bent function around the samples: its sink, lines, the neurons that vary (``mask``, 0 or
    1), and the ball ``‖mask ∘ Δz‖₂ ≤ ball``, ``(B,)``. ``middle`` and ``half``: the secants seen
    from the sample are ``middle ± half``, 0 where nothing varies."""

    sink: Sink
    pieces: Pieces
    mask: Tensor
    ball: Tensor
    middle: Tensor
    half: Tensor
    doubt: Tensor

    @property
    def drift(self) -> Tensor:
        """``‖M drift‖``."""
        length: Tensor = (self.sink.drift * self.mask).norm(dim=1)
        return length * (1 + gamma(self.mask.shape[1] + 16))


@dataclass(eq=False)
class State:
    """Of B samples: what is known of sources, sinks and layers so far, by value."""

    graph: Graph
    eps: Tensor
    sources: dict[int, Source] = field(default_factory=dict)
    sinks: dict[int, Sink] = field(default_factory=dict)
    layers: dict[int, Layer] = field(default_factory=dict)


def pixels_source(x: Tensor, eps: Tensor, *, pixel_domain: bool) -> Source:
    """Flat pixels in float64, exact; with ``pixel_domain`` only images in [0, 1] count."""
    low, high = -eps[:, None].expand_as(x), eps[:, None].expand_as(x)
    if pixel_domain:
        # A difference of two floats rounds by half a unit at most.
        low = torch.maximum(low, -x * (1 + 4 * UNIT)).clamp(max=0)
        high = torch.minimum(high, (1 - x) * (1 + 4 * UNIT)).clamp(min=0)
    return Source(x, low, high, torch.zeros_like(x), torch.ones_like(x), eps)


def sink_of(state: State, segments: Segments, arithmetic: Arithmetic) -> Sink:
    """The box of a sink from its sources: intervals, met with balls times the norms of rows."""
    sources = {s: state.sources[s] for s in segments.sources}
    outward = 1 + gamma(segments.terms)
    values = {s: a.value for s, a in sources.items()}
    value = segments.along(values, biases=True)[segments.sink]
    reach = segments.forth({s: a.reach for s, a in sources.items()}, "magnitudes") * outward
    slack = segments.forth({s: a.slack for s, a in sources.items()}, "magnitudes") * outward
    # What the terms of every value on the way come to, anywhere in the ball.
    sizes = {s: a.value.abs() + a.reach + a.slack for s, a in sources.items()}
    sizes = segments.along(sizes, "magnitudes", biases=True)
    rounded = _rounded(segments, arithmetic, value.abs() + reach + slack, sizes)
    drift = (slack + gamma(segments.terms) * sizes[segments.sink] + rounded) * outward
    middle = segments.forth({s: (a.low + a.high) / 2 for s, a in sources.items()})
    half = segments.forth({s: (a.high - a.low) / 2 for s, a in sources.items()}, "magnitudes")
    half = half * outward + gamma(segments.terms) * reach
    low, high = middle - half, middle + half
    if segments.single:
        width = torch.zeros_like(value)
        for s, a in sources.items():
            squares = segments.forth({s: a.gain.square()}, "squares")
            width = width + (squares.sqrt() + UNDERFLOW) * a.radius[:, None]
        width = width * outward
        low, high = torch.maximum(low, -width), torch.minimum(high, width)
    low, high = (low - drift).clamp(max=0) * outward, (high + drift).clamp(min=0) * outward
    return Sink(value, low, high, drift, gamma(segments.terms) * reach)


def _rounded(
    segments: Segments, arithmetic: Arithmetic, most: Tensor, sizes: Mapping[int, Tensor]
) -> Tensor:
    """What a run rounds between the sources and the sink, in any order, steps merged or not.

    Every partial sum is one of a part of the terms, so no more than ``(T + |z|)/2`` with ``T`` the
    sum of their magnitudes; where sums are summed again, ``T``. ``sizes`` bounds ``T`` for every
    value on the way, ``most`` ``|z|``. Infinite where any of them could overflow, or a weight, also
    where scales are merged with weights or come later.
    """
    if arithmetic.unit == 0:
        return torch.zeros_like(most)
    outward = 1 + gamma(segments.terms)
    terms = sizes[segments.sink] * outward
    peaks = {value: size.amax(1)[:, None] * outward for value, size in sizes.items()}
    largest = torch.stack(list(peaks.values())).amax(0)
    biases = sum(float(segments.graph.affine(value).size.amax()) for value in segments.path)
    merged = (1 + sum(peaks[s] for s in segments.sources) + biases) * segments.swell
    each = _EACH * (len(segments.path) + 1)
    growth = 1 + gamma(segments.sums, arithmetic.sums) + gamma(each, arithmetic.unit)
    whole = (terms + most) / 2 if segments.once else terms
    made = arithmetic.sums * segments.sums * whole + arithmetic.unit * each * terms
    # Factors of a product, and products, that are too small for the format.
    lost = arithmetic.tiny * segments.sums * (1 + largest) * segments.swell
    found = growth * growth * made + lost
    safe = growth * torch.maximum(largest, torch.as_tensor(merged)) < arithmetic.most
    return torch.where(safe, found, math.inf)


def layer_of(state: State, value: int, sink: Sink) -> Layer:
    """The function at a value, on the box of its sink; its ball is the box's half-diagonal."""
    pieces = state.graph.bend(value).function.pieces(sink.value, sink.low, sink.high)
    mask = (pieces.most != 0).to(sink.value)
    ball = (sink.reach * mask).norm(dim=1) * (1 + gamma(sink.value.shape[1] + 16))
    middle = (pieces.flat + pieces.steep) / 2 * mask
    half = ((pieces.steep - pieces.flat) / 2 + 8 * UNIT * pieces.most) * mask
    half = torch.where(pieces.flat == pieces.steep, 0.0, half)
    # What rounding of slopes, lines and rows can be worth, for each unit of a coefficient.
    sizes = sink.reach * (pieces.most + 8) * (1 + UNIT)
    doubt = gamma(2 * sink.value.shape[1] + 128) * sizes
    return Layer(sink, pieces, mask, ball, middle, half, doubt)


def source_of(state: State, value: int, layer: Layer, arithmetic: Arithmetic) -> Source:
    """The results of a bent function."""
    function, pieces, sink = state.graph.bend(value).function, layer.pieces, layer.sink
    here = function.value(sink.value)
    there = pieces.begins <= pieces.ends
    ends = torch.stack([pieces.begins, pieces.ends], 3)
    changes = pieces.slopes[..., None] * ends + pieces.offsets[..., None]
    low = torch.where(there[..., None], changes - pieces.band[..., None], math.inf).amin((1, 3))
    high = torch.where(there[..., None], changes + pieces.band[..., None], -math.inf).amax((1, 3))
    gain = torch.maximum(pieces.flat.abs(), pieces.steep.abs()) * layer.mask * (1 + 4 * UNIT)
    width = gain * torch.minimum(sink.reach, layer.ball[:, None]) * (1 + 4 * UNIT)
    low = torch.maximum(low, -width).clamp(max=0) * layer.mask
    high = torch.minimum(high, width).clamp(min=0) * layer.mask
    relative, absolute = function.rounding
    most = here.abs() + torch.maximum(-low, high)
    slack = (relative * most + absolute) * (arithmetic.unit + 2 * UNIT)
    # And what the value at the sample was computed within.
    slack = slack + 16 * UNIT * (most + sink.value.abs() + function.fixed)
    return Source(here, low, high, slack, gain, layer.ball)
