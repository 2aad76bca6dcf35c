"""A network built anew, with other nodes in the place of some of its own."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lipcert.network import Forward, Network, NetworkBuilder, forward
from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.operators import Operator, Select

T = TypeVar("T")

# At so many points, and so near, a network has to be what it was, but for what is charged.
_POINTS, _SAME = 3, 1e-9


class Rebuilding(Forward[int], Generic[T]):
    """Copies a network but for the nodes of which something is ``known``: where other nodes read
    one, ``made`` says what stands in its place. What is found at a node is its new number.
    ``near``: how far the two may be apart where they are compared."""

    def __init__(self, network: Network, known: Mapping[int, T], near: float = _SAME) -> None:
        self.network, self.known, self.near = network, known, near
        self.starts = starts(network)
        self.builder = NetworkBuilder(network.in_shape, network.nodes[0].origin)
        self.place: dict[int, int] = {}
        self.ends = {
            i for i in known
            if i == network.output
            or any(j not in known for j in network.readers[i])
        }  # fmt: skip

    @abstractmethod
    def made(self, i: int, known: T) -> int:
        """The node, of those in ``builder``, that stands in the place of node ``i``."""

    def rebuilt(self) -> Network | None:
        """The same function; None where nothing takes another's place, or where it is another."""
        if not self.ends:
            return None
        output = forward(self.network, self)[self.network.output]
        found = replace(
            self.builder.build(output), rough=self.network.rough, leaves=self.network.leaves,
            each=self.network.each,
        )  # fmt: skip
        return found if _agree(self.network, found, self.near) else None

    def input(self, i: int) -> int:
        self.place[i] = 0
        return 0

    def sum(self, i: int, parts: list[int]) -> int:
        return self._placed(i, lambda origin: self.builder.sum(parts, origin))

    def affine(self, i: int, operator: Operator, before: int) -> int:
        return self._placed(i, lambda origin: self.builder.operator(operator, before, origin))

    def activation(self, i: int, activation: Activation, before: int) -> int:
        return self._placed(i, lambda origin: self.builder.activation(activation, before, origin))

    def joint(self, i: int, joint: Joint, parts: list[int]) -> int:
        return self._placed(i, lambda origin: self.builder.joint(joint, parts, origin))

    def _placed(self, i: int, copied: Callable[[str], int]) -> int:
        if i in self.ends:
            self.place[i] = self.made(i, self.known[i])
        else:
            node = self.network.nodes[i]
            self.builder.format = node.format
            self.place[i] = copied(node.origin)
        return self.place[i]

    def owners(self, atoms: Tensor) -> Tensor:
        """The nodes of values by their numbers (``starts``)."""
        return torch.bucketize(atoms.contiguous(), torch.tensor(self.starts), right=True) - 1

    def gathered(self, atoms: Tensor, shape: tuple[int, ...], origin: str) -> list[int]:
        """Values by their numbers, −1 for none: a part for each node that they are of."""
        owners = self.owners(atoms)
        return [
            self.select(
                self.place[j],
                torch.where((owners == j) & (atoms >= 0), atoms - self.starts[j], -1),
                shape, origin,
            )
            for j in sorted(set(owners[atoms >= 0].tolist()))
        ]  # fmt: skip

    def select(self, node: int, index: Tensor, shape: tuple[int, ...], origin: str) -> int:
        """Values of a new node, by their places in it, −1 for 0."""
        operator = Select.of(index.reshape(shape), self.builder.shape(node))
        return self.builder.operator(operator, node, origin)


def starts(network: Network) -> list[int]:
    """The number of each node's first value, where the values of all nodes are numbered in order;
    after them how many there are."""
    return [0, *itertools.accumulate(node.size for node in network.nodes)]


def _agree(one: Network, other: Network, near: float) -> bool:
    """Whether both give the same at a few points that mean nothing, but for sums in another
    order."""
    places = torch.arange(math.prod(one.in_shape), dtype=torch.float64)
    x = torch.stack([torch.sin(1.0 + k + (k + 1) * places) for k in range(_POINTS)])
    first, second = one.logits(x), other.logits(x)
    return bool(((first - second).abs() <= near * (1 + first.abs().amax())).all())
