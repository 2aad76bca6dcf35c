"""Comparisons of what was compared, one stage after another.

A network of comparisons that is no sorting of a whole group, or that is written out with
arithmetic, has values which one comparison leaves alone and another takes up. By norms each of
these ways is a branch, and branches add up. So all values that are read later on go through every
stage, those that it does not compare as they are (``MaxMin.passing``). Each stage moves no two
points further apart, and nothing else is computed.

Where a value is both compared and read again the branches stay: put together they may cost more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipcert.loading.rebuilding import Rebuilding, starts
from lipcert.network import Network
from lipcert.network.activations import MaxMin
from lipcert.network.nodes import Sum
from lipcert.network.operators import Select


def staged(network: Network) -> Network:
    """The same function, with comparisons that pass on what they do not compare."""
    if not any(isinstance(node.kind, MaxMin) for node in network.nodes):
        return network
    wires = _Wires(network)
    found = {
        i: known for i in range(1, len(network.nodes)) if (known := _stages(wires, i)) is not None
    }
    return _Making(network, found).rebuilt() or network


@dataclass(frozen=True, eq=False)
class _Stage:
    """Pairs of values by their numbers ``(c, 2)``, the numbers of their larger and smaller ones
    ``(c, 2)``, and of those that pass."""

    pairs: Tensor
    made: Tensor
    passing: Tensor
    spelling: float
    additions: float


@dataclass(frozen=True, eq=False)
class _Stages:
    """A node by its values' numbers, after all stages."""

    atoms: Tensor
    stages: tuple[_Stage, ...]


@dataclass(eq=False)
class _Wires:
    """Which value, by its number, each value of a node is, where it was only moved or passed, or
    was made before by a comparison of the same pair. ``pairs`` and ``made``: all of these;
    ``spelling`` and ``additions``: the most of all comparisons that a node stands for."""

    network: Network
    known: list[Tensor] = field(default_factory=list)
    spelling: dict[int, float] = field(default_factory=dict)
    additions: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.starts = starts(self.network)
        self.owner = torch.tensor(self.starts)
        self.pairs = self.made = torch.empty(0, 2, dtype=torch.int64)
        for i in range(len(self.network.nodes)):
            self.known.append(self._moved(i))

    def _moved(self, i: int) -> Tensor:
        node = self.network.nodes[i]
        own = torch.arange(self.starts[i], self.starts[i + 1])
        match node.kind:
            case Select():
                before, index = self.known[node.inputs[0]], node.kind.index.flatten()
                return torch.where(index >= 0, before[index.clamp(min=0)], -1)
            case Sum():
                parts = torch.stack([self.known[j] for j in node.inputs])
                apart = bool(((parts >= 0).sum(0) == 1).all())
                return parts.amax(0) if apart else own
            case MaxMin() as kind:
                before = self.known[node.inputs[0]].reshape(node.shape)
                *halves, rest = kind.parts(before, kind.axis)
                *mine, _ = kind.parts(own.reshape(node.shape), kind.axis)
                made = self._first(i, kind, *(torch.stack([*v], -1) for v in (halves, mine)))
                return torch.cat([made[..., 0], made[..., 1], rest], kind.axis).flatten()
        return own

    def _first(self, i: int, kind: MaxMin, pairs: Tensor, made: Tensor) -> Tensor:
        """What the first comparisons of the same pairs made."""
        shape, before = made.shape, len(self.pairs)
        self.pairs = torch.cat([self.pairs, pairs.reshape(-1, 2)])
        self.made = torch.cat([self.made, made.reshape(-1, 2)])
        _, back = torch.unique(self.pairs.sort(1).values, dim=0, return_inverse=True)
        count = len(self.pairs)
        first = torch.full((count,), count).scatter_reduce(0, back, torch.arange(count), "amin")
        self.made = self.made[first[back]]
        found = self.made[before:]
        for j in {i, *self.owners(found.flatten())}:
            self.spelling[j] = max(self.spelling.get(j, 0.0), kind.spelling)
            self.additions[j] = max(self.additions.get(j, 0.0), kind.additions)
        return found.reshape(shape)

    def owners(self, values: Tensor) -> set[int]:
        found = torch.bucketize(values[values >= 0], self.owner, right=True) - 1
        return set(torch.unique(found).tolist())

    def comparisons(self, atoms: Tensor) -> dict[int, int]:
        """The comparisons that make these values, one of the other, each with its stage."""
        level: dict[int, int] = {}

        def climb(values: Tensor) -> int:
            highest = 0
            for i in self.owners(values):
                if isinstance(self.network.nodes[i].kind, MaxMin):
                    if i not in level:
                        level[i] = 1 + climb(self.compared(i)[0].flatten())
                    highest = max(highest, level[i])
            return highest

        climb(atoms)
        return level

    def compared(self, i: int) -> tuple[Tensor, Tensor]:
        """The pairs of a comparison ``(c, 2)``, and what it makes of them."""
        own = (self.made >= self.starts[i]) & (self.made < self.starts[i + 1])
        pairs, made = self.pairs[own[:, 0]], self.made[own[:, 0]]
        _, index = torch.unique(made[:, 0], return_inverse=True)
        first = torch.full((len(made),), len(made))
        first = first.scatter_reduce(0, index, torch.arange(len(made)), "amin")
        first = first[first < len(made)]
        return pairs[first], made[first]

    def stage(self, nodes: list[int], needed: Tensor, here: Tensor) -> _Stage | None:
        """Of some comparisons of values ``here``, after which others are ``needed``; None where a
        value would be read twice."""
        both = [self.compared(i) for i in nodes]
        pairs, made = (torch.cat([one[k] for one in both]) for k in (0, 1))
        # Of comparisons whose values nobody asks for.
        used = torch.isin(made, needed).any(1)
        pairs, made = pairs[used], made[used]
        passing = here[torch.isin(here, needed)]
        reads = torch.cat([pairs.flatten(), passing])
        if bool((pairs < 0).any()) or len(torch.unique(reads)) < len(reads):
            return None
        most = [max(known[i] for i in nodes) for known in (self.spelling, self.additions)]
        return _Stage(pairs, made, passing, *most)


