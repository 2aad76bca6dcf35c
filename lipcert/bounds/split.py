"""Branch and bound: an objective is proven on every part of the ball that unstable neurons cut it
into.

A leaf is an objective with the boxes of some neurons cut in two, at a kink of a piecewise linear
activation or at the sample's value of a smooth one. Every point of the ball lies in one of the two
halves, so an objective is proven once all its leaves are. A leaf is bounded by the same dual on its
smaller boxes, where free slopes play the part of β-CROWN's multipliers (Wang et al., NeurIPS 2021).
Balls and masks stay those of the whole objective: what holds everywhere holds on a part. Slopes are
sought in float32; that a leaf is proven is decided in float64, by ``certified``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipcert.bounds.dual import DualBound
from lipcert.bounds.objectives import DualVariables, Objectives
from lipcert.bounds.state import Layer, State, to_dtype
from lipcert.chunks import at_once, slices
from lipcert.network import ancestors
from lipcert.network.activations import Elementwise
from lipcert.network.activations.piecewise_linear import PiecewiseLinear
from lipcert.numbers import OUT64

# As many neurons as are bounded at once, over all leaves.
_CACHED = 2**19
# Slopes start near their optimum, which steps of full length would leave for many steps.
_RATE = 0.3


@dataclass(frozen=True, eq=False)
class Leaves:
    """M leaves: of which objectives, ``(M,)``; their cuts, ``(M, depth)`` each: the neuron, counted
    over all activations in order, the place, and whether the side above it is kept; and slopes."""

    objective: Tensor
    neuron: Tensor
    place: Tensor
    above: Tensor
    found: DualVariables

    @classmethod
    def whole(cls, found: DualVariables, like: Tensor) -> Leaves:
        """One leaf without cuts for each objective."""
        none = like.new_zeros(len(like), 0)
        objective = torch.arange(len(like), device=like.device)
        return cls(objective, none.long(), none, none.bool(), found)

    def __len__(self) -> int:
        return len(self.objective)

    def select(self, keep: Tensor | slice) -> Leaves:
        if isinstance(keep, Tensor) and keep.dtype == torch.bool:
            # Else every part of them would wait for the count.
            keep = keep.nonzero().flatten()
        objective, neuron, place, above = (
            part[keep] for part in (self.objective, self.neuron, self.place, self.above)
        )
        return Leaves(objective, neuron, place, above, self.found.select(keep))

    @classmethod
    def joined(cls, parts: list[Leaves]) -> Leaves:
        """Leaves of the same depth."""
        return cls(
            torch.cat([part.objective for part in parts]),
            torch.cat([part.neuron for part in parts]),
            torch.cat([part.place for part in parts]),
            torch.cat([part.above for part in parts]),
            DualVariables.joined([part.found for part in parts]),
        )

    def halves(self, neuron: Tensor, place: Tensor) -> Leaves:
        """Both sides of one more cut of each leaf: ``2M`` leaves."""
        twice = self.select(torch.arange(len(self), device=self.objective.device).repeat(2))
        above = torch.arange(2 * len(self), device=self.objective.device) >= len(self)
        return replace(
            twice,
            neuron=torch.cat([twice.neuron, neuron.repeat(2)[:, None]], 1),
            place=torch.cat([twice.place, place.repeat(2)[:, None]], 1),
            above=torch.cat([twice.above, above[:, None]], 1),
        )


class Splitter:
    """Branch and bound of N margins, each an objective that starts from ``clean`` at the sample and
    has to stay above ``needed``; ``(N,)`` each, with a row of ``state``.

    ``clean`` is a lower bound. ``dual`` decides, ``guide`` in float32 searches. Attack
    before: a margin that an attack breaks spends its whole budget here.
    """

    def __init__(
        self, dual: DualBound, guide: DualBound, state: State, objectives: Objectives,
        clean: Tensor, needed: Tensor,
    ) -> None:  # fmt: skip
        self.dual, self.guide, self.objectives = dual, guide, objectives
        # What the change has to exceed, with the rounding of this difference and of the sum.
        self.needed = needed - clean + OUT64.error(needed.abs() + clean.abs(), 8)
        nodes, path = dual.network.nodes, ancestors(dual.network, objectives.node)
        # The node itself may be an activation, and others need not lead to it.
        self.state = {i: layer for i, layer in state.items() if i in path}
        self.sizes = {i: math.prod(nodes[i].shape) for i in self.state if i}
        self.kinds = {i: _elementwise(nodes[i].kind) for i in self.sizes}
        self.neurons = max(1, sum(self.sizes.values()))
        self.at_once = at_once(_CACHED, needed.device, each=self.neurons)

    def proven(
        self, found: DualVariables, *, leaves: int = 1000, steps: int = 25,
        seconds: float = math.inf,
    ) -> Tensor:  # fmt: skip
        """Which objectives are proven, ``(N,)``; ``found`` are multipliers for the whole
        objectives. ``leaves`` may be spent for each of them, ``steps`` of the slopes for each leaf,
        and ``seconds`` for all together.

        All objectives go one cut deeper in each round, so that those soon proven come first. An
        objective is given up when its leaves are spent, and with it all objectives of its sample.
        """
        if not self.kinds:
            return torch.zeros_like(self.needed, dtype=torch.bool)
        end = time.monotonic() + seconds
        left = Leaves.whole(found, self.needed.to(self.objectives.coefficients.dtype))
        spent, lost = (
            torch.ones_like(left.objective),
            torch.zeros_like(self.needed, dtype=torch.bool),
        )
        while len(left) and time.monotonic() < end:
            left = self.cut(left)
            spent += torch.bincount(left.objective, minlength=len(spent))
            lost |= spent > leaves
            lost = torch.isin(self.objectives.rows, self.objectives.rows[lost])
            left = left.select(~lost[left.objective])
            parts = [left.select(some) for some in self._some(len(left))]
            left = Leaves.joined(
                [self.unproven(part, steps) if time.monotonic() < end else part
                 for part in parts]
            ) if parts else left  # fmt: skip
        lost[left.objective] = True
        return ~lost

    def _some(self, count: int) -> list[slice]:
        return slices(count, self.at_once)

    def unproven(self, leaves: Leaves, steps: int) -> Leaves:
        """The leaves that are not proven, with better multipliers."""
        state, objectives = self.state_of(leaves), self._objectives(leaves)
        single, small = to_dtype(state, torch.float32), objectives.to(torch.float32)
        needed = self.needed[leaves.objective]
        change, found = self.guide.optimise(single, small, leaves.found, steps, rate=_RATE)
        change = self.dual.certified(state, objectives, found)
        return replace(leaves, found=found).select(~(change > needed))

    def cut(self, leaves: Leaves) -> Leaves:
        """Every leaf in two, where its bound loses most; as it is where nothing can be cut."""
        halves = []
        for some in self._some(len(leaves)):
            part = leaves.select(some)
            state = self.state_of(part)
            losses, places = self._losses(part, state), self._places(state)
            loss, neuron = torch.where(places.isnan() | losses.isnan(), -1, losses).max(1)
            place = torch.where(loss < 0, -math.inf, places.gather(1, neuron[:, None])[:, 0])
            # Above −∞ lies all of a leaf, and nothing below.
            kept = torch.cat([loss >= 0, torch.ones_like(loss, dtype=torch.bool)])
            halves.append(part.halves(neuron, place).select(kept))
        return Leaves.joined(halves)

    def _losses(self, leaves: Leaves, state: State) -> Tensor:
        objectives = self._objectives(leaves).to(torch.float32)
        losses = self.guide.losses(to_dtype(state, torch.float32), objectives, leaves.found)
        return torch.cat([losses[i].flatten(1) for i in self.kinds], 1)

    def _places(self, state: State) -> Tensor:
        """Where each neuron may be cut, strictly inside its box; NaN where there is nothing."""
        places = [_place(self.kinds[i], state[i]).flatten(1) for i in self.kinds]
        return torch.cat(places, 1)

    def state_of(self, leaves: Leaves) -> State:
        """The state of each leaf: boxes with its cuts."""
        state, first = {0: self.state[0].map(lambda t: t[leaves.objective])}, 0
        for i, size in self.sizes.items():
            layer = self.state[i].map(lambda t: t[leaves.objective])
            here = (leaves.neuron >= first) & (leaves.neuron < first + size)
            index = (leaves.neuron - first).clamp(0, size - 1)
            shape = layer.lower.shape
            low = torch.where(here & leaves.above, leaves.place, -math.inf)
            high = torch.where(here & ~leaves.above, leaves.place, math.inf)
            lower = layer.lower.flatten(1).scatter_reduce(1, index, low, "amax")
            upper = layer.upper.flatten(1).scatter_reduce(1, index, high, "amin")
            state[i] = replace(layer, lower=lower.reshape(shape), upper=upper.reshape(shape))
            first += size
        return state

    def _objectives(self, leaves: Leaves) -> Objectives:
        return self.objectives.select(leaves.objective)


def _place(kind: Elementwise, layer: Layer) -> Tensor:
    """A kink, or the sample's value: bounds of smooth activations want it in the box, and after
    one cut there it is at an end."""
    if not isinstance(kind, PiecewiseLinear):
        inside = (layer.lower < layer.anchor) & (layer.anchor < layer.upper)
        return torch.where(inside, layer.anchor, math.nan)
    place = torch.full_like(layer.anchor, math.nan)
    for start, *_ in kind.pieces():
        kink = start.to(place) if isinstance(start, Tensor) else place.new_full((), start)
        place = torch.where((layer.lower < kink) & (kink < layer.upper), kink, place)
    return place


def _elementwise(kind: object) -> Elementwise:
    assert isinstance(kind, Elementwise)
    return kind
