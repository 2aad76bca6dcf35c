"""From a proof to what it proves: boxes, balls, forms of boxes, and margins, in this order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lipcert.audit.proofs.balls import Chain, by_segments, chain_before, own_drift, shared_norms
from lipcert.audit.proofs.dual import STEEPEST, Cuts, Forms, bound
from lipcert.audit.proofs.format import (
    CHORD,
    SLOPE_LEAST,
    SLOPE_STEP,
    Array,
    Arrays,
    Sizes,
)
from lipcert.audit.proofs.graph import Graph
from lipcert.audit.proofs.norms import UNIT, Coins, Gram, norm
from lipcert.audit.proofs.state import (
    Arithmetic,
    Layer,
    Sink,
    State,
    layer_of,
    pixels_source,
    select,
    sink_of,
    source_of,
)

# As many numbers as are held for all forms at once.
_AT_ONCE = 2**21
_LEAST_MULTIPLIER, _LEAST_WEIGHT = 1e-30, 1e-12


@dataclass(frozen=True, eq=False)
class Network:
    """A graph and what the arrays of a proof are indexed by."""

    graph: Graph

    @cached_property
    def bends(self) -> list[int]:
        return self.graph.bends

    @cached_property
    def first_neuron(self) -> dict[int, int]:
        """Where the neurons of each function begin, counted over all in order."""
        first, found = 0, {}
        for value in self.bends:
            found[value], first = first, first + self.graph.widths[value]
        return found

    @cached_property
    def chains(self) -> dict[int, tuple[int, int]]:
        """Where the weights of each function's chain begin, and how many there are."""
        first, found = 0, {}
        for value in self.bends:
            count = 2 * len(chain_before(self.graph, value)) + 1
            found[value], first = (first, count), first + count
        return found

    @cached_property
    def edges(self) -> dict[int, tuple[int, int]]:
        """Where the scales of each function's segments begin, and how many there are."""
        first, found = 0, {}
        for value in self.bends:
            count = len(self.graph.segments[self.graph.bend(value).input].sources)
            found[value], first = (first, count), first + count
        return found

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            len(self.bends),
            sum(self.graph.widths[value] for value in self.bends),
            sum(count for _, count in self.edges.values()),
            sum(count for _, count in self.chains.values()),
        )


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


class Replay:
    """Checks samples of one network. ``coins`` are fresh, and known to nobody."""

    def __init__(
        self, network: Network, deployed: str, coins: Coins, *, pixel_domain: bool, softmax: bool
    ) -> None:
        self.network, self.graph, self.coins = network, network.graph, coins
        self.arithmetic = Arithmetic.of(deployed)
        self.pixel_domain = pixel_domain
        self.tie = self.arithmetic.tie if softmax else 0.0
        self.shared = shared_norms(network.graph, coins)

    def state(self, x: Tensor, eps: Tensor, hints: Hints, source: OfBox) -> State:
        """Everything about samples ``x`` ``(B, n)`` over balls of radius ``eps`` ``(B,)``."""
        graph = self.graph
        state = State(graph, eps)
        state.sources[0] = pixels_source(x, eps, pixel_domain=self.pixel_domain)
        for value in graph.bends:
            sink = graph.bend(value).input
            if sink not in state.sinks:
                state.sinks[sink] = sink_of(state, graph.segments[sink], self.arithmetic)
            state.sinks[sink] = self.refined(state, value, source)
            layer = layer_of(state, value, state.sinks[sink])
            state.layers[value] = self.balled(state, value, layer, hints)
            state.sources[value] = source_of(state, value, state.layers[value], self.arithmetic)
        if graph.output not in state.sinks:
            state.sinks[graph.output] = sink_of(
                state, graph.segments[graph.output], self.arithmetic
            )
        return state

    def refined(self, state: State, value: int, source: OfBox) -> Sink:
        """A sink whose box is met with what the forms of its neurons prove."""
        sink = state.sinks[self.graph.bend(value).input]
        low, high = sink.low.contiguous().clone(), sink.high.contiguous().clone()
        for some in source.of_box(state, value):
            least = bound(state, some.forms, pixel_domain=self.pixel_domain)
            # A NaN proves nothing.
            least = torch.where(least.isnan(), -math.inf, least)
            sample, place = some.forms.sample, some.place
            up, down = some.sign > 0, some.sign < 0
            where = sample * low.shape[1] + place
            low.view(-1).scatter_reduce_(0, where[up], least[up], "amax")
            high.view(-1).scatter_reduce_(0, where[down], -least[down], "amin")
        return replace(sink, low=low.clamp(max=0), high=high.clamp(min=0))

    def norm(self, gram: Gram, mask: Tensor, scale: Tensor, terms: float) -> Tensor:
        return norm(gram, mask, scale, self.coins, terms)

    def balled(self, state: State, value: int, layer: Layer, hints: Hints) -> Layer:
        """A layer with the smallest ball that is known."""
        first, count = self.network.edges[value]
        scales = hints.edge_scale[:, first : first + count]
        sink = self.graph.bend(value).input
        ball = by_segments(state, sink, layer, self.shared, scales, self.norm)
        ball = torch.fmin(layer.ball, ball)
        number = self.network.bends.index(value)
        wanted = (hints.chain_scale[:, number] > 0).nonzero().flatten()
        first, count = self.network.chains[value]
        if len(wanted) and count > 1:
            chain = Chain.of(select(state, wanted), value, layer.mask[wanted])
            weights = hints.chain_weight[wanted, first : first + count].clamp(min=_LEAST_WEIGHT)
            found = chain.ball(weights, hints.chain_scale[wanted, number], self.norm)
            found = found + own_drift(layer)[wanted]
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


