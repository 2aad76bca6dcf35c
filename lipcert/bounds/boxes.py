"""Boxes by bound constraint propagation: what every node can be while the input stays in its ball.

At each affine node two boxes are met: the interval image of the box before it, and
``centre ± eps · L ‖row‖₂`` from the ball (Lee, Lee and Park, NeurIPS 2020; Huang et al., NeurIPS
2021). Every computed box holds the real one: half-widths are widened by the rounding of their own
computation (``γ`` of the terms summed, §3.1 of Higham), centres by the error of the forward pass.

In float32 the values at the samples are still found in float64, and each that an activation reads
is then rounded: what follows is computed from the rounded one. So the analysis is that of a network
whose values at the sample are these numbers. Its constants differ from the given ones by roundings
of the values, which ``roundoff`` charges with those of the weights; boxes are widened by them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.ball import coordinate_reach
from lipcert.network import Forward, Network, Node, forward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.norms import operator_norm, row_norms
from lipcert.rounding import DOUBLE, Arithmetic, column, gamma, rounded_up

Box = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Centre:
    """The values of every node at the samples, and how far each may be off: from the real value,
    or from what the nodes before make of the values at the activations before it (``anchors``).

    Those of the last node, the logits, are in float64, unless the network is a rough copy.
    """

    values: list[Tensor]
    errors: list[Tensor]

    @property
    def logits(self) -> Tensor:
        return self.values[-1].flatten(1)

    @property
    def logit_errors(self) -> Tensor:
        return self.errors[-1].flatten(1)

    def select(self, rows: Tensor) -> Centre:
        """Some of the samples."""
        return Centre([t[rows] for t in self.values], [t[rows] for t in self.errors])


@dataclass(frozen=True, eq=False)
class Propagation:
    """Forward propagation over one network, with the constants that all samples share."""

    network: Network
    reach: list[Tensor | None]

    @classmethod
    def of(cls, network: Network, constants: list[float]) -> Propagation:
        return cls(network, coordinate_reach(network, constants))

    @cached_property
    def rows(self) -> list[Tensor | None]:
        """Of each operator the row norms, ``(1, *shape)``, rounded up."""
        like, dtype = self.network.exact.anchor, self.network.anchor.dtype
        found: list[Tensor | None] = [None] * len(self.network.nodes)
        for i, operator in self.network.exact.operators.items():
            found[i] = rounded_up(row_norms(operator, like), dtype)
        return found

    @cached_property
    def norms(self) -> list[float]:
        """Of each operator the norm, where another one or a sum goes on from it, else infinite."""
        nodes = self.network.exact.nodes
        passed = {j for node in nodes if not isinstance(node.kind, Activation) for j in node.inputs}
        found = [math.inf] * len(nodes)
        for i, operator in self.network.exact.operators.items():
            found[i] = operator_norm(operator) if i in passed else math.inf
        return found

    def centre(self, x: Tensor) -> Centre:
        """``x``: ``(B, …)``, exact in the network's type; errors from the real values."""
        return self._centre(x, afresh=False)

    def anchors(self, x: Tensor) -> Centre:
        """The same values, with errors that start afresh at every activation: a bound that follows
        how far runs of the network move from these values, whatever they are, needs no others, and
        these do not grow with the depth."""
        return self._centre(x, afresh=True)

    def _centre(self, x: Tensor, *, afresh: bool) -> Centre:
        exact, network = self.network.exact, self.network
        own, sinks, last = network.arithmetic, network.sinks, network.output
        dtype = network.anchor.dtype

        def kept(i: int, value: Tensor) -> Tensor:
            return value.to(dtype).to(value.dtype) if i in sinks else value

        values = exact.values(x.to(exact.anchor.dtype), None if exact is network else kept)
        if network.rough:
            return Centre(values, [torch.zeros_like(value) for value in values])
        boxes = [(value, value) for value in values]
        errors = rounding_errors(exact, boxes, DOUBLE, afresh=afresh)
        if exact is not network:
            # To the nearest number of the narrow type, whether it was rounded on the way or is now.
            moved = [own.unit * value.abs() + own.tiny for value in values]
            errors = [
                (error + more) * (1 + 8 * own.unit)
                for error, more in zip(errors, moved, strict=True)
            ]
        return Centre(
            [value if i == last else value.to(dtype) for i, value in enumerate(values)],
            [error if i == last else rounded_up(error, dtype) for i, error in enumerate(errors)],
        )

    def boxes(
        self, centre: Centre, eps: Tensor, known: Mapping[int, Box] | None = None
    ) -> list[Box]:
        """A box for every node, for the balls of radius ``eps``, ``(B,)``, in raw input space.

        ``known``: boxes of some nodes that were found by other means, to be met.
        """
        rules = _Boxes(self, centre, eps, known or {})
        return list(forward(self.network, rules).values())


