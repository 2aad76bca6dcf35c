"""What the roundings of a run can do to the difference of two logits.

Let run ``i`` round at the nodes up to ``i`` and be exact after them: run 0 is real arithmetic, the
last one is what is deployed. Neighbours differ by one fresh rounding ``δ_i`` at node ``i``, and all
that follows is exact, so that the difference of their margins is ``c_i·δ_i``: affine operators pass
changes on as they are, and an activation with slopes between its least and its largest over a box
that both runs keep to. Hence

    |deployed margin − real margin| ≤ Σ_i max |c_i·δ_i|,   |δ_i| ≤ r_i,

``c_i`` from one backward pass of intervals (as Fast-Lip has it: Weng et al., ICML 2018) which keeps
what cancels between the two classes. Beside them goes the L2 norm that ``c_i`` can have, a product
of operator norms: of ``Σ |c_ik| r_ik`` and ``‖c_i‖ ‖r_i‖`` the smaller one counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.accumulated import Roundings
from lipcert.bounds.objectives import margin_objectives
from lipcert.bounds.rounded import times
from lipcert.bounds.roundoff import Roundoff
from lipcert.network import Backward, backward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.numbers import OUT64, around, halves, widened


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What a change of one node is worth: ``middle ± radius`` for each value, ``(N, *shape)``, and
    an upper bound of its L2 norm, ``(N,)``."""

    middle: Tensor
    radius: Tensor
    length: Tensor

    def __add__(self, other: Coefficients) -> Coefficients:
        middle = self.middle + other.middle
        radius = OUT64.add(self.radius, other.radius, OUT64.error(middle.abs(), 2))
        return Coefficients(middle, radius, OUT64.add(self.length, other.length))

    @property
    def largest(self) -> Tensor:
        return OUT64.add(self.middle.abs(), self.radius)


def pair_rounding(
    tools: Roundoff, roundings: Roundings, rows: Tensor, labels: Tensor, others: Tensor
) -> Tensor:
    """How far the deployed ``f_label − f_other`` can be from the real one, ``(N,)``, for the N
    pairs of classes ``labels``, ``others``, at the samples ``rows``."""
    network = tools.network
    pairs = margin_objectives(network, rows, labels, others).coefficients
    start = Coefficients(pairs, torch.zeros_like(pairs), OUT64.length(pairs))
    rules = _Sensitivity(tools, roundings, rows, torch.zeros_like(start.length))
    backward(network, network.output, start, rules)
    return rules.total


@dataclass(eq=False)
class _Sensitivity(Backward[Coefficients]):
    """The rules of ``pair_rounding``; ``total`` sums what the roundings of all nodes are worth."""

    tools: Roundoff
    roundings: Roundings
    rows: Tensor
    total: Tensor

    def arrived(self, i: int, value: Coefficients) -> Coefficients:
        fresh = self.roundings.fresh[i][self.rows].flatten(1)
        largest = value.largest.flatten(1)
        length = torch.fmin(value.length, OUT64.length(largest))
        each, together = OUT64.dot(largest, fresh), times(length, OUT64.length(fresh))
        self.total = OUT64.add(self.total, torch.fmin(each, together))
        return Coefficients(value.middle, value.radius, length)

    def affine(self, i: int, operator: Operator, value: Coefficients) -> Coefficients:
        slack = OUT64.gamma(operator.transposed_terms + 4)
        spread = OUT64.add(value.radius, slack * value.middle.abs())
        middle = operator.transpose(value.middle)
        radius = OUT64.up(operator.transpose_magnitude(spread), operator.transposed_terms + 1)
        return Coefficients(middle, radius, times(value.length, self.tools.norms[i]))

    def activation(self, i: int, activation: Activation, value: Coefficients) -> Coefficients:
        source = self.tools.network.nodes[i].inputs[0]
        lower, upper = (side[self.rows] for side in self.roundings.boxes[source])
        low, high = activation.pull_back(lower, upper, *around(value.middle, value.radius))
        # Ends are products, rounded.
        ends = OUT64.error(torch.maximum(low.abs(), high.abs()), 4)
        middle, radius = halves(widened((low, high), ends), OUT64)
        steep = activation.gain(lower, upper).flatten(1).amax(1)
        return Coefficients(middle, radius, times(value.length, steep))

    def joint(self, i: int, joint: Joint, value: Coefficients) -> list[Coefficients]:
        """Nothing is known of how one error among others passes a joint."""
        parts = []
        for j in self.tools.network.nodes[i].inputs:
            shape = (len(value.length), *self.tools.network.nodes[j].shape)
            none = value.middle.new_zeros(shape)
            parts.append(
                Coefficients(none, torch.full_like(none, torch.inf), value.length + torch.inf)
            )
        return parts

    def add(self, one: Coefficients, other: Coefficients) -> Coefficients:
        return one + other
