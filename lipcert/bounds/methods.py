"""Bounds behind one face: prepare what is dear at one radius, use it below.

A method splits in two: ``prepare`` at a radius (norms with their coins, refinements), and
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
from lipcert.bounds.refined import Prepared
from lipcert.network import Network
from lipcert.norms import GramMap, SegmentNorms, WeightedMap
from lipcert.numbers import OUT64

AnyBound = TypeVar("AnyBound", bound="Bound")
# A local norm: of a segment (with its shared norm) or of a chain (None), and its number. The map is
# in float64, unless it is of a rough copy.
NormOf = Callable[[SegmentNorms | None, GramMap, int], Tensor]


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

    @property
    def chain_norms(self) -> int:
        """How many norms of chains one preparation takes, beside those of the segments."""
        return 0

    @abstractmethod
    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> Prepared:
        """What is dear, over the balls of radius ``eps``; ``norm_of`` finds the norms."""

    @abstractmethod
    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: Prepared) -> Tensor:
        """``(B, K)``, for real arithmetic; ``eps`` at most the radius that was prepared."""


class GlobalBound(Bound):
    """The product of norms over all segments but the last, times ``‖w_y − w_j‖``."""

    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> Prepared:
        return Prepared()

    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: Prepared) -> Tensor:
        return global_margins(self.layers, centre, labels, self.constants, eps)

    @property
    def product(self) -> float:
        """The network's own Lipschitz constant, from above: the product with the last segment."""
        total = 0.0
        for source, rows in self.layers.last.items():
            one = rows.new_ones(1, rows.shape[1])
            last = float(self.layers.last_norm(source, one)[0])
            last = OUT64.add(last, float(self.layers.noise_norm(source)))
            total = OUT64.add(total, OUT64.times(last, self.constants[source]))
        return total


class LocalBound(Bound):
    """The published bound: boxes and balls by propagation, masked norms, ball ∩ box at the end."""

    cut = True

    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> Prepared:
        network = self.layers.network
        state = weights(network, centre, self.propagation.boxes(centre, eps))
        masks: dict[int, Tensor] = {}
        for i in network.activations:
            sink = network.nodes[i].inputs[0]
            # Where one node feeds two activations, what either needs varies.
            masks[sink] = torch.maximum(masks.get(sink, state.varying[i]), state.varying[i])
        found = {
            (edge.source, edge.sink): norm_of(
                self.norms[edge.source, edge.sink],
                exact_map(network, WeightedMap(edge, state.gain[edge.source], masks[edge.sink])),
                number,
            )
            for number, edge in enumerate(self.layers.edges)
        }
        still = [(masks[edge.sink] == 0).flatten(1).sum(1) for edge in self.layers.edges]
        return Prepared(edges=found, fixed=torch.stack(still, 1) if still else None)

    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: Prepared) -> Tensor:
        state = weights(self.layers.network, centre, self.propagation.boxes(centre, eps))
        radii = local_radii(self.layers, prepared.edges, eps)
        return local_margins(self.layers, centre, labels, state, radii, cut=self.cut)

    def constant(self, centre: Centre, eps: Tensor, prepared: Prepared) -> Tensor:
        """The local Lipschitz constant of the logits over the balls, from above: ``(B,)``."""
        state = weights(self.layers.network, centre, self.propagation.boxes(centre, eps))
        growth = local_radii(self.layers, prepared.edges, torch.ones_like(eps))
        return logit_constant(self.layers, state, growth)


class LocalBallBound(LocalBound):
    """``local`` without the box in the last layer, for comparison."""

    cut = False


def exact_map(network: Network, mapping: GramMap) -> GramMap:
    """The map in float64; its numbers are those of the network's type."""
    return mapping if network.exact is network else mapping.over(network.exact)