@dataclass(frozen=True, eq=False)
class _Boxes(Forward[Box]):
    """The rules of ``Propagation.boxes``."""

    propagation: Propagation
    centre: Centre
    eps: Tensor
    known: Mapping[int, Box]

    @property
    def own(self) -> Arithmetic:
        return self.propagation.network.arithmetic

    def input(self, i: int) -> Box:
        x = self.centre.values[i]
        return around(x, column(self.eps, x).expand_as(x), self.own)

    def sum(self, i: int, parts: list[Box]) -> Box:
        return sum_box(parts, self.own)

    def affine(self, i: int, operator: Operator, before: Box) -> Box:
        return affine_box(operator, before, self.own)

    def activation(self, i: int, activation: Activation, before: Box) -> Box:
        return activation.image(*before)

    def joint(self, i: int, joint: Joint, parts: list[Box]) -> Box:
        return joint.image(parts)

    def found(self, i: int, node: Node, value: Box) -> Box:
        """Met with the ball around the sample's value, and with what is known."""
        centre, error = self.centre.values[i], self.centre.errors[i]
        if i in self.propagation.network.sinks:
            value = widened(value, error, self.own)
        reach = self.propagation.reach[i]
        if reach is not None:
            radius = column(self.eps, reach) * reach * (1 + 4 * self.own.unit) + error
            value = meet(value, around(centre, radius, self.own))
        return meet(value, self.known[i]) if i in self.known else value


def rounding_errors(
    network: Network,
    boxes: list[Box],
    arithmetic: Arithmetic,
    exact: Collection[int] = (),
    *,
    afresh: bool = False,
) -> list[Tensor]:
    """How far a run in this arithmetic can be from real arithmetic, at each node.

    For every input whose node values lie in ``boxes``, for any order of the sums, with or without
    fused multiply-add:

        e ← |A| (e (1 + γ) + γ |v|) + γ |b|       through an affine operator
        e ← the most that ``σ`` makes of e, + u (r |σ| + a + s |z|)
        e ← the width of a joint's image of the boxes, widened by e, + its own rounding

    ``γ`` counts the terms of a row that can be other than 0 (adding an exact 0 rounds nothing, in
    any order), and three roundings more for constants that are rounded themselves (a mean, a
    reciprocal). Infinite where a partial sum could overflow. The factors beside it bound
    the rounding of this formula's own evaluation. The nodes of ``exact`` are taken
    without an error of their own. ``afresh``: activations and joints take their inputs as given.
    """
    rules = _Errors(network, boxes, arithmetic, exact, afresh)
    return list(forward(network, rules).values())


