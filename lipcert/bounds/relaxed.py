"""What the activations and joints of a network are to backward passes, in one state's boxes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipcert.bounds.coupled import LayerMultipliers, coupled_minimum
from lipcert.bounds.objectives import Objectives
from lipcert.bounds.reverse import carry_back
from lipcert.bounds.state import State
from lipcert.bounds.terms import against, least_at_input
from lipcert.network import Network
from lipcert.network.activations import Elementwise, Identity, Relaxation
from lipcert.network.activations.piecewise_linear import PiecewiseLinear
from lipcert.network.joints import Joint, JointRelaxation
from lipcert.numbers import EXACT

# From coefficients on an activation's output to those on its input, and its least error, ``(N,)``.
Pass = Callable[[int, Tensor], tuple[Tensor, Tensor]]


class RelaxedState:
    """A network's activations and joints in the boxes of a state of N rows, one an objective; found
    once for all passes. ``rough``: relaxations that a search may use, and no proof."""

    def __init__(self, network: Network, state: State, *, rough: bool = False) -> None:
        self.network, self.state = network, state
        self.activations: dict[int, Relaxation] = {}
        self.joints: dict[int, JointRelaxation] = {}
        for i, layer in state.items():
            if i and not self.is_kept(i):
                kind = self.kind(i)
                relaxation = kind.rough_relaxation if rough else kind.relaxation
                box = layer.anchor, layer.lower, layer.upper
                self.activations[i] = relaxation(*box, layer.varying)
        for i in network.joints:
            layers = [state[j] for j in network.nodes[i].inputs]
            joint = network.nodes[i].kind
            assert isinstance(joint, Joint)
            boxes = [(layer.lower, layer.upper) for layer in layers]
            self.joints[i] = joint.relaxation([layer.anchor for layer in layers], boxes)

    def kind(self, node: int) -> Elementwise:
        kind = self.network.nodes[node].kind
        assert isinstance(kind, Elementwise)
        return kind

    def is_kept(self, node: int) -> bool:
        """Whether objectives pass it as they are."""
        return isinstance(self.network.nodes[node].kind, Identity)

    def passed(
        self, i: int, value: Tensor, slope: Tensor, multipliers: LayerMultipliers
    ) -> tuple[Tensor, Tensor]:
        """The coefficients before an activation, and its least error over box and ball: ``(N,)``.

        Neurons that cannot vary have no error, and no part in the ball.
        """
        if multipliers.taken is None:
            passed, least = self.activations[i](
                value, slope, against(multipliers.multiplier, value)
            )
        else:
            minima = self.minima(i, value, slope, multipliers)
            passed, least = value * slope, minima.flatten(1).sum(1)
        return passed, least - multipliers.cost

    def minima(self, i: int, value: Tensor, slope: Tensor, multipliers: LayerMultipliers) -> Tensor:
        """The relaxed minimum of each neuron."""
        activation, layer = self.kind(i), self.state[i]
        column = against(multipliers.multiplier, value)
        if multipliers.taken is None:
            minima = activation.relaxed_minimum(
                value, slope, column, layer.anchor, layer.lower, layer.upper
            )
        else:
            assert isinstance(activation, PiecewiseLinear)
            taken = against(multipliers.taken, value)
            minima = coupled_minimum(activation, value, slope, column, taken, layer)
        return torch.where(layer.varying != 0, minima, 0)

    def joined(self, i: int, value: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Coefficients before a joint, one tensor an input, and what is lost on the way by each
        objective, but for rounding."""
        relaxation = self.joints[i]
        kept, lost = relaxation.relaxed(value, EXACT)
        return tuple(part[:, 0] for part in relaxation.line.transpose(kept[:, None])), lost

    def change(self, objectives: Objectives, go: Pass, *, images: bool) -> Tensor:
        """A lower bound of how much each objective changes over the ball, but for rounding, where
        it passes activations as ``go`` says: ``(N,)``."""
        total = torch.zeros_like(self.state[0].radius)

        def relax(i: int, value: Tensor) -> Tensor:
            nonlocal total
            if self.is_kept(i):
                return value
            passed, gained = go(i, value)
            total = total + gained
            return passed

        def join(i: int, joint: Joint, value: Tensor) -> tuple[Tensor, ...]:
            nonlocal total
            parts, lost = self.joined(i, value)
            total = total - lost
            return parts

        rest = carry_back(self.network, objectives.node, objectives.coefficients, relax, join)
        if rest is None:
            return total
        return total + least_at_input(rest, self.state[0], images=images)[0]
