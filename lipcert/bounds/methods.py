"""Bounds behind one face: facts are found at one radius, and used below it.

A method splits in two: ``prepare`` at a radius (norms with their coins, refinements), and
``margins`` at any radius up to that one (boxes and the last layer, without coins).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge, Scalar, node_constants
from lipcert.bounds.boxes import Centre, Propagation
from lipcert.bounds.facts import Facts, NormOf, exact_map
from lipcert.bounds.lipschitz import (
    Layers,
    change_box,
    gains,
    global_margins,
    local_margins,
    local_radii,
    logit_constant,
    masks,
    rows_of,
    tail_margins,
)
from lipcert.bounds.residual import Tail, residual_blocks, tail_of
from lipcert.network import Segment
from lipcert.norms import SegmentNorms, WeightedMap
from lipcert.numbers import OUT64, Box

AnyBound = TypeVar("AnyBound", bound="Bound")


@dataclass(frozen=True, eq=False)
class Bound(ABC):
    """Lower bounds of the margins of one (simplified) network; ``norms`` are its segments';
    ``estimated``: these are no bounds."""

    layers: Layers
    norms: Mapping[Edge, SegmentNorms]
    constants: Sequence[Scalar]
    propagation: Propagation
    estimated: bool = False

    @classmethod
    def of(
        cls, layers: Layers, norms: Mapping[Edge, SegmentNorms], *, estimated: bool = False
    ) -> Self:
        whole = {edge: found.norm.value for edge, found in norms.items()}
        constants = node_constants(layers.network, whole, rough=estimated)
        return cls(layers, norms, constants, Propagation.of(layers.network, constants), estimated)

    def replaced(self, kind: type[AnyBound]) -> AnyBound:
        """Another bound on the same network and norms."""
        return kind(self.layers, self.norms, self.constants, self.propagation, self.estimated)

    @cached_property
    def tail(self) -> Tail | None:
        """What follows the last residual block that does not expand, where that is all."""
        network = self.layers.network
        end = tail_of(network, residual_blocks(network, fitting=self.estimated))
        if end is None or not math.isfinite(float(self.constants[end])):
            return None
        rows, noise = rows_of(Segment(network.exact, end, network.output))
        return Tail(rows.double(), noise.double(), float(self.constants[end]))

    def through_tail(self, margins: Tensor, centre: Centre, labels: Tensor, eps: Tensor) -> Tensor:
        """The margins, or those of the tail where they are larger."""
        if self.tail is None:
            return margins
        return torch.maximum(margins, tail_margins(self.tail, centre, labels, eps).to(margins))

    def boxes(self, centre: Centre, eps: Tensor) -> list[Box]:
        """The boxes of all nodes over these balls, for ``prepare`` and ``margins`` to share; none
        of a bound that has no use for them."""
        return []

    @abstractmethod
    def prepare(
        self, centre: Centre, eps: Tensor, norm_of: NormOf, boxes: list[Box] | None = None
    ) -> Facts:
        """The facts that hold over the balls of radius ``eps``; ``norm_of`` finds the norms.
        ``boxes``: those of these balls, where they are at hand."""

    @abstractmethod
    def margins(
        self, centre: Centre, labels: Tensor, eps: Tensor, facts: Facts,
        boxes: list[Box] | None = None,
    ) -> Tensor:  # fmt: skip
        """``(B, K)``, for real arithmetic; ``eps`` at most the radius that was prepared."""


class GlobalBound(Bound):
    """The product of norms over all segments but the last, times ``‖w_y − w_j‖``."""

    def prepare(
        self, centre: Centre, eps: Tensor, norm_of: NormOf, boxes: list[Box] | None = None
    ) -> Facts:
        return Facts()

    def margins(
        self, centre: Centre, labels: Tensor, eps: Tensor, facts: Facts,
        boxes: list[Box] | None = None,
    ) -> Tensor:  # fmt: skip
        found = global_margins(self.layers, centre, labels, self.constants, eps)
        return self.through_tail(found, centre, labels, eps)

    @property
    def product(self) -> float:
        """The network's own Lipschitz constant, from above: the product with the last segment."""
        total = 0.0
        for source, rows in self.layers.last.items():
            one = rows.new_ones(1, rows.shape[1])
            last = float(self.layers.last_norm(source, one)[0])
            last = OUT64.add(last, float(self.layers.noise_norm(source)))
            total = OUT64.add(total, OUT64.times(last, float(self.constants[source])))
        return total if self.tail is None else min(total, self.tail.product)


class LocalBound(Bound):
    """The published bound: boxes and balls by propagation, masked norms, ball ∩ box at the end."""

    cut = True

    def boxes(self, centre: Centre, eps: Tensor) -> list[Box]:
        return self.propagation.boxes(centre, eps)

    def prepare(
        self, centre: Centre, eps: Tensor, norm_of: NormOf, boxes: list[Box] | None = None
    ) -> Facts:
        network = self.layers.network
        boxes = self.boxes(centre, eps) if boxes is None else boxes
        gain, mask = gains(network, boxes), masks(network, boxes)
        found = {
            (edge.source, edge.sink): norm_of(
                self.norms[edge.source, edge.sink],
                exact_map(network, WeightedMap(edge, gain[edge.source], mask[edge.sink])),
                number,
            )
            for number, edge in enumerate(self.layers.edges)
        }
        still = [(mask[edge.sink] == 0).flatten(1).sum(1) for edge in self.layers.edges]
        return Facts(norms=found, fixed=torch.stack(still, 1) if still else None)

    def margins(
        self, centre: Centre, labels: Tensor, eps: Tensor, facts: Facts,
        boxes: list[Box] | None = None,
    ) -> Tensor:  # fmt: skip
        network = self.layers.network
        boxes = self.boxes(centre, eps) if boxes is None else boxes
        gain, radii = gains(network, boxes), local_radii(self.layers, facts.norms, eps)
        change = {i: change_box(network, centre, i, boxes[i]) for i in self.layers.last}
        found = local_margins(self.layers, centre, labels, gain, change, radii, cut=self.cut)
        return self.through_tail(found, centre, labels, eps)

    def constant(
        self, centre: Centre, eps: Tensor, facts: Facts, boxes: list[Box] | None = None
    ) -> Tensor:
        """The local Lipschitz constant of the logits over the balls, from above: ``(B,)``."""
        boxes = self.boxes(centre, eps) if boxes is None else boxes
        gain = gains(self.layers.network, boxes)
        growth = local_radii(self.layers, facts.norms, torch.ones_like(eps))
        found = logit_constant(self.layers, gain, growth)
        return found if self.tail is None else found.clamp(max=self.tail.product)


class LocalBallBound(LocalBound):
    """``local`` without the box in the last layer, for comparison."""

    cut = False
