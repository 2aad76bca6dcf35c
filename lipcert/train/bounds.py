"""The bounds that a network can be trained with: the rules of ``lipcert.bounds`` themselves.

A network in training is a ``rough`` one: its bounds charge nothing (``lipcert.numbers.EXACT``) and
can be differentiated in the weights. Norms are a fact that is handed in, warm-started ones. So what
is found is an estimate; certificates come from ``lipcert.certification`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lipcert.bounds.anchored import found_state
from lipcert.bounds.anchored_bound import state_margins
from lipcert.bounds.ball import Edge, node_constants
from lipcert.bounds.boxes import Centre, Propagation
from lipcert.bounds.chain import Chain
from lipcert.bounds.coupled import LayerMultipliers
from lipcert.bounds.dual import DualBound
from lipcert.bounds.lipschitz import (
    Layers,
    change_box,
    gains,
    global_margins,
    local_margins,
    local_radii,
    masks,
)
from lipcert.bounds.state import State, select
from lipcert.network import Network, Segment, lower
from lipcert.network.activations import Elementwise
from lipcert.norms import absolute_norm
from lipcert.numbers import EXACT, Box
from lipcert.train.estimate import Estimate, TrainingBound, closest_rivals
from lipcert.train.norms import WarmNorms
from lipcert.train.tube import TubeLossBound

BoundName = Literal["global", "local", "anchored", "dual", "tube"]

# Where the factors of the dual's multipliers start (see lipcert.bounds.dual).
_FIRST_FACTOR = 0.3


class GlobalLossBound(TrainingBound):
    """The product of norms, which all samples share, and the distances of the last layer's rows,
    pair by pair: a step costs little more than one without a bound."""

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        network = replace(network, rough=True)
        layers = Layers.of(network)
        whole = {(edge.source, edge.sink): norms.whole(edge) for edge in layers.edges}
        constants = node_constants(network, whole, absolute_norm)
        centre = Propagation.of(network, constants, absolute_norm).centre(pixels)
        margins = global_margins(layers, centre, labels, constants, eps)
        return Estimate(network, centre.logits, margins, {})


class LocalLossBound(TrainingBound):
    """The published bound (Huang et al., NeurIPS 2021): boxes by propagation with global norms,
    then ``ρ = eps · Π`` local norms of what they leave."""

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        network = replace(network, rough=True)
        layers = Layers.of(network)
        whole = {(edge.source, edge.sink): norms.whole(edge) for edge in layers.edges}
        constants = node_constants(network, whole, absolute_norm)
        propagation = Propagation.of(network, constants, absolute_norm)
        centre = propagation.centre(pixels)
        boxes = propagation.boxes(centre, eps)
        gain, mask = gains(network, boxes), masks(network, boxes)
        found = {
            (edge.source, edge.sink): norms.local(edge, gain[edge.source], mask[edge.sink])
            for edge in layers.edges
        }
        change = {i: change_box(network, centre, i, boxes[i]) for i in layers.last}
        radii = local_radii(layers, found, eps)
        margins = local_margins(layers, centre, labels, gain, change, radii)
        inputs = {i: boxes[network.nodes[i].inputs[0]] for i in network.activations}
        return Estimate(network, centre.logits, margins, inputs)


class AnchoredLossBound(TrainingBound):
    """Margins by the last layer over the anchored ball and box."""

    def prepare(self, network: Network) -> list[Segment]:
        return super().prepare(lower(network))

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        return _Anchored.of(network, pixels, eps, norms).estimate(labels)


class DualLossBound(TrainingBound):
    """One pass backwards for each of the ``pairs`` closest classes; the others keep the anchored
    margin, and the better of the two counts. Slopes are the derivatives at the sample, and each
    layer's multiplier is ``factor · ‖A‖/ρ`` with one factor a layer that is learned with the
    weights: whatever tightens the bound lowers the loss."""

    def __init__(self, pairs: int = 2) -> None:
        super().__init__()
        self.pairs = pairs
        self.log_factors = nn.ParameterDict()

    def prepare(self, network: Network) -> list[Segment]:
        network = lower(network)
        for i in network.activations:
            self.log_factors[str(i)] = nn.Parameter(torch.tensor(_FIRST_FACTOR).log())
        return super().prepare(network)

    def forward(
        self, network: Network, pixels: Tensor, labels: Tensor, eps: Tensor, norms: WarmNorms
    ) -> Estimate:
        anchored = _Anchored.of(network, pixels, eps, norms)
        plain = anchored.estimate(labels)
        forms, others = closest_rivals(plain.network, plain.margins, labels, self.pairs)
        state = select(anchored.state, forms.rows)

        def choose(i: int, value: Tensor) -> tuple[Tensor, LayerMultipliers]:
            layer, kind = state[i], plain.network.nodes[i].kind
            assert isinstance(kind, Elementwise)
            # A multiplier of 0 would find no place for neurons that cost nothing.
            size = EXACT.length(value.detach() * layer.varying).clamp(min=1e-6)
            multiplier = self.log_factors[str(i)].exp() * size
            multiplier = multiplier / layer.radius.detach().clamp(min=1e-6)
            slope = kind.derivative(layer.anchor) * layer.varying
            return slope, LayerMultipliers(multiplier, multiplier * layer.radius.square())

        change = DualBound(plain.network).change_by(state, forms, choose).reshape(others.shape)
        clean = plain.logits.gather(1, labels[:, None]) - plain.logits.gather(1, others)
        tighter = torch.maximum(clean + change, plain.margins.gather(1, others))
        return replace(plain, margins=plain.margins.scatter(1, others, tighter))


@dataclass(frozen=True, eq=False)
class _Anchored:
    """The anchored state of a batch, on a network with element-wise activations only."""

    layers: Layers
    centre: Centre
    state: State

    @classmethod
    def of(cls, network: Network, pixels: Tensor, eps: Tensor, norms: WarmNorms) -> _Anchored:
        layers = Layers.of(replace(lower(network), rough=True))
        propagation = Propagation.of(layers.network, norm_of=absolute_norm)
        centre = propagation.anchors(pixels)
        found = _WarmFacts({(edge.source, edge.sink): edge for edge in layers.edges}, norms)
        _, state = found_state(propagation, layers.edges_into, centre, eps, found)
        return cls(layers, centre, state)

    def estimate(self, labels: Tensor) -> Estimate:
        """The margins by the last layer over ball and box."""
        margins = state_margins(self.layers, self.centre, labels, self.state)
        inputs = {i: (layer.lower, layer.upper) for i, layer in self.state.items() if i}
        return Estimate(self.layers.network, self.centre.logits, margins, inputs)


@dataclass(frozen=True, eq=False)
class _WarmFacts:
    """Facts of a network in training: warm norms of the segments, and nothing else."""

    edges: dict[Edge, Segment]
    norms: WarmNorms

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        return self.norms.local(self.edges[edge], inner, outer)

    def box(self, node: int, state: State, box: Box, off: Tensor) -> None:
        return None

    def chain(self, node: int, state: State, mask: Tensor) -> Chain | None:
        return None


BOUNDS: dict[BoundName, Callable[[], TrainingBound]] = {
    "global": GlobalLossBound,
    "local": LocalLossBound,
    "anchored": AnchoredLossBound,
    "dual": DualLossBound,
    "tube": TubeLossBound,
}
