"""The anchored bound behind the face of all bounds, and what it prepares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.anchored import Facts, Noised, State, anchored_state, change_boxes
from lipcert.bounds.ball import Edge
from lipcert.bounds.boxes import Box, Centre
from lipcert.bounds.chain import Chain, ChainMap, chain_sources
from lipcert.bounds.dual import DualBound
from lipcert.bounds.lipschitz import Weights, local_margins
from lipcert.bounds.methods import Bound, NormOf, exact_map
from lipcert.bounds.refined import (
    Kept,
    NoiseOf,
    Prepared,
    Refinement,
    View,
    is_narrow,
    refined_box,
)
from lipcert.bounds.reverse import RigorousSweep
from lipcert.bounds.rows import explicit_chain
from lipcert.network import Network, ancestors
from lipcert.network.activations import Elementwise
from lipcert.norms import WeightedMap

# A segment has no chain where a value of its sink is put together from so few of its source.
_THIN = 8


@dataclass(frozen=True, eq=False)
class AnchoredBound(Bound):
    """Margins from the anchored state, with ball ∩ box in the last layer.

    The network has element-wise activations only (``network.lower``). ``rough`` is its copy in
    lower precision, where slopes of refined boxes are sought. ``narrow``: layers of at most so many
    neurons have their chains from rows; ``chains``: wide layers have chains too. ``refinement``: of
    refined boxes, None for none. ``images``: only inputs in [0, 1] count.
    """

    rough: Network | None = None
    narrow: int = 128
    chains: bool = True
    refinement: Refinement | None = field(default_factory=Refinement)
    images: bool = False

    @cached_property
    def edges_into(self) -> dict[int, list[Edge]]:
        """The segments that end in each activation's input."""
        found: dict[int, list[Edge]] = {}
        for edge in self.layers.edges:
            found.setdefault(edge.sink, []).append((edge.source, edge.sink))
        return found

    @property
    def chain_norms(self) -> int:
        return len(self.wide)

    @property
    def edges(self) -> list[Edge]:
        """The segments, all of whose own norms count where balls are coupled."""
        return [(edge.source, edge.sink) for edge in self.layers.edges]

    @property
    def own_edges(self) -> list[Edge]:
        """The segments whose own norms count: where a chain ends too, and where next to nothing is
        mixed, they add next to nothing."""
        return [edge for edge in self.edges if edge[1] not in self.thin.union(self.wide)]

    @cached_property
    def wide(self) -> list[int]:
        """The wide inputs of activations that have a chain."""
        network = self.layers.network
        sinks = dict.fromkeys(network.nodes[i].inputs[0] for i in network.activations)
        wide = [s for s in sinks if not is_narrow(network, s, self.narrow)] if self.chains else []
        return [s for s in wide if chain_sources(network, s) and s not in self.thin]

    @property
    def chain_work(self) -> int:
        """How many values the chains of all wide inputs lead past."""
        network = self.layers.network
        paths = (ancestors(network, sink) for sink in self.wide)
        return sum(math.prod(network.nodes[i].shape) for path in paths for i in path)

    @cached_property
    def thin(self) -> set[int]:
        """The inputs of activations that mix a few values of one activation each, as comparisons
        do: what the balls before say of them, norms of segments keep."""
        return {
            sink
            for sink, edges in self.edges_into.items()
            for edge in self.layers.edges
            if [(edge.source, edge.sink)] == edges and edge.source > 0 and edge.fan_in <= _THIN
        }

    @cached_property
    def duals(self) -> tuple[DualBound, DualBound]:
        """The one that proves, in float64 unless all is rough, and the one that seeks slopes."""
        network = self.layers.network
        rough = network if self.rough is None else self.rough
        return DualBound(network.exact, images=self.images), DualBound(rough, images=self.images)

    @cached_property
    def views(self) -> dict[int, View]:
        """Of the inputs of activations whose boxes may be refined: past other activations."""
        network = self.layers.network
        sinks = () if self.refinement is None else network.sinks
        return {sink: View.of(self.duals, sink) for sink in sinks if chain_sources(network, sink)}

    @cached_property
    def sweep(self) -> RigorousSweep:
        return RigorousSweep(self.layers.network.exact)

    def prepare(self, centre: Centre, eps: Tensor, norm_of: NormOf) -> Prepared:
        return self.prepare_state(centre, eps, norm_of)[0]

    def prepare_state(
        self, centre: Centre, eps: Tensor, norm_of: NormOf, noise_of: NoiseOf | None = None
    ) -> tuple[Prepared, State]:
        """What ``prepare`` finds, and the state at that radius; with noise it holds every run that
        rounds at most so."""
        finder = _Finder(self, centre, norm_of, noise_of)
        state = self._state(centre, eps, finder)
        return finder.found, state

    def state(
        self, centre: Centre, eps: Tensor, prepared: Prepared, noise_of: NoiseOf | None = None
    ) -> State:
        """The state at ``eps``, from what was prepared at this radius or a larger one."""
        return self._state(centre, eps, Kept(prepared, noise_of))

    def _state(self, centre: Centre, eps: Tensor, facts: Facts) -> State:
        return anchored_state(self.propagation, self.edges_into, centre, eps, facts)

    def margins(self, centre: Centre, labels: Tensor, eps: Tensor, prepared: Prepared) -> Tensor:
        return self.margins_in(centre, labels, self.state(centre, eps, prepared))

    def margins_in(self, centre: Centre, labels: Tensor, state: State) -> Tensor:
        """As ``margins``, from a state that is at hand."""
        gain = {i: layer.gain for i, layer in state.items()}
        radii = {i: layer.radius for i, layer in state.items()}
        change = change_boxes(self.layers.network, centre, state)
        return local_margins(self.layers, centre, labels, Weights(gain, {}, change), radii)


