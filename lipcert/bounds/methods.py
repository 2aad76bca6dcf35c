"""``global`` and ``local`` behind one face: prepare what is dear at one radius, use it below.

Masks and gains only grow with the radius, so norms found at one radius hold at every smaller one.
A method therefore splits in two: ``prepare`` at a radius (the norms, with their coins), and
``margins`` at any radius up to that one (boxes and the last layer, without coins).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge, node_constants
from lipcert.bounds.boxes import Centre, Propagation
from lipcert.bounds.lipschitz import (
    Layers,
    global_margins,
    local_margins,
    local_radii,
    logit_constant,
    weights,
)
from lipcert.norms import SegmentNorms, WeightedMap
from lipcert.rounding import FLOAT64

EdgeNorms = Mapping[Edge, Tensor]
AnyBound = TypeVar("AnyBound", bound="Bound")
NormOf = Callable[[SegmentNorms, WeightedMap, int], Tensor]


@dataclass(frozen=True, eq=False)
class Bound(ABC):
    """Lower bounds of the margins of one (simplified) network; ``norms`` are its segments'."""

    layers: Layers
    norms: Mapping[Edge, SegmentNorms]
    constants: list[float]
    propagation: Propagation

    @classmethod
    def of(cls, layers: Layers, norms: Mapping[Edge, SegmentNorms]) -> Self:
        constants = node_constants(layers.network, norms)
        return cls(layers, norms, constants, Propagation.of(layers.network, constants))

    def replaced(self, kind: type[AnyBound]) -> AnyBound:
        """Another bound on the same network and norms."""
        return kind(self.layers, self.norms, self.constants, self.propagation)

    @abstractmethod
    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> EdgeNorms:
        """The local norms over the balls of radius ``eps``; ``norm_of`` is told the edge, too."""

    @abstractmethod
    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        """``(B, K)``, for real arithmetic; ``eps`` at most the radius that was prepared."""

    @abstractmethod
    def constant(self, centre: Centre, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        """The local Lipschitz constant of the logits over the balls, from above: ``(B,)``."""


class GlobalBound(Bound):
    """The product of norms over all segments but the last, times ``‖w_y − w_j‖``."""

    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> EdgeNorms:
        return {}

    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        return global_margins(self.layers, centre, labels, self.constants, eps)

    def constant(self, centre: Centre, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        return torch.full_like(eps, self.product)

    @property
    def product(self) -> float:
        """The network's own Lipschitz constant, from above: the product with the last segment."""
        total = 0.0
        for source, rows in self.layers.last.items():
            one = rows.new_ones(1, rows.shape[1])
            last = float(self.layers.last_norm(source, one)[0])
            noise = float(self.layers.last_noise[source].norm())
            total += (last + noise) * self.constants[source]
        return total * (1 + (len(self.layers.last) + 6) * FLOAT64)


class LocalBound(Bound):
    """The published bound: boxes and balls by propagation, masked norms, ball ∩ box at the end."""

    cut = True

    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> EdgeNorms:
        network = self.layers.network
        state = weights(network, centre, self.propagation.boxes(centre, eps))
        masks: dict[int, Tensor] = {}
        for i in network.activations:
            sink = network.nodes[i].inputs[0]
            # Where one node feeds two activations, what either needs varies.
            masks[sink] = torch.maximum(masks.get(sink, state.varying[i]), state.varying[i])
        return {
            (edge.source, edge.sink): norm_of(
                self.norms[edge.source, edge.sink],
                WeightedMap(edge, state.gain[edge.source], masks[edge.sink]),
                number,
            )
            for number, edge in enumerate(self.layers.edges)
        }

    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        state = weights(self.layers.network, centre, self.propagation.boxes(centre, eps))
        radii = local_radii(self.layers, prepared, eps)
        return local_margins(self.layers, centre, labels, state, radii, cut=self.cut)

    def constant(self, centre: Centre, eps: Tensor, prepared: EdgeNorms) -> Tensor:
        state = weights(self.layers.network, centre, self.propagation.boxes(centre, eps))
        return logit_constant(self.layers, state, local_radii(self.layers, prepared, eps), eps)


class LocalBallBound(LocalBound):
    """``local`` without the box in the last layer, for comparison."""

    cut = False
