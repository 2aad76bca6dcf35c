"""What floating point adds to the values of a network, over a whole ball.

Each node by ``rounding_sweep``, from the real values on: errors add up and are passed on.

The network that is analysed is not quite the given one either, and its roundings are charged with
those of the deployed one, so that both are within what is found here. Its weights were fused and
rounded in the type of the analysis; and in float32 the values at the sample that activations read
are rounded, which is a change of its constants (``bounds.boxes``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.boxes import Centre
from lipcert.bounds.ordered import Moves
from lipcert.bounds.rounded import times
from lipcert.bounds.rounding_sweep import Place, Rounded, RoundingSweep
from lipcert.bounds.roundoff import Roundoff
from lipcert.network import forward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.numbers import OUT64, Box, widened
from lipcert.rounding import Arithmetic, column


@dataclass(frozen=True, eq=False)
class Roundings:
    """What arithmetic does at every node: ``fresh`` is what the node's own operation adds, from
    the values that it is given; ``total`` how far its value can be from the real one. ``boxes``
    hold the values of every run that rounds at most so: the deployed, the real, any mixture."""

    fresh: list[Tensor]
    total: list[Tensor]
    boxes: list[Box]


def accumulated(
    tools: Roundoff, centre: Centre, eps: Tensor, boxes: list[Box], arithmetic: Arithmetic | None
) -> Roundings:
    """The roundings over the balls of radius ``eps``; ``arithmetic`` None: real numbers.

    ``boxes`` hold the real values of every node. The bounds that need this may be those of the
    network after ``simplify``, whose fused coefficients were rounded in the type of the analysis:
    that is charged as one more rounding, of the magnitudes of all that stands between two
    activations.
    """
    found = forward(tools.network, _FromReal(tools, centre, eps, boxes, arithmetic)).values()
    fresh, total = [one.fresh for one in found], [one.total for one in found]
    return Roundings(fresh, total, [widened(*both) for both in zip(boxes, total, strict=True)])


@dataclass(frozen=True, eq=False)
class _Real(Place):
    """``box``: of the real values; ``moved``: ``‖Δv‖₂`` of them; at the sample ``value``, but for
    an ``error``."""

    moved: Tensor
    value: Tensor
    error: Tensor

    @property
    def sizes(self) -> Tensor:
        return OUT64.add(self.value.abs(), self.error)


class _FromReal(RoundingSweep[_Real]):
    """From the real values of each input on: errors add up."""

    def __init__(
        self, tools: Roundoff, centre: Centre, eps: Tensor, boxes: list[Box],
        arithmetic: Arithmetic | None,
    ) -> None:  # fmt: skip
        super().__init__(tools, eps, arithmetic)
        self.centre, self.boxes = centre, boxes

    def place(self, i: int, parts: list[Rounded[_Real]]) -> _Real:
        kind, moved = self.tools.network.nodes[i].kind, self.eps
        if isinstance(kind, Joint):
            moved = self.eps + math.inf
        elif isinstance(kind, Activation):
            moved = times(parts[0].here.moved, _steepest(kind, parts[0]))
        elif parts:
            moved = times(OUT64.add(*(p.here.moved for p in parts)), self.tools.norms[i])
        return _Real(self.boxes[i], moved, self.centre.values[i], self.centre.errors[i])

    def past(self, activation: Activation, before: Rounded[_Real]) -> tuple[Tensor, Tensor]:
        passed = activation.perturbation(*before.here.box, before.total)
        return passed, times(before.length, _steepest(activation, before))

    def past_joint(self, joint: Joint, parts: list[Rounded[_Real]]) -> tuple[Tensor, Tensor]:
        low, high = joint.image([widened(part.here.box, part.total) for part in parts])
        passed = OUT64.up(high - low, 1)
        return passed, OUT64.length(passed)

    def near(self, operator: Operator, rows: Tensor, before: Rounded[_Real], here: _Real) -> Tensor:
        size = OUT64.add(before.here.sizes, 2 * before.total)
        moves = OUT64.times(rows, column(before.here.moved, rows))
        return OUT64.add(OUT64.magnitude(operator, size), moves)

    def moves(self, before: Rounded[_Real]) -> Moves:
        here, (low, high) = before.here, before.here.box
        way = OUT64.up(torch.maximum(high - here.value, here.value - low).clamp(min=0), 1)
        spread = OUT64.add(here.error, 2 * before.total)
        return Moves(here.value, spread, way, here.moved, before.size != 0)


def _steepest(activation: Activation, before: Rounded[_Real]) -> Tensor:
    """The largest gain over what the deployed network can be given, ``(B,)``."""
    return activation.gain(*widened(before.here.box, before.total)).flatten(1).amax(1)