class OfBox(Protocol):
    """Where forms of boxes come from."""

    def of_box(self, state: State, value: int) -> Iterator[BoxForms]: ...


@dataclass(frozen=True, eq=False)
class BoxForms:
    """Forms of single neurons, ``sign · Δz`` at ``place``."""

    forms: Forms
    place: Tensor
    sign: Tensor


class FormSource:
    """The forms of a file's proofs, for the samples ``rows`` of its index."""

    def __init__(self, network: Network, arrays: Arrays, rows: Array) -> None:
        self.network, self.arrays = network, arrays
        place = np.full(len(arrays.index), -1)
        place[rows] = np.arange(len(rows))
        self.mine = place[arrays.form_sample]
        self.at_once = max(1, _AT_ONCE // max(1, network.sizes.neurons))
        self.cut_first = np.concatenate([[0], np.cumsum(arrays.form_cuts, dtype=np.int64)])

    def of_box(self, state: State, value: int) -> Iterator[BoxForms]:
        number = self.network.bends.index(value)
        a = self.arrays
        sink = self.network.graph.bend(value).input
        width = self.network.graph.widths[sink]
        chosen = np.flatnonzero((self.mine >= 0) & (a.form_bend == number) & (a.form_place < width))
        for some in _split(chosen, self.at_once):
            place = torch.from_numpy(a.form_place[some].astype(np.int64))
            sign = torch.from_numpy(a.form_sign[some].astype(np.float64))
            rows = torch.zeros(len(some), width, dtype=torch.float64)
            rows.scatter_(1, place[:, None], sign[:, None])
            yield BoxForms(self._forms(state, sink, some, rows), place, sign)

    def of_margins(
        self, state: State, labels: Tensor, pixel_domain: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, classes, and what the change of each margin is at least, leaves put together."""
        a, output = self.arrays, self.network.graph.output
        classes = self.network.graph.widths[output]
        chosen = np.flatnonzero((self.mine >= 0) & (a.form_bend == -1) & (a.form_place < classes))
        chosen = chosen[a.form_place[chosen] != labels.numpy()[self.mine[chosen]]]
        least = np.full(len(a.form_bend), np.nan)
        for some in _split(chosen, self.at_once):
            rows = torch.zeros(len(some), classes, dtype=torch.float64)
            sample = torch.from_numpy(self.mine[some])
            other = torch.from_numpy(a.form_place[some].astype(np.int64))
            rows.scatter_(1, labels[sample][:, None], 1.0)
            rows.scatter_(1, other[:, None], -1.0)
            forms = self._forms(state, output, some, rows)
            least[some] = bound(state, forms, pixel_domain=pixel_domain).numpy()
        groups: dict[tuple[int, int], list[int]] = {}
        for form in chosen.tolist():
            groups.setdefault((int(self.mine[form]), int(a.form_place[form])), []).append(form)
        # Leaves whose halves do not cover the box prove nothing.
        kept = [(pair, forms) for pair, forms in groups.items() if self.covers(forms)]
        pairs = torch.tensor([pair for pair, _ in kept], dtype=torch.int64).reshape(-1, 2)
        values = [float(np.min(least[forms])) for _, forms in kept]
        return pairs[:, 0], pairs[:, 1], torch.tensor(values, dtype=torch.float64)

    def covers(self, forms: Sequence[int]) -> bool:
        """Whether leaves cover the box: none is cut, or all are cut at one place first and those
        of each side cover it."""
        pending = [(list(forms), 0)]
        while pending:
            some, depth = pending.pop()
            if not some:
                return False
            cuts = [self.cut_first[form] + depth for form in some]
            if any(cut >= self.cut_first[form + 1] for cut, form in zip(cuts, some, strict=True)):
                continue
            a = self.arrays
            if len({(int(a.cut_neuron[c]), float(a.cut_place[c])) for c in cuts}) > 1:
                return False
            for side in (False, True):
                half = [f for f, c in zip(some, cuts, strict=True) if bool(a.cut_above[c]) == side]
                pending.append((half, depth + 1))
        return True

    def _forms(self, state: State, sink: int, some: Array, rows: Tensor) -> Forms:
        a, network = self.arrays, self.network
        sample = torch.from_numpy(self.mine[some].astype(np.int64))
        chord = torch.from_numpy(a.form_rule[some] == CHORD)[:, None]
        row = a.form_slopes[some]
        stored = torch.from_numpy(row >= 0)[:, None]
        slopes, falling, multipliers = {}, {}, {}
        for number, value in enumerate(network.bends):
            if value not in state.layers:
                continue
            layer, first = state.layers[value], network.first_neuron[value]
            slope, chords = layer.pieces.tangent[sample], chord_slopes(layer)[sample]
            if len(a.slopes):
                kept = a.slopes[row.clip(0), first : first + slope.shape[1]].astype(np.float64)
                own = torch.from_numpy(kept / SLOPE_STEP + SLOPE_LEAST)
                slope = torch.where(stored, own, slope)
            slopes[value] = slope.clamp(-STEEPEST, STEEPEST)
            chords = torch.where(chord & ~stored, chords, slope)
            falling[value] = chords.clamp(-STEEPEST, STEEPEST)
            given = torch.from_numpy(a.form_multiplier[some, number].astype(np.float64))
            multipliers[value] = given.clamp(min=_LEAST_MULTIPLIER)
        return Forms(sink, sample, rows, slopes, multipliers, falling, self._cuts(some))

    def _cuts(self, some: Array) -> Cuts | None:
        a = self.arrays
        counts = a.form_cuts[some].astype(np.int64)
        if not counts.any():
            return None
        where = np.concatenate([np.arange(self.cut_first[f], self.cut_first[f + 1]) for f in some])
        form = torch.from_numpy(np.repeat(np.arange(len(some)), counts))
        neuron = a.cut_neuron[where]
        starts = np.array([self.network.first_neuron[value] for value in self.network.bends])
        number = np.searchsorted(starts, neuron, side="right") - 1
        values = np.array(self.network.bends)[number], (neuron - starts[number]).astype(np.int64)
        bend, place = (torch.from_numpy(value) for value in values)
        at, above = (torch.from_numpy(each[where]) for each in (a.cut_place, a.cut_above))
        return Cuts(form, bend, place, at, above)


def chord_slopes(layer: Layer) -> Tensor:
    """From one end of the box to the other, ``(B, n)``."""
    pieces, sink = layer.pieces, layer.sink
    rise = [
        torch.where(there & (end == side[:, None]), slope * end + offset, -math.inf).amax(1)
        for end, side in ((pieces.begins, sink.low), (pieces.ends, sink.high))
        for there, slope, offset in [(pieces.begins <= pieces.ends, pieces.slopes, pieces.offsets)]
    ]
    width = sink.high - sink.low
    chord = (rise[1] - rise[0]) / torch.where(width > 0, width, 1.0)
    return torch.where((width > 0) & torch.isfinite(chord), chord, pieces.tangent)


def _split(places: Array, size: int) -> Iterator[Array]:
    for first in range(0, len(places), size):
        yield places[first : first + size]
