"""Anchored boxes and balls, trainable: how far every layer moves away from the sample.

The sound version is ``lipcert.bounds.anchored``: secants seen from the sample in place of slopes,
and balls that shrink layer by layer with what the boxes before them ruled out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.network import Forward, Network, Node, Segment, forward, lower
from lipcert.network.activations import Activation, Clip, Elementwise
from lipcert.network.operators import Operator
from lipcert.train.boxes import (
    Box,
    Estimate,
    TrainingBound,
    column,
    final_margins,
    inner_edges,
    length,
    met,
    moves,
    sum_of,
    through,
)
from lipcert.train.norms import WarmNorms


@dataclass(frozen=True, eq=False)
class Layer:
    """One activation's input: value at the sample, box, ball, secant gain, mask of the varying."""

    anchor: Tensor
    lower: Tensor
    upper: Tensor
    radius: Tensor
    gain: Tensor
    varying: Tensor


@dataclass(frozen=True, eq=False)
class State:
    """The anchored layers of a batch, on a network with element-wise activations only."""

    network: Network
    values: list[Tensor]
    boxes: list[Box]
    layers: dict[int, Layer]
    eps: Tensor

    def estimate(self, labels: Tensor) -> Estimate:
        """The margins by the last layer over ball and box."""
        values, boxes = self.values, self.boxes
        gains = {0: torch.ones_like(values[0])} | {i: s.gain for i, s in self.layers.items()}
        radii = {0: self.eps} | {i: s.radius for i, s in self.layers.items()}
        changes = {i: (boxes[i][0] - values[i], boxes[i][1] - values[i]) for i in gains}
        logits = values[-1].flatten(1)
        margins = final_margins(self.network, logits, labels, gains, changes, radii)
        inputs = {i: (layer.lower, layer.upper) for i, layer in self.layers.items()}
        return Estimate(self.network, logits, margins, inputs)


class AnchoredBound(TrainingBound):
    """Margins by the last layer over the anchored ball and box."""

    def prepare(self, network: Network) -> list[Segment]:
        return super().prepare(lower(network))

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        return anchored_state(lower(network), pixels, eps, norms).estimate(labels)


@dataclass(frozen=True, eq=False)
class _Reach:
    """``|Δv| ≤ width``, by balls alone; exact rows while a node rearranges one source."""

    width: Tensor
    radius: Tensor | None = None
    squares: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Motion:
    """Of one node: its box, and how far it moves by balls alone."""

    box: Box
    reach: _Reach


def anchored_state(network: Network, pixels: Tensor, eps: Tensor, norms: WarmNorms) -> State:
    values = network.values(pixels)
    rules = _Anchoring(network, inner_edges(network), values, eps, norms)
    motions = forward(network, rules).values()
    return State(network, values, [motion.box for motion in motions], rules.layers, eps)


@dataclass(frozen=True, eq=False)
class _Anchoring(Forward[_Motion]):
    """The rules of ``anchored_state``; ``layers`` grow one by one."""

    network: Network
    edges: dict[int, tuple[Segment, ...]]
    values: list[Tensor]
    eps: Tensor
    norms: WarmNorms
    layers: dict[int, Layer] = field(default_factory=dict)

    def input(self, i: int) -> _Motion:
        x = self.values[i]
        width = column(self.eps, x).expand_as(x)
        return _Motion((x - width, x + width), _Reach(width, self.eps, torch.ones_like(x)))

    def sum(self, i: int, parts: list[_Motion]) -> _Motion:
        width = torch.stack([part.reach.width for part in parts]).sum(0)
        return _Motion(sum_of([part.box for part in parts]), _Reach(width))

    def affine(self, i: int, operator: Operator, before: _Motion) -> _Motion:
        return _Motion(through(operator, before.box), _through(operator, before.reach))

    def activation(self, i: int, activation: Activation, before: _Motion) -> _Motion:
        source = self.network.nodes[i].inputs[0]
        if not isinstance(activation, Elementwise):
            origin = self.network.nodes[i].origin
            raise TypeError(f"{origin}: {type(activation).__name__} is to be lowered")
        anchor, (low, high) = self.values[source], before.box
        varying = (activation.gain(low, high) != 0).to(anchor.dtype)
        gain = varying * _steepest(activation, low, high, anchor)
        ball = torch.stack([self._ball(edge, varying) for edge in self.edges[source]]).sum(0)
        half = torch.maximum(high - anchor, anchor - low) * varying
        radius = torch.minimum(ball, length(half))
        self.layers[i] = Layer(anchor, low, high, radius, gain, varying)
        width = torch.minimum(column(radius, gain), before.reach.width) * gain
        reach = _Reach(width, radius, gain.square())
        return _Motion(activation.image(low, high), reach)

    def _ball(self, edge: Segment, varying: Tensor) -> Tensor:
        """How far an activation's input moves by one segment alone: ``(B,)``."""
        if edge.source == 0:
            gain, radius = torch.ones_like(self.values[0]), self.eps
        else:
            gain, radius = self.layers[edge.source].gain, self.layers[edge.source].radius
        return self.norms.local(edge, gain, varying) * radius

    def found(self, i: int, node: Node, value: _Motion) -> _Motion:
        return _Motion(met(value.box, self.values[i], value.reach.width), value.reach)


def _through(operator: Operator, before: _Reach) -> _Reach:
    if before.squares is None or before.radius is None:
        return _Reach(operator.magnitude(before.width))
    squares = operator.squared(before.squares)
    width = (squares + 1e-12).sqrt() * column(before.radius, squares)
    return _Reach(width, before.radius, squares) if moves(operator) else _Reach(width)


def _steepest(activation: Elementwise, low: Tensor, high: Tensor, anchor: Tensor) -> Tensor:
    """The largest ``|Δσ/Δz|`` over the box, seen from the sample.

    A clip that the sample does not pass through is steepest towards its far end: at the kink
    beyond, ``(reach − limit)/(reach − z0)``.
    """
    if not isinstance(activation, Clip):
        flat, steep = activation.secant(low, high, anchor)
        return torch.maximum(flat.abs(), steep.abs())
    gain = torch.ones_like(anchor)
    if activation.lower is not None:
        end = high if activation.upper is None else torch.minimum(high, activation.upper)
        share = (end - _finite(activation.lower)).clamp(min=0) / (end - anchor).clamp(min=1e-6)
        gain = torch.where(anchor < activation.lower, share.clamp(max=1), gain)
    if activation.upper is not None:
        end = low if activation.lower is None else torch.maximum(low, activation.lower)
        share = (_finite(activation.upper) - end).clamp(min=0) / (anchor - end).clamp(min=1e-6)
        gain = torch.where(anchor > activation.upper, share.clamp(max=1), gain)
    return gain


def _finite(limit: Tensor) -> Tensor:
    """Infinite limits are never passed; their numbers must not make NaN of a gradient."""
    return torch.where(limit.isinf(), 0, limit)
