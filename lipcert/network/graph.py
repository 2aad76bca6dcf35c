"""The network: a DAG of operators, activations, joints and sums, as a function of one sample.

Shapes are the file's shapes for a batch of one, its own leading 1 included; tensors carry the
samples in a further leading dimension, so ``(B, 1, 3, 32, 32)`` is a batch of CIFAR images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lipcert.network.activations import Activation
from lipcert.network.joints import Joint
from lipcert.network.nodes import Input, Kind, Node, Sum
from lipcert.network.operators import Operator, Shape
from lipcert.network.walk import Forward, ancestors, forward
from lipcert.numbers import EXACT, Outward, SumOrder, outward_of
from lipcert.rounding import DOUBLE, Arithmetic, arithmetic_of


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in topological order: node 0 is the input, the last one holds the logits.

    ``rough``: a copy to guess by; what its own rounding adds is not charged. ``leaves``: the
    coarsest format that a softmax behind the logits, which was left out, and what follows it have.
    ``each``: it is no softmax but a sigmoid of each logit, which a large one saturates.
    """

    nodes: tuple[Node, ...]
    rough: bool = False
    leaves: Arithmetic | None = None
    each: bool = False

    @property
    def in_shape(self) -> Shape:
        return self.nodes[0].shape

    @property
    def classes(self) -> int:
        return self.nodes[-1].size

    @property
    def output(self) -> int:
        return len(self.nodes) - 1

    @cached_property
    def activations(self) -> tuple[int, ...]:
        """The nodes that are activations, in order."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.kind, Activation))

    @cached_property
    def sums(self) -> tuple[int, ...]:
        """The nodes that are sums, in order."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.kind, Sum))

    @cached_property
    def joints(self) -> tuple[int, ...]:
        """The nodes that are joints, in order."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.kind, Joint))

    @property
    def joints_told(self) -> str:
        """Which joints there are, and where the first of each kind is, for people."""
        first: dict[str, str] = {}
        for i in self.joints:
            first.setdefault(type(self.nodes[i].kind).__name__, self.nodes[i].origin)
        return ", ".join(f"{kind} at {origin}" for kind, origin in first.items())

    @cached_property
    def operators(self) -> dict[int, Operator]:
        """The affine operators by their nodes, in order."""
        kinds = ((i, node.kind) for i, node in enumerate(self.nodes))
        return {i: kind for i, kind in kinds if isinstance(kind, Operator)}

    @cached_property
    def largest(self) -> int:
        """How many values a node has at most."""
        return max(node.size for node in self.nodes)

    @cached_property
    def size(self) -> int:
        """How many values all nodes have together."""
        return sum(node.size for node in self.nodes)

    @property
    def products(self) -> int:
        """The numbers that the affine operators multiply for one sample: ``Node.products``."""
        return sum(self.nodes[i].products for i in self.operators)

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """The nodes where an affine segment starts: the input, every activation and joint."""
        return (0, *sorted((*self.activations, *self.joints)))

    @cached_property
    def anchor(self) -> Tensor:
        """Some floating tensor of the network, for its dtype and device."""
        for operator in self.operators.values():
            for tensor in (operator.entries(), operator.bias):
                if tensor is not None:
                    return tensor
        return torch.zeros((), dtype=torch.float64)

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """The format that an analysis of this network rounds in."""
        return DOUBLE if self.rough else arithmetic_of(self.anchor.dtype)

    @cached_property
    def outward(self) -> Outward:
        """The arithmetic of bounds over this network: a rough copy charges nothing."""
        return EXACT if self.rough else outward_of(self.anchor.dtype)

    @cached_property
    def exact(self) -> Network:
        """The same numbers in float64, for what wants more than float32: norms, the values at the
        samples, the rows of the logits. A rough copy does without."""
        if self.rough or self.anchor.dtype == torch.float64:
            return self
        return self.to(dtype=torch.float64)

    @cached_property
    def sinks(self) -> frozenset[int]:
        """The nodes that activations and joints read."""
        return frozenset(j for i in self.sources for j in self.nodes[i].inputs)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For every node those that read it, in order, each of them once."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in set(node.inputs):
                found[j].append(i)
        return tuple(map(tuple, found))

    @property
    def parameters(self) -> int:
        """The numbers held by the affine operators, biases included."""
        tensors = (
            tensor
            for operator in self.operators.values()
            for tensor in (operator.entries(), operator.bias)
        )
        return sum(tensor.numel() for tensor in tensors if tensor is not None)

    def values(
        self, x: Tensor, kept: Callable[[int, Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """The value of every node; ``x`` is ``(B, *in_shape)`` or any reshape of that. ``kept``
        says what of a node's value the others go on with."""
        return list(forward(self, Values(self, x, kept)).values())

    def logits(self, x: Tensor) -> Tensor:
        """``(B, classes)``."""
        return self.values(x)[-1].flatten(1)

    def to(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Network:
        """The same network with its tensors elsewhere; indices keep their integer type."""

        def change(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        return Network(
            tuple(
                replace(node, kind=node.kind.convert(change))
                if isinstance(node.kind, Operator | Activation | Joint)
                else node
                for node in self.nodes
            ),
            self.rough,
            self.leaves,
            self.each,
        )

    def to_guess_by(self) -> Network:
        """A rough copy, in float32."""
        return replace(self.to(dtype=torch.float32), rough=True)


@dataclass(frozen=True, eq=False)
class Values(Forward[Tensor]):
    """The value of every node at ``x``, ``(B, …)``; ``kept`` as in ``Network.values``."""

    network: Network
    x: Tensor
    kept: Callable[[int, Tensor], Tensor] | None = None

    def input(self, i: int) -> Tensor:
        return self.x.reshape(-1, *self.network.in_shape)

    def sum(self, i: int, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[-1]

    def affine(self, i: int, operator: Operator, before: Tensor) -> Tensor:
        return operator.forward(before)

    def activation(self, i: int, activation: Activation, before: Tensor) -> Tensor:
        return activation.value(before)

    def joint(self, i: int, joint: Joint, parts: list[Tensor]) -> Tensor:
        return joint.value(*parts)

    def found(self, i: int, node: Node, value: Tensor) -> Tensor:
        return value if self.kept is None else self.kept(i, value)


class NetworkBuilder:
    """Grows a network node by node; every method returns the new node's number. New nodes have the
    ``format`` that is set at the time."""

    def __init__(self, in_shape: Shape, origin: str = "input") -> None:
        self.nodes: list[Node] = [Node(Input(), (), tuple(in_shape), origin)]
        self.format: Arithmetic | None = None

    def shape(self, node: int) -> Shape:
        return self.nodes[node].shape

    def operator(
        self, operator: Operator, source: int, origin: str = "", order: SumOrder | None = None
    ) -> int:
        """``order``: of its sums, where it has the terms of one whose sums were measured."""
        if operator.in_shape != self.shape(source):
            raise ValueError(f"{origin}: {operator} does not take {list(self.shape(source))}")
        return self._add(operator, (source,), operator.out_shape, origin, order)

    def activation(self, activation: Activation, source: int, origin: str = "") -> int:
        return self._add(activation, (source,), activation.out_shape(self.shape(source)), origin)

    def joint(self, joint: Joint, sources: Sequence[int], origin: str = "") -> int:
        shapes = tuple(self.shape(source) for source in sources)
        if joint.in_shapes != shapes:
            raise ValueError(f"{origin}: {joint} does not take {[*map(list, shapes)]}")
        return self._add(joint, tuple(sources), joint.out_shape, origin)

    def sum(self, sources: Sequence[int], origin: str = "") -> int:
        shapes = {self.shape(source) for source in sources}
        if len(shapes) != 1:
            raise ValueError(f"{origin}: a sum of different shapes {sorted(map(list, shapes))}")
        if len(sources) == 1:
            return sources[0]
        return self._add(Sum(), tuple(sources), shapes.pop(), origin)

    def build(self, output: int) -> Network:
        """The network up to ``output``, without nodes that it does not use."""
        kept = sorted({0, *ancestors(Network(tuple(self.nodes)), output)})
        place = {old: new for new, old in enumerate(kept)}
        return Network(
            tuple(
                replace(self.nodes[i], inputs=tuple(place[j] for j in self.nodes[i].inputs))
                for i in kept
            )
        )

    def _add(
        self, kind: Kind, inputs: tuple[int, ...], shape: Shape, origin: str,
        order: SumOrder | None = None,
    ) -> int:  # fmt: skip
        self.nodes.append(Node(kind, inputs, tuple(shape), origin, self.format, order))
        return len(self.nodes) - 1
