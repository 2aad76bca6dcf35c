"""The two loops over a network: everything that is passed from node to node goes through them.

A computation over a network is a set of rules, one for each kind of node. ``forward`` applies them
from the input to the output and keeps what they find at every node; ``backward`` starts from an
objective at any node and carries it to the nodes that it depends on. What is passed (a value, a
box, a linear objective with its error) is the type parameter ``T`` of the rules.

    class Values(Forward[Tensor]):
        def input(self, i: int) -> Tensor: return self.x
        def sum(self, i: int, parts: list[Tensor]) -> Tensor: return torch.stack(parts).sum(0)
        def affine(self, i: int, operator: Operator, before: Tensor) -> Tensor:
            return operator.forward(before)
        def activation(self, i: int, activation: Activation, before: Tensor) -> Tensor:
            return activation.value(before)

    logits = forward(network, Values(x))[network.output]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.nodes import Input, Node, Sum
from lipcert.network.operators import Operator

T = TypeVar("T")


class Graph(Protocol):
    """What the loops need of a network: its nodes, in topological order."""

    @property
    def nodes(self) -> tuple[Node, ...]: ...


class Forward(ABC, Generic[T]):
    """What becomes of ``T`` at a node, from what was found at the nodes that it reads.

    ``i`` is always the node's number; ``before`` and ``parts`` are what was found at its inputs, in
    their order.
    """

    def input(self, i: int) -> T:
        """At the network's input."""
        raise TypeError(f"{type(self).__name__} starts at no input")

    @abstractmethod
    def sum(self, i: int, parts: list[T]) -> T:
        """At a sum."""

    @abstractmethod
    def affine(self, i: int, operator: Operator, before: T) -> T:
        """At an affine operator."""

    def activation(self, i: int, activation: Activation, before: T) -> T:
        """At an activation."""
        raise TypeError(f"{type(self).__name__} passes no activation")

    def joint(self, i: int, joint: Joint, parts: list[T]) -> T:
        """At a joint."""
        raise TypeError(f"{type(self).__name__} passes no joint")

    def found(self, i: int, node: Node, value: T) -> T:
        """What the other nodes are given of a node's own value: all of it, unless overridden."""
        return value


def forward(
    network: Graph,
    rules: Forward[T],
    *,
    known: Mapping[int, T] | None = None,
    along: Iterable[int] | None = None,
    release: bool = False,
) -> dict[int, T]:
    """What the rules find at every node, by its number, in order.

    ``along``: only at these nodes, in increasing order; what they read elsewhere is left out, so
    that a sum has only the parts that lie on the way. ``known``: values that are there already.
    ``release``: forget a node's value once the last node that reads it has it, for values that are
    too large to be kept; what is left is returned.
    """
    values: dict[int, T] = dict(known or {})
    way = range(len(network.nodes)) if along is None else tuple(along)
    last = {j: i for i in way for j in network.nodes[i].inputs} if release else {}
    for i in way:
        if i in values:
            continue
        node = network.nodes[i]
        parts = [values[j] for j in node.inputs if j in values]
        match node.kind:
            case Input():
                value = rules.input(i)
            case Sum():
                value = rules.sum(i, parts)
            case Operator() as operator:
                value = rules.affine(i, operator, parts[0])
            case Activation() as activation:
                value = rules.activation(i, activation, parts[0])
            case Joint() as joint:
                value = rules.joint(i, joint, parts)
        values[i] = rules.found(i, node, value)
        del parts, value
        for j in node.inputs if release else ():
            if last[j] == i:
                values.pop(j, None)
    return values


@dataclass(frozen=True)
class _Alike(Forward[T]):
    rule: Callable[[int, list[T]], T]

    def input(self, i: int) -> T:
        return self.rule(i, [])

    def sum(self, i: int, parts: list[T]) -> T:
        return self.rule(i, parts)

    def affine(self, i: int, operator: Operator, before: T) -> T:
        return self.rule(i, [before])

    def activation(self, i: int, activation: Activation, before: T) -> T:
        return self.rule(i, [before])

    def joint(self, i: int, joint: Joint, parts: list[T]) -> T:
        return self.rule(i, parts)


def fold(network: Graph, rule: Callable[[int, list[T]], T]) -> list[T]:
    """What one rule for nodes of all kinds finds at every node, from what was found at the nodes
    that it reads; of these the input has none."""
    return list(forward(network, _Alike(rule)).values())


class Backward(ABC, Generic[T]):
    """What an objective on a node's value becomes on the values of the nodes that it reads."""

    @abstractmethod
    def affine(self, i: int, operator: Operator, value: T) -> T:
        """Before an affine operator, as a rule by its transpose."""

    def activation(self, i: int, activation: Activation, value: T) -> T:
        """Before an activation."""
        raise TypeError(f"{type(self).__name__} passes no activation")

    def joint(self, i: int, joint: Joint, value: T) -> Sequence[T]:
        """Before a joint: one objective for each of its inputs, in their order."""
        raise TypeError(f"{type(self).__name__} passes no joint")

    @abstractmethod
    def add(self, one: T, other: T) -> T:
        """The two objectives that a node has because two others read it."""

    def arrived(self, i: int, value: T) -> T:
        """A node's whole objective, before it goes on; unchanged, unless overridden."""
        return value


def backward(
    network: Graph,
    node: int,
    objective: T,
    rules: Backward[T],
    *,
    to: int = 0,
    along: Iterable[int] | None = None,
) -> T | None:
    """What an objective on the value of ``node`` comes down to on that of node ``to``; None where
    it does not reach it.

    ``along``: only through these nodes, ``to`` not counted.
    """
    way = None if along is None else frozenset(along) | {to}
    pending = {node: objective}
    for i in range(node, to, -1):
        if i not in pending:
            continue
        kind, value = network.nodes[i].kind, rules.arrived(i, pending.pop(i))
        inputs = network.nodes[i].inputs
        match kind:
            case Operator() as operator:
                parts: Sequence[T] = [rules.affine(i, operator, value)]
            case Activation() as activation:
                parts = [rules.activation(i, activation, value)]
            case Joint() as joint:
                parts = rules.joint(i, joint, value)
            case _:
                parts = [value] * len(inputs)
        for j, part in zip(inputs, parts, strict=True):
            if way is None or j in way:
                pending[j] = rules.add(pending[j], part) if j in pending else part
    return rules.arrived(to, pending[to]) if to in pending else None


def ancestors(network: Graph, node: int) -> tuple[int, ...]:
    """All nodes that a node is computed from, itself included, in order."""
    needed = {node}
    for i in range(node, 0, -1):
        if i in needed:
            needed.update(network.nodes[i].inputs)
    return tuple(sorted(needed))


def held(network: Graph) -> int:
    """How many values of one vector are held at the same time, at most, by a ``forward`` that
    releases them."""
    sizes = [node.size for node in network.nodes]
    readers = Counter(j for node in network.nodes for j in set(node.inputs))
    now = most = 0
    for i, node in enumerate(network.nodes):
        now += sizes[i]
        most = max(most, now)
        for j in set(node.inputs):
            readers[j] -= 1
            now -= 0 if readers[j] else sizes[j]
    return most
