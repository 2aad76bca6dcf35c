"""The published bound, trainable: boxes with global norms, local norms of what they leave.

Huang et al., *Training Certifiably Robust Neural Networks with Efficient Local Lipschitz Bounds*,
NeurIPS 2021; the sound version is ``lipcert.bounds.lipschitz``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipcert.network import Input, Network, Segment, Sum
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
    constants: list[Tensor | None] = []
    for i, node in enumerate(network.nodes):
        parts = [constants[j] for j in node.inputs]
        known = [part for part in parts if part is not None]
        constant: Tensor | None = None
        match node.kind:
            case Input():
                constant = network.anchor.new_ones(())
            case Activation() as activation:
                constant = known[0] * activation.lipschitz
            case _ if i in edges:
                constant = network.anchor.new_zeros(())
                for edge in edges[i]:
                    before = constants[edge.source]
                    assert before is not None
                    constant = constant + norms.whole(edge) * before
            case Sum() if len(known) == len(parts):
                constant = torch.stack(known).sum()
            case Select() as select if known:
                constant = known[0] * math.sqrt(select.multiplicity)
            case Diagonal() as diagonal if known:
                scale = diagonal.scale
                constant = known[0] if scale is None else known[0] * scale.abs().amax()
        constants.append(constant)
    return constants


def _boxes(
    network: Network, values: list[Tensor], eps: Tensor, constants: list[Tensor | None]
) -> list[Box]:
    boxes: list[Box] = []
    for i, node in enumerate(network.nodes):
        parts = [boxes[j] for j in node.inputs]
        match node.kind:
            case Input():
                width = column(eps, values[0]).expand_as(values[0])
                box = (values[0] - width, values[0] + width)
            case Sum():
                box = sum_of(parts)
            case Activation() as activation:
                box = activation.image(*parts[0])
            case Operator() as operator:
                box = through(operator, parts[0])
                before = constants[node.inputs[0]]
                if before is not None and not isinstance(operator, Select):
                    ones = values[0].new_ones(1, *operator.in_shape)
                    rows = (operator.squared(ones) + 1e-12).sqrt()
                    box = met(box, values[i], column(eps, values[i]) * before * rows)
        boxes.append(box)
    return boxes
