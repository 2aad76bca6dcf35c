"""What tightens an anchored state beside the boxes: found at one radius, true at every smaller one.

Masks, gains and ranges of secants only grow with the radius, so local norms, chains and refined
boxes hold in every smaller ball. They cost most of the time, and norms their coins; so they are
found once, as a ``FactPlan`` says, and used below.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Centre
from lipcert.bounds.chain import Chain, chain_sources
from lipcert.bounds.chain_map import ChainMap
from lipcert.bounds.lipschitz import Layers
from lipcert.bounds.refined import Refinement, Subnetwork, refined_box
from lipcert.bounds.reverse import RigorousSweep
from lipcert.bounds.rows import explicit_chain
from lipcert.bounds.state import Noised, State
from lipcert.network import Network, ancestors
from lipcert.network.activations import Elementwise
from lipcert.norms import GramMap, SegmentNorms, WeightedMap
from lipcert.numbers import Box

# A local norm: of a segment (with its shared norm) or of a chain (None), and its number. The map is
# in float64, unless it is of a rough copy.
NormOf = Callable[[SegmentNorms | None, GramMap, int], Tensor]
# What rounding adds at an activation's input, a node, from the layers before it and the box that
# these put it into: ``(B, *shape)``.
NoiseOf = Callable[[int, State, Box], Noised]
# A segment has no chain where a value of its sink is put together from so few of its source.
_FEW = 8


@dataclass(frozen=True, eq=False)
class Facts:
    """What was found at one radius and holds at every smaller one.

    By activation: ``masks`` of the neurons that vary, and maybe of some more, and ``gains``. By
    segment: ``norms`` between these. By input of activations: ``chains``, ``boxes`` (the network's
    input has one too), ``noise`` of the deployed network, and ``shrunk``, to what share boxes did
    that were tried. ``fixed``: for every segment how many values of its sink cannot vary,
    ``(B, segments)``, where that is known.
    """

    masks: dict[int, Tensor] = field(default_factory=dict)
    gains: dict[int, Tensor] = field(default_factory=dict)
    norms: dict[Edge, Tensor] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    boxes: dict[int, Box] = field(default_factory=dict)
    noise: dict[int, Noised] = field(default_factory=dict)
    shrunk: dict[int, Tensor] = field(default_factory=dict)
    fixed: Tensor | None = None

    def select(self, rows: Tensor) -> Facts:
        """Takes some of the samples."""
        return Facts(
            masks={i: mask[rows] for i, mask in self.masks.items()},
            gains={i: gain[rows] for i, gain in self.gains.items()},
            norms={edge: norm[rows] for edge, norm in self.norms.items()},
            chains={i: chain.select(rows) for i, chain in self.chains.items()},
            boxes={i: (low[rows], high[rows]) for i, (low, high) in self.boxes.items()},
            noise={i: noise.select(rows) for i, noise in self.noise.items()},
            shrunk={i: share[rows] for i, share in self.shrunk.items()},
            fixed=None if self.fixed is None else self.fixed[rows],
        )


@dataclass(frozen=True)
class FactPlan:
    """Which facts are found. ``narrow``: layers of at most so many neurons have their chains from
    rows; ``chains``: wide layers have chains too. ``refinement``: of refined boxes, None for
    none."""

    narrow: int = 128
    chains: bool = True
    refinement: Refinement | None = field(default_factory=Refinement)

    def wide(self, layers: Layers) -> list[int]:
        """Lists the wide inputs of activations that have a chain, each of which takes a norm."""
        if not self.chains:
            return []
        network, mixing = layers.network, _mixing_few(layers)
        inputs = dict.fromkeys(_inputs(network))
        wide = [s for s in inputs if math.prod(network.nodes[s].shape) > self.narrow]
        return [s for s in wide if chain_sources(network, s) and s not in mixing]

    def own_edges(self, layers: Layers) -> list[Edge]:
        """The segments whose own norms count: where a chain ends too, and where next to nothing is
        mixed, they add next to nothing."""
        without = _mixing_few(layers).union(self.wide(layers))
        return [(e.source, e.sink) for e in layers.edges if e.sink not in without]

    def chain_work(self, layers: Layers) -> int:
        """Counts the values that the chains of all wide inputs lead past."""
        paths = (ancestors(layers.network, sink) for sink in self.wide(layers))
        return sum(math.prod(layers.network.nodes[i].shape) for path in paths for i in path)


class Finds(Protocol):
    """What finds facts; ``Finder`` says what of its methods mean."""

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor: ...

    def box(self, node: int, state: State, box: Box, off: Tensor) -> tuple[Box, Tensor] | None: ...

    def chain(self, node: int, state: State, mask: Tensor) -> Chain | None: ...


@dataclass(frozen=True, eq=False)
class Finder:
    """Finds the facts of a ``plan`` around samples of one ``centre``: norms by ``norm_of``, from
    the ``shared`` ones of the segments; refined boxes by the ``subnetworks``; ``guide``, the
    network in lower precision, where chains are balanced. ``images``: only inputs in [0, 1]
    count."""

    layers: Layers
    shared: Mapping[Edge, SegmentNorms]
    subnetworks: Mapping[int, Subnetwork]
    sweep: RigorousSweep
    guide: Network
    images: bool
    plan: FactPlan
    centre: Centre
    norm_of: NormOf

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        """Bounds ``‖diag(outer) A diag(inner)‖`` of a segment: ``(B,)``."""
        network, number = self.layers.network, self._numbers[edge]
        mapping = WeightedMap(self.layers.edges[number], inner, self._mask(edge[1], outer))
        return self.norm_of(self.shared[edge], exact_map(network, mapping), number)

    def box(self, node: int, state: State, box: Box, off: Tensor) -> tuple[Box, Tensor] | None:
        """The box of an input of activations, tightened from the layers before it, which tell it
        but for ``off``, or that of the network's input; and to what share sides shrank where a few
        were tried, ``(B,)``, else NaN."""
        if node == 0 and self.images:
            images = box[0].clamp(0, 1), box[1].clamp(0, 1)
            return images, torch.full_like(self.centre.logits[:, 0], math.nan)
        refinement = self.plan.refinement
        if refinement is None or node not in self.subnetworks:
            return None
        # Boxes of differences shrink much, and tell the layers behind them next to nothing.
        refinement = replace(refinement, tried=0.0) if node in self._comparing else refinement
        network = self.layers.network
        readers = [i for i in network.activations if network.nodes[i].inputs[0] == node]
        kind = network.nodes[readers[-1]].kind
        assert isinstance(kind, Elementwise)
        return refined_box(
            self.subnetworks[node], self.centre, node, state, box, off, kind, refinement
        )

    def chain(self, node: int, state: State, mask: Tensor) -> Chain | None:
        """Finds the chain of an input of activations with this mask, where it has one."""
        network, mask = self.layers.network, self._mask(node, mask)
        if node in self._wide:
            mapping = ChainMap.of(network, node, state, mask)
            weights = mapping.over(self.guide).balanced(state).weights.to(mask.dtype)
            number = len(self.layers.edges) + self._wide.index(node)
            norm = self.norm_of(None, exact_map(network, mapping.weighted(weights)), number)
            return Chain(mapping.sources, weights, norm)
        narrow = math.prod(network.nodes[node].shape) <= self.plan.narrow
        # Else there is nothing to see from the input, past activations, or too much.
        if narrow and chain_sources(network, node):
            return explicit_chain(self.sweep, node, state, mask)
        return None

    def _mask(self, sink: int, mask: Tensor) -> Tensor:
        # Where two activations share an input each has a mask of its own: take none.
        return mask if self._shared_inputs[sink] == 1 else torch.ones_like(mask)

    @cached_property
    def _numbers(self) -> dict[Edge, int]:
        return {(e.source, e.sink): number for number, e in enumerate(self.layers.edges)}

    @cached_property
    def _shared_inputs(self) -> Counter[int]:
        return Counter(_inputs(self.layers.network))

    @cached_property
    def _comparing(self) -> set[int]:
        return _mixing_few(self.layers)

    @cached_property
    def _wide(self) -> list[int]:
        return self.plan.wide(self.layers)


def exact_map(network: Network, mapping: GramMap) -> GramMap:
    """Gives the map in float64; its numbers are those of the network's type."""
    return mapping if network.exact is network else mapping.over(network.exact)


def _inputs(network: Network) -> list[int]:
    """Lists the nodes that activations read, once for each of these."""
    return [network.nodes[i].inputs[0] for i in network.activations]


def _mixing_few(layers: Layers) -> set[int]:
    """The inputs of activations that mix a few values of one activation each, as comparisons do:
    what the balls before say of them, norms of segments keep."""
    into = Counter(edge.sink for edge in layers.edges)
    few = (edge for edge in layers.edges if edge.source > 0 and edge.fan_in <= _FEW)
    return {edge.sink for edge in few if into[edge.sink] == 1}