@dataclass(frozen=True, eq=False)
class _Errors(Forward[Tensor]):
    """The rules of ``rounding_errors``."""

    network: Network
    boxes: list[Box]
    arithmetic: Arithmetic
    exact: Collection[int]
    afresh: bool

    def _before(self, i: int) -> list[Box]:
        return [self.boxes[j] for j in self.network.nodes[i].inputs]

    def input(self, i: int) -> Tensor:
        return torch.zeros_like(self.boxes[i][0])

    def sum(self, i: int, parts: list[Tensor]) -> Tensor:
        passed = torch.stack(parts).sum(0)
        sizes = torch.stack([_size(box) for box in self._before(i)]).sum(0) + passed
        error = passed + gamma(len(parts), self.arithmetic.unit) * sizes
        return torch.where(sizes <= self.arithmetic.largest / 2, error, torch.inf)

    def affine(self, i: int, operator: Operator, before: Tensor) -> Tensor:
        if not operator.terms and operator.bias is None:
            return operator.magnitude(before)
        unit, own = self.arithmetic.unit, self.network.arithmetic
        most = gamma(operator.terms + 3, unit)
        size = _size(self._before(i)[0])
        # What is exactly 0 there is an activation's 0, computed as such.
        live = ((size + before) != 0).to(size.dtype)
        terms = operator.count(live) + 3
        slack = torch.where(terms * unit < 0.5, terms * unit / (1 - terms * unit), most)
        sizes = operator.magnitude(size + before) + operator.bias_magnitude()
        error = operator.magnitude(before) + slack * (1 + 4 * own.unit) * sizes
        error = error + (operator.terms + 1) * self.arithmetic.tiny
        # No partial sum passes |A||v| + |b|.
        return torch.where(sizes <= self.arithmetic.largest / 2, error, torch.inf)

    def activation(self, i: int, activation: Activation, before: Tensor) -> Tensor:
        relative, absolute, scaled = activation.rounding
        box, unit = self._before(i)[0], self.arithmetic.unit
        if self.afresh:
            before = torch.zeros_like(before)
        error = activation.perturbation(*box, before)
        error = error + unit * (relative * (_size(self.boxes[i]) + error) + absolute)
        if scaled:
            error = error + unit * scaled * (_size(box) + before)
        return error

    def joint(self, i: int, joint: Joint, parts: list[Tensor]) -> Tensor:
        boxes = self._before(i)
        if self.afresh:
            return joint.rounding(boxes, self.arithmetic)
        wide = [widened(box, part) for box, part in zip(boxes, parts, strict=True)]
        low, high = joint.image(wide)
        return high - low + joint.rounding(wide, self.arithmetic)

    def found(self, i: int, node: Node, value: Tensor) -> Tensor:
        """With the rounding of this formula's own evaluation."""
        own = self.network.arithmetic
        error = value * (1 + own.gamma(getattr(node.kind, "terms", 0) + 16))
        return torch.zeros_like(error) if i in self.exact else error


def affine_box(operator: Operator, box: Box, own: Arithmetic) -> Box:
    """The interval image, widened by the rounding of its centre and of its radius."""
    lower, upper = box
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    # The halves cover the box in spite of their own rounding.
    radius = radius * (1 + 4 * own.unit) + 2 * own.unit * centre.abs()
    slack = own.gamma(operator.terms + 4)
    middle = operator.forward(centre)
    width = operator.magnitude(radius * (1 + slack) + slack * (centre.abs() + radius))
    width = width + slack * operator.bias_magnitude()
    if operator.terms or operator.bias is not None:
        width = width + (operator.terms + 1) * own.tiny
    return around(middle, width, own)


def sum_box(parts: list[Box], own: Arithmetic) -> Box:
    lower = torch.stack([low for low, _ in parts])
    upper = torch.stack([high for _, high in parts])
    slack = own.gamma(len(parts)) * (1 + 4 * own.unit)
    low, high = lower.sum(0), upper.sum(0)
    return low - slack * lower.abs().sum(0), high + slack * upper.abs().sum(0)


def meet(one: Box, other: Box) -> Box:
    """Both at once. A NaN on either side must stay: it can only mean "unknown"."""
    return torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])


def around(middle: Tensor, radius: Tensor, own: Arithmetic = DOUBLE) -> Box:
    """``middle ± radius``, rounded outwards."""
    radius = radius * (1 + 4 * own.unit) + 2 * own.unit * middle.abs()
    return middle - radius, middle + radius


def widened(box: Box, error: Tensor, own: Arithmetic = DOUBLE) -> Box:
    """A box that is larger by this on every side, rounded outwards."""
    low, high = box
    error = error * (1 + 2 * own.unit)
    return low - error - 2 * own.unit * low.abs(), high + error + 2 * own.unit * high.abs()


def _size(box: Box) -> Tensor:
    return torch.maximum(box[0].abs(), box[1].abs())
