"""From a proof to what it proves: boxes, balls, forms of boxes, and margins, in this order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.proofs.balls import Chain, by_segments, shared_norms
from lipcert.audit.proofs.dual import STEEPEST, Cuts, Forms, bound
from lipcert.audit.proofs.format import CHORD, SLOPE_LEAST, SLOPE_STEP, Array, Arrays, Sizes
from lipcert.audit.proofs.graph import Graph
from lipcert.audit.proofs.norms import UNIT, Coins, Gram, randomised_norm
from lipcert.audit.proofs.state import (
    Layer,
    Sink,
    State,
    layer_of,
    pixels_source,
    sink_of,
    source_of,
)

# As many numbers as are held for all forms at once.
_AT_ONCE = 2**21
_LEAST_MULTIPLIER, _LEAST_WEIGHT = 1e-30, 1e-12


@dataclass(frozen=True, eq=False)
class Network:
    """A graph and what the arrays of a proof are indexed by: for each function, by its value, the
    places of its neurons, of the scales of its segments and of the weights of its chain."""

    graph: Graph

    @cached_property
    def neurons(self) -> dict[int, slice]:
        return self._places(self.graph.widths[value] for value in self.graph.bends)

    @cached_property
    def edges(self) -> dict[int, slice]:
        return self._places(len(self.graph.before(value).sources) for value in self.graph.bends)

    @cached_property
    def weights(self) -> dict[int, slice]:
        return self._places(2 * len(self.graph.chains[value]) + 1 for value in self.graph.bends)

    def _places(self, counts: Iterable[int]) -> dict[int, slice]:
        ends = np.cumsum([0, *counts]).tolist()
        places = zip(self.graph.bends, ends, ends[1:], strict=False)
        return {value: slice(first, end) for value, first, end in places}

    @property
    def sizes(self) -> Sizes:
        places = (self.neurons, self.edges, self.weights)
        counts = [max((one.stop for one in found.values()), default=0) for found in places]
        return Sizes(len(self.graph.bends), *counts)


@dataclass(frozen=True, eq=False)
class Hints:
    """Of B samples: scales and weights of norms, see ``format.Arrays``."""

    edge_scale: Tensor
    chain_scale: Tensor
    chain_weight: Tensor

    @classmethod
    def of(cls, arrays: Arrays, rows: Array) -> Hints:
        kept = arrays.edge_scale, arrays.chain_scale, arrays.chain_weight
        return cls(*(torch.from_numpy(a[rows].astype(np.float64)) for a in kept))


# Forms of single neurons of what a function reads: with the neurons, and 1 or −1 for each.
BoxForms = tuple[Forms, Tensor, Tensor]


class Replay:
    """Checks samples of one network. ``coins`` are fresh, and known to nobody."""

    def __init__(
        self, network: Network, arithmetic: Arithmetic, coins: Coins, *, pixel_domain: bool,
        softmax: bool,
    ) -> None:  # fmt: skip
        self.network, self.graph, self.coins = network, network.graph, coins
        self.arithmetic = arithmetic
        self.pixel_domain = pixel_domain
        self.tie = self.arithmetic.tie if softmax else 0.0
        self.shared = shared_norms(network.graph, coins)

    def state(
        self,
        x: Tensor,
        eps: Tensor,
        hints: Hints,
        forms: Callable[[State, int], Iterator[BoxForms]],
    ) -> State:
        """Everything about samples ``x`` ``(B, n)`` over balls of radius ``eps`` ``(B,)``.

        ``forms``: those that bound the box of what a function reads, from all that is known before.
        """
        graph, state = self.graph, State(self.graph, eps)
        state.sources[0] = pixels_source(x, eps, pixel_domain=self.pixel_domain)
        for value in graph.bends:
            sink = graph.bend(value).input
            if sink not in state.sinks:
                state.sinks[sink] = sink_of(state, graph.segments[sink], self.arithmetic)
            state.sinks[sink] = self._refined(state, state.sinks[sink], forms(state, value))
            layer = layer_of(state, value, state.sinks[sink])
            state.layers[value] = self.balled(state, value, layer, hints)
            state.sources[value] = source_of(state, value, state.layers[value], self.arithmetic)
        if graph.output not in state.sinks:
            segments = graph.segments[graph.output]
            state.sinks[graph.output] = sink_of(state, segments, self.arithmetic)
        return state

    def _refined(self, state: State, sink: Sink, parts: Iterator[BoxForms]) -> Sink:
        """A sink whose box is met with what the forms of its neurons prove."""
        low, high = sink.low.contiguous().clone(), sink.high.contiguous().clone()
        for forms, place, sign in parts:
            least = bound(state, forms, pixel_domain=self.pixel_domain)
            # A NaN proves nothing.
            least = torch.where(least.isnan(), -math.inf, least)
            up, down = sign > 0, sign < 0
            where = forms.sample * low.shape[1] + place
            low.view(-1).scatter_reduce_(0, where[up], least[up], "amax")
            high.view(-1).scatter_reduce_(0, where[down], -least[down], "amin")
        return replace(sink, low=low.clamp(max=0), high=high.clamp(min=0))

    def norm(self, gram: Gram, mask: Tensor, scale: Tensor, terms: float) -> Tensor:
        return randomised_norm(gram, mask.shape[1], scale, self.coins, terms)

    def balled(self, state: State, value: int, layer: Layer, hints: Hints) -> Layer:
        """A layer with the smallest ball that is known."""
        network, sink = self.network, self.graph.bend(value).input
        scales = hints.edge_scale[:, network.edges[value]]
        ball = by_segments(state, sink, layer, self.shared, scales, self.norm)
        ball = torch.fmin(layer.ball, ball)
        scale = hints.chain_scale[:, network.graph.bends.index(value)]
        wanted = (scale > 0).nonzero().flatten()
        if len(wanted) and self.graph.chains[value]:
            chain = Chain.of(state, value, layer.mask, wanted)
            weights = hints.chain_weight[wanted, network.weights[value]].clamp(min=_LEAST_WEIGHT)
            found = chain.ball(weights, scale[wanted], self.norm) + layer.drift[wanted]
            ball = ball.index_copy(0, wanted, torch.fmin(ball[wanted], found * (1 + 8 * UNIT)))
        return replace(layer, ball=ball)

    def margins(self, state: State, labels: Tensor, source: FormSource) -> Tensor:
        """What each margin is at least, as deployed, less what a tie could cost: ``(B, K)``, ∞ at
        the labels, −∞ where nothing is proven."""
        logits = state.sinks[self.graph.output].value
        margins = torch.full_like(logits, -math.inf)
        sample, other, least = source.of_margins(state, labels, self.pixel_domain)
        own = logits[sample, labels[sample]]
        clean = own - logits[sample, other]
        slack = self.tie + 8 * UNIT * (clean.abs() + own.abs() + least.abs())
        found = clean + least - slack
        margins[sample, other] = torch.where(found.isnan(), -math.inf, found)
        return margins.scatter(1, labels[:, None], math.inf)


class FormSource:
    """The forms of a file's proofs, for the samples ``rows`` of its index."""

    def __init__(self, network: Network, arrays: Arrays, rows: Array) -> None:
        self.network, self.arrays = network, arrays
        place = np.full(len(arrays.index), -1)
        place[rows] = np.arange(len(rows))
        self.mine = place[arrays.form_sample]
        self.cut_first = np.concatenate([[0], np.cumsum(arrays.form_cuts, dtype=np.int64)])

    def of_box(self, state: State, value: int) -> Iterator[BoxForms]:
        """Those of the boxes of what the function at ``value`` reads."""
        sink = self.network.graph.bend(value).input
        width = self.network.graph.widths[sink]
        for some, place in self._chosen(self.network.graph.bends.index(value), width):
            sign = torch.from_numpy(self.arrays.form_sign[some].astype(np.float64))
            rows = torch.zeros(len(some), width, dtype=torch.float64)
            rows.scatter_(1, place[:, None], sign[:, None])
            yield self._forms(state, sink, some, rows), place, sign

    def of_margins(
        self, state: State, labels: Tensor, pixel_domain: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, classes, and what the change of each margin is at least, leaves put together."""
        output = self.network.graph.output
        groups: dict[tuple[int, int], dict[int, float]] = {}
        for some, other in self._chosen(-1, self.network.graph.widths[output]):
            label = labels[torch.from_numpy(self.mine[some])]
            rows = torch.zeros(len(some), state.sinks[output].value.shape[1], dtype=torch.float64)
            # At the label itself both come to nothing, which is above nothing.
            rows.scatter_add_(1, label[:, None], torch.ones_like(rows))
            rows.scatter_add_(1, other[:, None], -torch.ones_like(rows))
            least = bound(state, self._forms(state, output, some, rows), pixel_domain=pixel_domain)
            places = zip(self.mine[some].tolist(), other.tolist(), strict=True)
            for pair, form, value in zip(places, some.tolist(), least.tolist(), strict=True):
                groups.setdefault(pair, {})[form] = value
        # Leaves whose halves do not cover the box prove nothing.
        kept = [(pair, forms) for pair, forms in groups.items() if self.covers(list(forms))]
        pairs = torch.tensor([pair for pair, _ in kept], dtype=torch.int64).reshape(-1, 2)
        values = [float(np.min(list(forms.values()))) for _, forms in kept]
        return pairs[:, 0], pairs[:, 1], torch.tensor(values, dtype=torch.float64)

    def _chosen(self, bend: int, width: int) -> Iterator[tuple[Array, Tensor]]:
        """My forms of one function, or of margins, and their places, some at once."""
        a, at_once = self.arrays, max(1, _AT_ONCE // max(1, self.network.sizes.neurons))
        mine = (self.mine >= 0) & (a.form_bend == bend) & (a.form_place < width)
        chosen = np.flatnonzero(mine)
        for first in range(0, len(chosen), at_once):
            some = chosen[first : first + at_once]
            yield some, torch.from_numpy(a.form_place[some].astype(np.int64))

    def covers(self, forms: Sequence[int]) -> bool:
        """Whether leaves cover the box: none is cut, or all are cut at one place first and those
        of each side cover it."""
        pending, a = [(list(forms), 0)], self.arrays
        while pending:
            some, depth = pending.pop()
            cuts = [self.cut_first[form] + depth for form in some]
            if any(cut >= self.cut_first[form + 1] for cut, form in zip(cuts, some, strict=True)):
                continue
            # One place of no leaf is none.
            if len({(int(a.cut_neuron[c]), float(a.cut_place[c])) for c in cuts}) != 1:
                return False
            for side in (False, True):
                half = [f for f, c in zip(some, cuts, strict=True) if bool(a.cut_above[c]) == side]
                pending.append((half, depth + 1))
        return True

    def _forms(self, state: State, sink: int, some: Array, rows: Tensor) -> Forms:
        a = self.arrays
        sample = torch.from_numpy(self.mine[some].astype(np.int64))
        chord = torch.from_numpy(a.form_rule[some] == CHORD)[:, None]
        row = a.form_slopes[some]
        stored = torch.from_numpy(row >= 0)[:, None]
        slopes, falling, multipliers = {}, {}, {}
        for number, (value, places) in enumerate(self.network.neurons.items()):
            if value not in state.layers:
                continue
            slope = state.layers[value].pieces.tangent[sample]
            chords = chord_slopes(state, value)[sample]
            if len(a.slopes):
                kept = a.slopes[row.clip(0), places].astype(np.float64)
                own = torch.from_numpy(kept / SLOPE_STEP + SLOPE_LEAST)
                slope = torch.where(stored, own, slope)
            slopes[value] = slope.clamp(-STEEPEST, STEEPEST)
            chords = torch.where(chord & ~stored, chords, slope)
            falling[value] = chords.clamp(-STEEPEST, STEEPEST)
            given = torch.from_numpy(a.form_multiplier[some, number].astype(np.float64))
            multipliers[value] = given.clamp(min=_LEAST_MULTIPLIER)
        return Forms(sink, sample, rows, slopes, multipliers, falling, self._cuts(some))

    def _cuts(self, some: Array) -> Cuts | None:
        a, neurons = self.arrays, self.network.neurons
        counts = a.form_cuts[some].astype(np.int64)
        if not counts.any():
            return None
        where = np.concatenate([np.arange(self.cut_first[f], self.cut_first[f + 1]) for f in some])
        starts = np.array([places.start for places in neurons.values()])
        number = np.searchsorted(starts, a.cut_neuron[where], side="right") - 1
        return Cuts(*(torch.from_numpy(each) for each in (
            np.repeat(np.arange(len(some)), counts), np.array(self.network.graph.bends)[number],
            (a.cut_neuron[where] - starts[number]).astype(np.int64), a.cut_place[where],
            a.cut_above[where],
        )))  # fmt: skip


def chord_slopes(state: State, value: int) -> Tensor:
    """Of a function from one end of its box to the other, ``(B, n)``."""
    layer, function = state.layers[value], state.graph.bend(value).function
    low, high = layer.sink.value + layer.sink.low, layer.sink.value + layer.sink.high
    chord = (function.value(high) - function.value(low)) / torch.where(high > low, high - low, 1.0)
    return torch.where((high > low) & torch.isfinite(chord), chord, layer.pieces.tangent)
