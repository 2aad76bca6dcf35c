"""How far each node can move: global Lipschitz constants from the input to every node.

A ball of radius ``eps`` around the input reaches a node within ``L · eps``. Norms multiply along a
path and add up where branches meet, so residual networks need nothing special.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lipcert.bounds.residual import Block, residual_blocks
from lipcert.network import Forward, Network, Node, forward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator
from lipcert.norms import absolute_norm, operator_norm, row_norms
from lipcert.numbers import EXACT, OUT64, Outward
from lipcert.rounding import rounded_up

Edge = tuple[int, int]


# A constant that autograd follows is a tensor of one number.
Scalar = float | Tensor


def node_constants(
    network: Network,
    norms: Mapping[Edge, Scalar],
    norm_of: Callable[[Operator], float] = operator_norm,
    *,
    rough: bool = False,
) -> list[Scalar]:
    """For each node an upper bound of the L2 Lipschitz constant from the input to it.

    ``norms`` holds those of whole segments, by (source, sink); a sink whose segments are all there
    is bounded by them, any other affine node by its operator's own norm, ``norm_of``. A residual
    block that does not expand counts as such (``bounds.residual``), where norms are numbers.
    ``rough``: where norms are estimated, and no more of them is to be found than has to.
    """
    own = EXACT if network.rough else OUT64
    known = norms and all(isinstance(norm, float) for norm in norms.values())
    blocks = residual_blocks(network, fitting=rough) if known else {}
    if rough and not blocks:
        # Whole segments say all.
        norm_of = absolute_norm
    return list(forward(network, _Constants(network, norms, norm_of, own, blocks)).values())


@dataclass(frozen=True, eq=False)
class _Constants(Forward[Scalar]):
    network: Network
    norms: Mapping[Edge, Scalar]
    norm_of: Callable[[Operator], float]
    own: Outward
    blocks: Mapping[int, Block]
    reached: dict[int, Scalar] = field(default_factory=dict)

    def input(self, i: int) -> Scalar:
        return 1.0

    def sum(self, i: int, parts: list[Scalar]) -> Scalar:
        total = self.own.add(*parts)
        if i not in self.blocks:
            return total
        block = self.blocks[i]
        return min(total, self.own.times(block.factor, self.reached[block.source]))

    def affine(self, i: int, operator: Operator, before: Scalar) -> Scalar:
        if self._arriving(i) and not self.blocks:
            return math.inf
        return self.own.times(before, self.norm_of(operator))

    def activation(self, i: int, activation: Activation, before: Scalar) -> Scalar:
        return self.own.times(before, activation.lipschitz)

    def joint(self, i: int, joint: Joint, parts: list[Scalar]) -> Scalar:
        return math.inf

    def found(self, i: int, node: Node, value: Scalar) -> Scalar:
        arriving = self._arriving(i)
        if i and arriving and not isinstance(node.kind, Activation | Joint):
            together = self.own.add(*(self.own.times(n, self.reached[j]) for j, n in arriving))
            # On the way itself there may be blocks that whole segments do not see.
            value = min(together, value) if self.blocks else together
        self.reached[i] = value
        return value

    def _arriving(self, i: int) -> list[tuple[int, Scalar]]:
        """The whole segments that end here, by their sources."""
        return [(edge[0], norm) for edge, norm in self.norms.items() if edge[1] == i]


def coordinate_reach(network: Network, constants: Sequence[Scalar]) -> list[Tensor | None]:
    """For each affine node how far one neuron moves for each unit of ``eps``: ``(1, *shape)``.

    ``L_in ‖row_k(A)‖₂``; None for sums and activations, where
    the boxes before them say as much.
    """
    reach: list[Tensor | None] = [None] * len(network.nodes)
    exact = network.exact
    for i, operator in exact.operators.items():
        constant = constants[network.nodes[i].inputs[0]]
        number = constant.detach() if isinstance(constant, Tensor) else constant
        if math.isfinite(float(number)):
            rows = row_norms(operator, exact.anchor, exact.outward)
            reach[i] = rounded_up(exact.outward.times(rows, constant), network.anchor.dtype)
    return reach
