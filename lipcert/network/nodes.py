"""The nodes of a network: its input, sums, affine operators, activations and joints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator, Shape
from lipcert.numbers import SumOrder
from lipcert.rounding import Arithmetic


@dataclass(frozen=True)
class Input:
    """The network's input, node 0."""


@dataclass(frozen=True)
class Sum:
    """The sum of all inputs. Concatenation is a sum of placed parts."""


Kind = Input | Sum | Operator | Activation | Joint


@dataclass(frozen=True)
class Node:
    """One value of the network; ``origin`` names the place in the file that it comes from.

    ``format``: the format that the file itself computes the value in, whatever it is deployed in:
    it rounds and overflows there at least as much. None where only the deployed one counts.
    ``order``: in which the deployed network sums the terms of an operator; None for any.
    """

    kind: Kind
    inputs: tuple[int, ...]
    shape: Shape
    origin: str
    format: Arithmetic | None = None
    order: SumOrder | None = None

    @property
    def products(self) -> int:
        """How many numbers one sweep through it multiplies, at most: its cost. Of an activation
        each value counts for one."""
        match self.kind:
            case Operator() as operator:
                return math.prod(operator.out_shape) * operator.terms
            case Joint() as joint:
                return joint.products
            case Activation():
                return self.size
        return 0

    @property
    def size(self) -> int:
        """How many values it is."""
        return math.prod(self.shape)