class _Finder(Facts):
    """Facts that are found now, and kept for smaller radii."""

    def __init__(
        self, bound: AnchoredBound, centre: Centre, norm_of: NormOf, noise_of: NoiseOf | None
    ) -> None:
        self.bound, self.centre, self.norm_of, self.noise_of = bound, centre, norm_of, noise_of
        self.found = Prepared()
        network = bound.layers.network
        self.numbers = {(e.source, e.sink): n for n, e in enumerate(bound.layers.edges)}
        self.sinks = [network.nodes[i].inputs[0] for i in network.activations]
        self.kinds = {network.nodes[i].inputs[0]: network.nodes[i].kind
                      for i in network.activations}  # fmt: skip

    def varying(self, activation: int, mask: Tensor) -> Tensor:
        self.found.varying[activation] = mask
        return mask

    def gain(self, activation: int, gain: Tensor) -> Tensor:
        self.found.gains[activation] = gain
        return gain

    def norm(self, edge: Edge, inner: Tensor, outer: Tensor) -> Tensor:
        if edge not in self.found.edges:
            number, norms = self.numbers[edge], self.bound.norms[edge]
            mapping = WeightedMap(
                self.bound.layers.edges[number], inner, self._mask(edge[1], outer)
            )
            network = self.bound.layers.network
            self.found.edges[edge] = self.norm_of(norms, exact_map(network, mapping), number)
        return self.found.edges[edge]

    def noise(self, node: int, state: State, box: Box) -> Noised | None:
        if self.noise_of is not None:
            self.found.noise[node] = self.noise_of(node, state, box)
        return self.found.noise.get(node)

    def box(self, node: int, state: State, box: Box, off: Tensor) -> Box:
        if node == 0 and self.bound.images:
            self.found.boxes[0] = box[0].clamp(0, 1), box[1].clamp(0, 1)
            return self.found.boxes[0]
        if self.bound.refinement is None or node not in self.bound.views:
            return box
        if node not in self.found.boxes:
            kind = self.kinds[node]
            assert isinstance(kind, Elementwise)
            self.found.boxes[node], self.found.shrunk[node] = refined_box(
                self.bound.views[node],
                self.centre,
                node,
                state,
                box,
                off,
                kind,
                self.bound.refinement,
            )
        return self.found.boxes[node]

    def ball(self, node: int, state: State, mask: Tensor, radius: Tensor) -> Tensor:
        mask = self._mask(node, mask)
        if node not in self.found.chains:
            if node in self.bound.wide:
                self.found.chains[node] = self._matrix_free(node, state, mask)
            elif self._is_narrow(node, self.bound.narrow):
                self.found.chains[node] = explicit_chain(self.bound.sweep, node, state, mask)
        chain = self.found.chains.get(node)
        return radius if chain is None else torch.minimum(radius, chain.length(state))

    def _matrix_free(self, node: int, state: State, mask: Tensor) -> Chain:
        network, rough = self.bound.layers.network, self.bound.rough
        mapping = ChainMap.of(network, node, state, mask)
        lower = mapping if rough is None else mapping.over(rough)
        weights = lower.balanced(state).weights.to(mask.dtype)
        number = len(self.bound.layers.edges) + self.bound.wide.index(node)
        norm = self.norm_of(None, exact_map(network, mapping.weighted(weights)), number)
        return Chain(mapping.sources, weights, norm)

    def _is_narrow(self, node: int, widest: int) -> bool:
        """Whether there is something to see from the input, past activations, and not too much."""
        network = self.bound.layers.network
        return bool(chain_sources(network, node)) and is_narrow(network, node, widest)

    def _mask(self, sink: int, mask: Tensor) -> Tensor:
        # Where two activations share an input each has a mask of its own: take none.
        return mask if self.sinks.count(sink) == 1 else torch.ones_like(mask)
