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
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.boxes import Box, Centre, widened
from lipcert.bounds.rounding_sweep import ForwardSweep, length_of, times
from lipcert.bounds.underflow import underflow
from lipcert.network import Network
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.norms import operator_norm, row_norms
from lipcert.rounding import DOUBLE, FLOAT64, Arithmetic, column, gamma


@dataclass(frozen=True, eq=False)
class Roundings:
    """What arithmetic does at every node: ``fresh`` is what the node's own operation adds, from
    the values that it is given; ``total`` how far its value can be from the real one. ``boxes``
    hold the values of every run that rounds at most so: the deployed, the real, any mixture."""

    fresh: list[Tensor]
    total: list[Tensor]
    boxes: list[Box]


@dataclass(frozen=True, eq=False)
class Roundoff:
    """One network, in float64, with each node's L2 norm (activations: Lipschitz constant) and row
    norms. ``analysis``: the arithmetic of the bounds that roundings are found for."""

    network: Network
    norms: list[float]
    rows: list[Tensor | None]
    analysis: Arithmetic = DOUBLE

    @classmethod
    def of(cls, network: Network, analysis: Arithmetic = DOUBLE) -> Roundoff:
        norms = [getattr(node.kind, "lipschitz", 1.0) for node in network.nodes]
        rows: list[Tensor | None] = [None] * len(norms)
        for i, operator in network.operators.items():
            ones = network.anchor.new_ones(1, *operator.in_shape)
            norms[i] = min(operator_norm(operator), _absolute_norm(operator, ones))
            rows[i] = row_norms(operator, network.anchor)
        return cls(network, norms, rows, analysis)

    @property
    def unit(self) -> float:
        """The roundoff of an analysis in a narrower type than float64, else 0."""
        return 0.0 if self.analysis == DOUBLE else self.analysis.unit

    @cached_property
    def underflow(self) -> float:
        """What squares that underflow in the analysis can cost a margin."""
        return underflow(self.network, self.norms, self.analysis)

    def over(
        self,
        centre: Centre,
        eps: Tensor,
        boxes: list[Box],
        arithmetic: Arithmetic | None,
    ) -> Roundings:
        """The roundings over the balls of radius ``eps``; ``arithmetic`` None: real numbers.

        ``boxes`` hold the real values of every node. The bounds that need this may be those of the
        network after ``simplify``, whose fused coefficients were rounded in the type of the
        analysis: that is charged as one more rounding, of the magnitudes of all that stands between
        two activations.
        """
        sweep = _FromReal(self, centre, eps, boxes, arithmetic)
        for i in range(len(self.network.nodes)):
            sweep.step(i)
        total = list(sweep.total.values())
        wide = [widened(*both) for both in zip(boxes, total, strict=True)]
        return Roundings(list(sweep.fresh.values()), total, wide)


class _FromReal(ForwardSweep):
    """From the real values of each input on: ``boxes`` hold these, ``moved`` is ``‖Δv‖₂``, and
    errors add up."""

    def __init__(
        self, tools: Roundoff, centre: Centre, eps: Tensor, boxes: list[Box],
        arithmetic: Arithmetic | None,
    ) -> None:  # fmt: skip
        super().__init__(tools, eps, arithmetic)
        self.centre, self.boxes = centre, dict(enumerate(boxes))
        self.moved: dict[int, Tensor] = {}

    def step(self, i: int) -> None:
        super().step(i)
        node = self.tools.network.nodes[i]
        before = [self.moved[j] for j in node.inputs]
        if not before:
            self.moved[i] = self.eps
        elif isinstance(node.kind, Joint):
            self.moved[i] = torch.full_like(self.eps, math.inf)
        elif not isinstance(node.kind, Activation):
            moves = times(torch.stack(before).sum(0), self.tools.norms[i])
            self.moved[i] = moves * (1 + 8 * FLOAT64)

    def past(self, i: int, activation: Activation) -> tuple[Tensor, Tensor]:
        (j,) = self.tools.network.nodes[i].inputs
        before, error = self.boxes[j], self.total[j]
        steep = activation.gain(before[0] - error, before[1] + error).flatten(1).amax(1)
        self.moved[i] = times(self.moved[j], steep) * (1 + 8 * FLOAT64)
        return activation.perturbation(*before, error), times(self.length[j], steep)

    def past_joint(self, i: int, joint: Joint) -> tuple[Tensor, Tensor]:
        inputs = self.tools.network.nodes[i].inputs
        wide = [widened(self.boxes[j], self.total[j]) for j in inputs]
        low, high = joint.image(wide)
        passed = (high - low) * (1 + 8 * FLOAT64)
        return passed, length_of(passed)

    def near(self, i: int, operator: Operator, slack: float) -> Tensor:
        (j,), rows = self.tools.network.nodes[i].inputs, self.tools.rows[i]
        assert rows is not None
        value = self.centre.values[j].abs() + self.centre.errors[j] + 2 * self.total[j]
        return operator.magnitude(value) * slack + rows * column(self.moved[j], rows)


def _absolute_norm(operator: Operator, ones: Tensor) -> float:
    """``sqrt(‖|A|‖_1 ‖|A|‖_∞)``, an upper bound of ``‖A‖₂`` that is always at hand."""
    rows = float(operator.magnitude(ones).max())
    columns = float(operator.transpose_magnitude(ones.new_ones(1, *operator.out_shape)).max())
    slack = 1 + gamma(operator.terms + operator.transposed_terms + 8)
    return math.sqrt(rows) * math.sqrt(columns) * slack
