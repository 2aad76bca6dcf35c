"""Anchored boxes and balls, trainable: how far every layer moves away from the sample.

The sound version is ``lipcert.bounds.anchored``: secants seen from the sample in place of slopes,
and balls that shrink layer by layer with what the boxes before them ruled out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.network import Input, Network, Segment, Sum, lower
from lipcert.network.activations import Clip, Elementwise
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


def anchored_state(network: Network, pixels: Tensor, eps: Tensor, norms: WarmNorms) -> State:
    edges, values = inner_edges(network), network.values(pixels)
    boxes: list[Box] = []
    reaches: list[_Reach] = []
    layers: dict[int, Layer] = {}
    gains, radii = {0: torch.ones_like(values[0])}, {0: eps}
    for i, node in enumerate(network.nodes):
        match node.kind:
            case Input():
                width = column(eps, values[0]).expand_as(values[0])
                reach = _Reach(width, eps, gains[0])
                box = (values[0] - width, values[0] + width)
            case Sum():
                reach = _Reach(torch.stack([reaches[j].width for j in node.inputs]).sum(0))
                box = sum_of([boxes[j] for j in node.inputs])
            case Elementwise() as activation:
                source = node.inputs[0]
                anchor, (low, high) = values[source], boxes[source]
                varying = (activation.gain(low, high) != 0).to(anchor.dtype)
                gain = varying * _steepest(activation, low, high, anchor)
                ball = torch.stack([
                    norms.local(edge, gains[edge.source], varying) * radii[edge.source]
                    for edge in edges[source]
                ]).sum(0)  # fmt: skip
                half = torch.maximum(high - anchor, anchor - low) * varying
                radius = torch.minimum(ball, length(half))
                layers[i] = Layer(anchor, low, high, radius, gain, varying)
                gains[i], radii[i] = gain, radius
                box = activation.image(low, high)
                width = torch.minimum(column(radius, gain), reaches[source].width) * gain
                reach = _Reach(width, radius, gain.square())
            case Operator() as operator:
                reach = _through(operator, reaches[node.inputs[0]])
                box = through(operator, boxes[node.inputs[0]])
            case _:
                raise TypeError(f"{node.origin}: {type(node.kind).__name__} is to be lowered")
        boxes.append(met(box, values[i], reach.width))
        reaches.append(reach)
    return State(network, values, boxes, layers, eps)


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
