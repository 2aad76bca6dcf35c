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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.bounds.ball import Scalar, coordinate_reach
from lipcert.network import Forward, Network, Node, forward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.norms import operator_norm, row_norms
from lipcert.numbers import OUT64, Box, Outward, around, image, meet, sum_box, widened
from lipcert.rounding import DOUBLE, column, rounded_up


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
    """Forward propagation over one network, with the constants that all samples share: how far a
    node moves for each unit of the radius, None where the boxes before it say as much."""

    network: Network
    reach: list[Tensor | None]
    norm_of: Callable[[Operator], float] = operator_norm

    @classmethod
    def of(
        cls,
        network: Network,
        constants: Sequence[Scalar] | None = None,
        norm_of: Callable[[Operator], float] = operator_norm,
    ) -> Propagation:
        """``constants``: the Lipschitz constant from the input to each node; None where these are
        not known, so that boxes come from the boxes before them alone. ``norm_of``: an upper bound
        of an operator's norm."""
        if constants is None:
            return cls(network, [None] * len(network.nodes), norm_of)
        return cls(network, coordinate_reach(network, constants), norm_of)

    @cached_property
    def rows(self) -> list[Tensor | None]:
        """Of each operator the row norms, ``(1, *shape)``, rounded up."""
        like, dtype = self.network.exact.anchor, self.network.anchor.dtype
        found: list[Tensor | None] = [None] * len(self.network.nodes)
        for i, operator in self.network.exact.operators.items():
            found[i] = rounded_up(row_norms(operator, like, self.network.exact.outward), dtype)
        return found

    @cached_property
    def norms(self) -> list[float]:
        """Of each operator the norm, where another one or a sum goes on from it, else infinite."""
        exact = self.network.exact
        found = [math.inf] * len(exact.nodes)
        for i, operator in exact.operators.items():
            if any(not isinstance(exact.nodes[j].kind, Activation) for j in exact.readers[i]):
                found[i] = self.norm_of(operator)
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
        if network.rough:
            values = network.values(x)
            return Centre(values, [torch.zeros_like(value) for value in values])
        dtype, last = network.anchor.dtype, network.output
        rules = _Values(exact, x.to(exact.anchor.dtype), dtype, afresh)
        found = list(forward(exact, rules).values())
        errors = [error for _, error in found]
        if exact is not network:
            # To the nearest number of the narrow type, whether it was rounded on the way or is now.
            own = network.outward
            errors = [
                own.up(OUT64.add(error, own.unit * value.abs() + own.tiny), 2)
                for value, error in found
            ]
        return Centre(
            [value if i == last else value.to(dtype) for i, (value, _) in enumerate(found)],
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
    def own(self) -> Outward:
        return self.propagation.network.outward

    def input(self, i: int) -> Box:
        x = self.centre.values[i]
        return around(x, column(self.eps, x).expand_as(x), self.own)

    def sum(self, i: int, parts: list[Box]) -> Box:
        return sum_box(parts, self.own)

    def affine(self, i: int, operator: Operator, before: Box) -> Box:
        return image(operator, before, self.own)

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
            radius = self.own.times(reach, column(self.eps, reach))
            value = meet(value, around(centre, self.own.add(radius, error), self.own))
        return meet(value, self.known[i]) if i in self.known else value


@dataclass(frozen=True, eq=False)
class _Values(Forward[tuple[Tensor, Tensor]]):
    """Values in float64 and how far each may be off, as it is computed here. What an activation
    reads goes on in ``narrow``, the type of the analysis; ``afresh``: as if it had no error."""

    network: Network
    x: Tensor
    narrow: torch.dtype
    afresh: bool

    def input(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.x.reshape(-1, *self.network.in_shape)
        return x, torch.zeros_like(x)

    def sum(self, i: int, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return OUT64.total(parts)

    def affine(
        self, i: int, operator: Operator, before: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return OUT64.apply(operator, *before)

    def activation(
        self, i: int, activation: Activation, before: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """An error goes on by the most that the activation makes of it."""
        z, error = before
        value = activation.value(z)
        own = OUT64.rounding(activation.rounding, value, z)
        if self.afresh:
            return value, own
        passed = activation.perturbation(*widened((z, z), error), error)
        return value, OUT64.up(passed + own, 2)

    def joint(
        self, i: int, joint: Joint, parts: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Errors go on by the width of the image of what they leave open."""
        points = [(z, z) for z, _ in parts]
        value = joint.value(*(z for z, _ in parts))
        if self.afresh:
            return value, joint.rounding(points, DOUBLE)
        wide = [widened((z, z), error) for z, error in parts]
        low, high = joint.image(wide)
        return value, OUT64.up(high - low + joint.rounding(wide, DOUBLE), 2)

    def found(self, i: int, node: Node, value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        point, error = value
        if i in self.network.sinks and point.dtype != self.narrow:
            point = point.to(self.narrow).to(point.dtype)
        return point, error