def _stages(wires: _Wires, i: int) -> _Stages | None:
    """None unless a node has values of several stages, or others beside compared ones."""
    node = wires.network.nodes[i]
    if not isinstance(node.kind, Select | Sum | MaxMin):
        return None
    atoms = wires.known[i]
    level = wires.comparisons(atoms)
    formats = {wires.network.nodes[j].format for j in level} | {node.format}
    if not level or bool((atoms < 0).any()) or len(formats) != 1:
        return None
    highest = max(level.values())
    levels = [[j for j in sorted(level) if level[j] == k] for k in range(1, highest + 1)]
    reads = [torch.cat([wires.compared(j)[0].flatten() for j in nodes]) for nodes in levels]
    made = torch.cat([wires.compared(j)[1].flatten() for j in level])
    every = torch.unique(torch.cat([atoms, *reads]))
    here = every[~torch.isin(every, made)]
    stages = []
    for k, nodes in enumerate(levels):
        needed = torch.cat([atoms, *reads[k + 1 :]])
        stage = wires.stage(nodes, needed, here)
        if stage is None:
            return None
        stages.append(stage)
        here = torch.cat([stage.made.T.flatten(), stage.passing])
    if len(stages) == 1 and not len(stages[0].passing):
        return None
    return _Stages(atoms, tuple(stages))


class _Making(Rebuilding[_Stages]):
    """Puts stages into the network that is built, each once."""

    def __init__(self, network: Network, known: dict[int, _Stages]) -> None:
        super().__init__(network, known)
        self.shared: dict[tuple[int, bytes, float, float], int] = {}

    def made(self, i: int, known: _Stages) -> int:
        node, builder = self.network.nodes[i], self.builder
        builder.format = node.format
        first = known.stages[0]
        here = torch.cat([first.pairs.T.flatten(), first.passing])
        shape: tuple[int, ...] = (len(here),)
        at = builder.sum(self.gathered(here, shape, node.origin), node.origin)
        for stage in known.stages:
            reads = torch.cat([stage.pairs.T.flatten(), stage.passing])
            kind = MaxMin(0, stage.spelling, stage.additions, len(stage.passing))
            name = at, reads.numpy().tobytes(), kind.spelling, kind.additions
            if name not in self.shared:
                moved = self.select(at, _places(here, reads), (len(reads),), node.origin)
                self.shared[name] = builder.activation(kind, moved, node.origin)
            at = self.shared[name]
            here = torch.cat([stage.made.T.flatten(), stage.passing])
        return self.select(at, _places(here, known.atoms), tuple(node.shape), node.origin)


def _places(values: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted number is among the values."""
    order = values.argsort()
    return order[torch.searchsorted(values[order], wanted)]
