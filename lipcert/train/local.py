"""The published bound, trainable: boxes with global norms, local norms of what they leave.

Huang et al., *Training Certifiably Robust Neural Networks with Efficient Local Lipschitz Bounds*,
NeurIPS 2021; the sound version is ``lipcert.bounds.lipschitz``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.network import Forward, Input, Network, Node, Segment, forward
from lipcert.network.activations import Activation
from lipcert.network.operators import Diagonal, Operator, Select
from lipcert.train.boxes import (
    Box,
    Estimate,
    TrainingBound,
    column,
    final_margins,
    inner_edges,
    met,
    sum_of,
    through,
)
from lipcert.train.norms import WarmNorms


class LocalBound(TrainingBound):
    """Boxes and balls by bound propagation with global norms; then ``ρ = eps · Π`` local norms."""

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        edges = inner_edges(network)
        values = network.values(pixels)
        boxes = _boxes(network, values, eps, _constants(network, edges, norms))
        gains = {0: torch.ones_like(values[0])}
        changes = {0: (boxes[0][0] - values[0], boxes[0][1] - values[0])}
        radii = {0: eps}
        inputs: dict[int, Box] = {}
        for i in network.activations:
            kind, sink = network.nodes[i].kind, network.nodes[i].inputs[0]
            assert isinstance(kind, Activation)
            inputs[i] = boxes[sink]
            varying = kind.varying(*boxes[sink]).to(values[0].dtype)
            gains[i] = kind.gain(*boxes[sink])
            changes[i] = (boxes[i][0] - values[i], boxes[i][1] - values[i])
            radii[i] = torch.stack([
                norms.local(edge, gains[edge.source], varying) * radii[edge.source]
                for edge in edges[sink]
            ]).sum(0)  # fmt: skip
        logits = values[-1].flatten(1)
        margins = final_margins(network, logits, labels, gains, changes, radii)
        return Estimate(network, logits, margins, inputs)


def _constants(
    network: Network, edges: dict[int, tuple[Segment, ...]], norms: WarmNorms
) -> list[Tensor | None]:
    """A global Lipschitz constant from the input to each node; None inside of segments."""
    return list(forward(network, _Constants(network, edges, norms)).values())


@dataclass(frozen=True, eq=False)
class _Constants(Forward[Tensor | None]):
    """The rules of ``_constants``."""

    network: Network
    edges: dict[int, tuple[Segment, ...]]
    norms: WarmNorms
    reached: dict[int, Tensor] = field(default_factory=dict)

    def input(self, i: int) -> Tensor:
        return self.network.anchor.new_ones(())

    def sum(self, i: int, parts: list[Tensor | None]) -> Tensor | None:
        known = [part for part in parts if part is not None]
        return torch.stack(known).sum() if len(known) == len(parts) else None

    def affine(self, i: int, operator: Operator, before: Tensor | None) -> Tensor | None:
        match operator:
            case Select() if before is not None:
                return before * math.sqrt(operator.multiplicity)
            case Diagonal() if before is not None:
                return before if operator.scale is None else before * operator.scale.abs().amax()
        return None

    def activation(self, i: int, activation: Activation, before: Tensor | None) -> Tensor | None:
        assert before is not None
        return before * activation.lipschitz

    def found(self, i: int, node: Node, value: Tensor | None) -> Tensor | None:
        """Where whole segments end, their norms say more."""
        if i in self.edges and not isinstance(node.kind, Input | Activation):
            value = self.network.anchor.new_zeros(())
            for edge in self.edges[i]:
                value = value + self.norms.whole(edge) * self.reached[edge.source]
        if value is not None:
            self.reached[i] = value
        return value


def _boxes(
    network: Network, values: list[Tensor], eps: Tensor, constants: list[Tensor | None]
) -> list[Box]:
    return list(forward(network, _Boxes(values, eps, constants, network)).values())


@dataclass(frozen=True, eq=False)
class _Boxes(Forward[Box]):
    """Interval images, met with the ball that the constants give after weighted sums."""

    values: list[Tensor]
    eps: Tensor
    constants: list[Tensor | None]
    network: Network

    def input(self, i: int) -> Box:
        width = column(self.eps, self.values[0]).expand_as(self.values[0])
        return self.values[0] - width, self.values[0] + width

    def sum(self, i: int, parts: list[Box]) -> Box:
        return sum_of(parts)

    def affine(self, i: int, operator: Operator, before: Box) -> Box:
        box, constant = through(operator, before), self.constants[self.network.nodes[i].inputs[0]]
        if constant is None or isinstance(operator, Select):
            return box
        ones = self.values[0].new_ones(1, *operator.in_shape)
        rows = (operator.squared(ones) + 1e-12).sqrt()
        return met(box, self.values[i], column(self.eps, self.values[i]) * constant * rows)

    def activation(self, i: int, activation: Activation, before: Box) -> Box:
        return activation.image(*before)
