"""Where a network with joints keeps boxes beside those of its activations.

A joint is known over boxes of its inputs, and the bounds keep boxes of what activations read: so in
front of every input of a joint stands an ``Identity``. Another one stands behind every sum or
operator that several others read: what is rounded there is then one error that goes all ways, where
it would be one of its own on each of them.
"""

from __future__ import annotations

from lipcert.network.activations import Activation, Identity
from lipcert.network.graph import Network, NetworkBuilder
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator, Select
from lipcert.network.walk import Forward, forward


def keep(network: Network) -> Network:
    """The same function, with an ``Identity`` at each of these places."""
    rules = _Keeping(network)
    return rules.builder.build(forward(network, rules)[network.output])


class _Keeping(Forward[int]):
    """Builds the network anew; what is found at a node is its number there."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.builder = NetworkBuilder(network.in_shape, network.nodes[0].origin)
        self.kept: dict[int, int] = {}

    def _origin(self, i: int) -> str:
        """Of a node, in whose format the new ones are from now on."""
        self.builder.format = self.network.nodes[i].format
        return self.network.nodes[i].origin

    def input(self, i: int) -> int:
        return 0

    def sum(self, i: int, parts: list[int]) -> int:
        return self._shared(i, self.builder.sum(parts, self._origin(i)))

    def affine(self, i: int, operator: Operator, before: int) -> int:
        order = self.network.nodes[i].order
        place = self.builder.operator(operator, before, self._origin(i), order)
        # What only moves rounds nothing.
        return place if isinstance(operator, Select) else self._shared(i, place)

    def activation(self, i: int, activation: Activation, before: int) -> int:
        return self.builder.activation(activation, before, self._origin(i))

    def joint(self, i: int, joint: Joint, parts: list[int]) -> int:
        origin = self._origin(i)
        return self.builder.joint(joint, [self._keep(part, origin) for part in parts], origin)

    def _shared(self, i: int, place: int) -> int:
        several = len(self.network.readers[i]) > 1
        return self._keep(place, self.network.nodes[i].origin) if several else place

    def _keep(self, place: int, origin: str) -> int:
        if isinstance(self.builder.nodes[place].kind, Identity):
            return place
        if place not in self.kept:
            self.builder.format = None
            self.kept[place] = self.builder.activation(Identity(), place, origin)
        return self.kept[place]
