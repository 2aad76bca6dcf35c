"""Branch and bound: leaves that together prove one margin."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lipcert.audit.proofs.bends import Function, Pieces, Piecewise
from lipcert.audit.proofs.dual import Cuts, Forms, minima
from lipcert.audit.proofs.format import TANGENT
from lipcert.audit.proofs.graph import add
from lipcert.audit.proofs.replay import Network
from lipcert.audit.proofs.state import Layer, Sink, Source, State
from lipcert.proving.hints import Choice, Found
from lipcert.proving.start import ascended

# A proof by splits ends after so many leaves, or so many values of neurons in them all: the checker
# replays each. Steps for the slopes of one leaf.
_LEAVES, _LEAF_STEPS, _LEAF_WORK = 256, 30, 2**22

# A neuron, counted over all functions, where its box is cut, and whether the part above is kept.
Cut = tuple[int, float, bool]


@dataclass(frozen=True, eq=False)
class Leaf:
    """Cuts, and slopes and multipliers to begin with, of one row."""

    cuts: tuple[Cut, ...]
    choice: Choice


@dataclass(frozen=True, eq=False)
class Splitting:
    """Of one sample, whose ``state`` has one row: the margin ``row`` ``(1, K)``."""

    network: Network
    state: State
    row: Tensor
    pixel_domain: bool

    @classmethod
    def of(
        cls, network: Network, state: State, sample: int, row: Tensor, *, pixel_domain: bool
    ) -> Splitting:
        own = _select(state, torch.tensor([sample]))
        return cls(network, own, row[None], pixel_domain)

    def leaves(self, needed: float, start: Choice) -> list[Found] | None:
        """Leaves that prove more than is needed, or None."""
        leaves, done = [Leaf((), start)], list[Found]()
        while leaves:
            count = len(leaves) + len(done)
            if count > _LEAVES or count * self.network.sizes.neurons > _LEAF_WORK:
                return None
            halves = [half for leaf in leaves for half in self._halves(leaf)]
            if not halves:
                return None
            forms, begun = self._forms(halves)
            values, choice = ascended(
                self.state, forms, begun, _LEAF_STEPS, pixel_domain=self.pixel_domain
            )
            leaves = []
            for k, half in enumerate(halves):
                if float(values[k]) > needed:
                    found = choice.found(self.network, k, 0, TANGENT)
                    done.append(replace(found, cuts=half.cuts))
                else:
                    leaves.append(Leaf(half.cuts, choice.rows(torch.tensor([k]))))
        return done

    def _forms(self, leaves: list[Leaf]) -> tuple[Forms, Choice]:
        """The margin on each leaf."""
        owners = [self._owner(cut[0]) for leaf in leaves for cut in leaf.cuts]
        counts = torch.tensor([len(leaf.cuts) for leaf in leaves])
        cuts = Cuts(
            torch.arange(len(leaves)).repeat_interleave(counts),
            torch.tensor([value for value, _ in owners], dtype=torch.int64),
            torch.tensor([neuron for _, neuron in owners], dtype=torch.int64),
            torch.tensor([at for leaf in leaves for _, at, _ in leaf.cuts], dtype=torch.float64),
            torch.tensor([above for leaf in leaves for *_, above in leaf.cuts], dtype=torch.bool),
        )
        choices = [leaf.choice for leaf in leaves]
        begun = Choice(
            {v: torch.cat([one.slopes[v] for one in choices]) for v in choices[0].slopes},
            {v: torch.cat([one.multipliers[v] for one in choices]) for v in choices[0].slopes},
        )
        sample = torch.zeros(len(leaves), dtype=torch.int64)
        output, rows = self.network.graph.output, self.row.expand(len(leaves), -1)
        return Forms(output, sample, rows, begun.slopes, begun.multipliers, None, cuts), begun

    def _owner(self, neuron: int) -> tuple[int, int]:
        """The function of a neuron, and its place there."""
        value = max(v for v, places in self.network.neurons.items() if places.start <= neuron)
        return value, neuron - self.network.neurons[value].start

    @torch.no_grad()
    def _halves(self, leaf: Leaf) -> list[Leaf]:
        """Both sides of a cut where the bound of a leaf loses most; none where nothing can be."""
        graph, (forms, _) = self.network.graph, self._forms([leaf])
        pending = graph.segments[graph.output].back(forms.rows)
        worst, cut = 0.0, None
        for value in reversed(graph.bends):
            row = pending.pop(value, None)
            if row is None:
                continue
            layer = self.state.layers[value]
            slope = forms.slopes[value] * layer.mask
            places = places_of(graph.bend(value).function, layer.sink)[0]
            loss = -minima(layer, value, row, slope, forms)[0]
            loss = torch.where(places.isnan(), -math.inf, loss)
            for neuron, *_ in leaf.cuts:
                owner, place = self._owner(neuron)
                if owner == value:
                    loss[place] = -math.inf
            most = int(loss.argmax())
            if float(loss[most]) > worst:
                worst = float(loss[most])
                at = float(places[most] + layer.sink.value[0, most])
                cut = (self.network.neurons[value].start + most, at)
            for source, part in graph.before(value).back(row * slope).items():
                add(pending, source, part)
        sides = () if cut is None else ((*cut, False), (*cut, True))
        return [Leaf((*leaf.cuts, side), leaf.choice) for side in sides]


def places_of(function: Function, sink: Sink) -> Tensor:
    """Where boxes may be cut, as changes, ``(B, n)``: at a kink, or at the sample; NaN nowhere."""
    found = torch.full_like(sink.value, math.nan)
    if not isinstance(function, Piecewise):
        return torch.where((sink.low < 0) & (sink.high > 0), 0.0, found)
    for kink in function.kinks:
        place = kink - sink.value
        found = torch.where((sink.low < place) & (place < sink.high), place, found)
    return found


def _select(state: State, rows: Tensor) -> State:
    """Some of the samples."""
    return State(
        state.graph, state.eps[rows],
        {k: _chosen(one, rows) for k, one in state.sources.items()},
        {k: _chosen(one, rows) for k, one in state.sinks.items()},
        {k: _chosen(one, rows) for k, one in state.layers.items()},
    )  # fmt: skip


_Record = TypeVar("_Record", Source, Sink, Layer, Pieces)


def _chosen(record: _Record, rows: Tensor) -> _Record:
    parts: dict[str, Any] = {
        name: part[rows] if isinstance(part, Tensor) else _chosen(part, rows)
        for name, part in vars(record).items()
    }
    return replace(record, **parts)
