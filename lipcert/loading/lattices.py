"""Maxima and minima of maxima and minima, where together they are the order statistics of a group.

``max(max(a, b), max(c, d))``, the median ``max(min(a, b), min(max(a, b), c))`` and the sorting of
four numbers by five comparisons are GroupSorts. By norms each of their comparisons is a branch of
its own, and branches add up; a GroupSort costs 1.

A function made of maxima and minima alone commutes with every threshold: ``f(x) > t`` where
``f([x > t]) = 1``. So it is known by its values at 0 and 1, and it is the r-th largest of its k
values exactly where that table says "at least r of k are 1". Every value of a node gets such a
table. Comparisons round nothing, and so nothing is charged; one that a file writes out with
arithmetic is a value of its own here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.loading.rebuilding import Rebuilding, starts
from lipcert.network import Network
from lipcert.network.activations import GroupMax, GroupSort, MaxMin
from lipcert.network.nodes import Node, Sum
from lipcert.network.operators import Select
from lipcert.rounding import Arithmetic

# So many values has a group, so many a node that is looked into, and so many its tables.
_MOST, _LARGEST, _TABLES = 8, 2**17, 2**23
_NONE = 2**62


def grouped(network: Network) -> Network:
    """The same function, with the order statistics of groups found by one comparison each."""
    lattices = _Lattices(network)
    found = {
        i: known for i in range(1, len(network.nodes))
        if (known := _ordered(lattices.of(i))) is not None
    }  # fmt: skip
    for i in sorted(found, reverse=True):
        if _is_compared(network, i, set(found)):
            del found[i]
    return _Making(network, found).rebuilt() or network


def _is_compared(network: Network, i: int, found: set[int]) -> bool:
    """Whether a node's values are compared again, in what is no order statistic of a group: then
    all of its comparisons stay, one after another (``stages``)."""
    waiting, seen = [i], {i} | found
    while waiting:
        for j in network.readers[waiting.pop()]:
            kind = network.nodes[j].kind
            if j in seen:
                continue
            if isinstance(kind, MaxMin | GroupMax | GroupSort):
                return True
            if isinstance(kind, Select | Sum):
                seen.add(j)
                waiting.append(j)
    return False


@dataclass(frozen=True, eq=False)
class _Table:
    """Of all ``n`` values of a node: the numbers of the values that each is made of ``(n, K)``, in
    increasing order, and what it is for each choice of 0 and 1 for these, ``(n, 2^K)``, bit j of
    the choice for the j-th; no numbers at all of a 0 that stands for nothing. ``compared``: the
    nodes that compare on the way, ``formats`` of all that it leads through."""

    atoms: Tensor
    table: Tensor
    compared: frozenset[int] = frozenset()
    formats: frozenset[Arithmetic | None] = frozenset()

    @property
    def live(self) -> Tensor:
        return self.atoms != _NONE

    def rows(self, index: Tensor) -> _Table:
        """Some of the values; nothing where the index is −1."""
        atoms = self.atoms[index.clamp(min=0)]
        atoms = torch.where(index[:, None] >= 0, atoms, _NONE)
        return replace(self, atoms=atoms, table=self.table[index.clamp(min=0)])

    def over(self, atoms: Tensor) -> Tensor:
        """The table over more values, ``(n, 2^W)``."""
        at = (self.atoms[:, :, None] == atoms[:, None, :]).long().argmax(2)
        choices = torch.arange(2 ** atoms.shape[1])
        index = torch.zeros(len(atoms), len(choices), dtype=torch.int64)
        for k in range(self.atoms.shape[1]):
            bits = (choices[None] >> at[:, k : k + 1]) & 1
            index |= torch.where(self.live[:, k : k + 1], bits << k, 0)
        return self.table.gather(1, index)


@dataclass(frozen=True, eq=False)
class _Order:
    """Of all values of a node: each the ``rank``-th largest of its ``atoms``, from 1."""

    atoms: Tensor
    rank: Tensor
    format: Arithmetic | None


@dataclass(eq=False)
class _Lattices:
    network: Network
    known: dict[int, _Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.starts = starts(self.network)

    def of(self, i: int) -> _Table:
        """The table of a node, by its own values where it is made otherwise."""
        if i not in self.known:
            self.known[i] = self._made(i, self.network.nodes[i]) or self._own(i)
        return self.known[i]

    def _own(self, i: int) -> _Table:
        atoms = torch.arange(self.starts[i], self.starts[i + 1])[:, None]
        return _Table(atoms, torch.tensor([[False, True]]).expand(len(atoms), 2))

    def _made(self, i: int, node: Node) -> _Table | None:
        if not node.inputs or self.starts[i + 1] - self.starts[i] > _LARGEST:
            return None
        before = [self.of(j) for j in node.inputs]
        shape = self.network.nodes[node.inputs[0]].shape
        places = torch.arange(math.prod(shape)).reshape(shape)
        match node.kind:
            case Select():
                found: _Table | None = before[0].rows(node.kind.index)
            case Sum():
                found = _beside(before)
            case MaxMin() if not node.kind.spelling:
                *halves, rest = (part.flatten() for part in node.kind.parts(places, node.kind.axis))
                both = _sorted([before[0].rows(part) for part in halves])
                order = torch.cat([*halves, rest]).argsort()
                every = [*both, before[0].rows(rest)] if both else []
                found = _stacked(every).rows(order) if both else None
            case GroupMax() if shape[-1] <= _MOST:
                parts = places.reshape(-1, shape[-1]).unbind(1)
                both = _sorted([before[0].rows(part) for part in parts])
                found = both[0] if both else None
            case GroupSort() if shape[-1] <= _MOST:
                parts = places.reshape(-1, shape[-1]).unbind(1)
                both = _sorted([before[0].rows(part) for part in parts])
                order = torch.arange(math.prod(shape)).reshape(shape[-1], -1).T.reshape(-1)
                found = _stacked(both).rows(order) if both else None
            case _:
                return None
        if found is None:
            return None
        compares = not isinstance(node.kind, Select | Sum)
        compared = found.compared | ({i} if compares else set())
        return replace(found, compared=compared, formats=found.formats | {node.format})


def _beside(parts: list[_Table]) -> _Table | None:
    """A sum of which each value has one part."""
    present = torch.stack([part.live[:, 0] for part in parts])
    if not bool((present.sum(0) == 1).all()):
        return None
    parts = _widened(parts)
    which, rows = present.long().argmax(0), torch.arange(present.shape[1])
    return _Table(
        torch.stack([part.atoms for part in parts])[which, rows],
        torch.stack([part.table for part in parts])[which, rows],
        *_ways(parts),
    )


def _sorted(parts: list[_Table]) -> list[_Table] | None:
    """The largest of these, the second, and so on."""
    atoms = torch.cat([part.atoms for part in parts], 1).sort(1).values
    again = torch.cat([torch.zeros_like(atoms[:, :1]) > 0, atoms[:, 1:] == atoms[:, :-1]], 1)
    atoms = torch.where(again, _NONE, atoms).sort(1).values
    atoms = atoms[:, : max(1, int((atoms != _NONE).sum(1).amax()))]
    if atoms.shape[1] > _MOST or len(atoms) * 2 ** atoms.shape[1] > _TABLES:
        return None
    if not all(bool(part.live[:, 0].all()) for part in parts):
        return None
    many = torch.stack([part.over(atoms) for part in parts]).sum(0)
    return [_Table(atoms, many >= rank, *_ways(parts)) for rank in range(1, len(parts) + 1)]


def _stacked(parts: list[_Table]) -> _Table:
    parts = _widened(parts)
    atoms, table = (torch.cat([getattr(p, name) for p in parts]) for name in ("atoms", "table"))
    return _Table(atoms, table, *_ways(parts))


def _widened(parts: list[_Table]) -> list[_Table]:
    """With as many values each."""
    most = max(part.atoms.shape[1] for part in parts)
    wide = []
    for part in parts:
        more = part.atoms.new_full((len(part.atoms), most - part.atoms.shape[1]), _NONE)
        atoms = torch.cat([part.atoms, more], 1)
        wide.append(replace(part, atoms=atoms, table=part.over(atoms)))
    return wide


def _ways(parts: list[_Table]) -> tuple[frozenset[int], frozenset[Arithmetic | None]]:
    return (
        frozenset().union(*(part.compared for part in parts)),
        frozenset().union(*(part.formats for part in parts)),
    )


def _ordered(found: _Table) -> _Order | None:
    """None unless every value is an order statistic, and several comparisons make them."""
    live = found.live
    # Beside groups of another size, or values alone, their ways would be branches.
    if bool((live.sum(1) != live[0].sum()).any()):
        return None
    if len(found.compared) < 2 or len(found.formats) != 1 or not bool(live[:, 0].all()):
        return None
    choices = torch.arange(found.table.shape[1])
    ones = sum(((choices >> k) & 1)[None] * live[:, k : k + 1].long() for k in range(live.shape[1]))
    assert isinstance(ones, Tensor)
    rank = torch.where(found.table, ones, _NONE).amin(1)
    if not bool((found.table == (ones >= rank[:, None])).all()):
        return None
    return _Order(found.atoms, rank, next(iter(found.formats)))


class _Making(Rebuilding[_Order]):
    """Puts order statistics into the network that is built, one comparison for the same groups."""

    def __init__(self, network: Network, known: dict[int, _Order]) -> None:
        super().__init__(network, known)
        self.shared: dict[tuple[bytes, bool], int] = {}

    def made(self, i: int, known: _Order) -> int:
        node = self.network.nodes[i]
        self.builder.format = known.format
        shape = tuple(node.shape)
        size = int((known.atoms[0] != _NONE).sum())
        groups, which = torch.unique(known.atoms[:, :size], dim=0, return_inverse=True)
        largest = bool((known.rank == 1).all())
        index = which if largest else which * size + known.rank - 1
        return self.select(self._sorts(groups, largest, node.origin), index, shape, node.origin)

    def _sorts(self, groups: Tensor, largest: bool, origin: str) -> int:
        name = groups.numpy().tobytes(), largest
        if name not in self.shared:
            shape = tuple(groups.shape)
            before = self.builder.sum(self.gathered(groups.flatten(), shape, origin), origin)
            kind = GroupMax() if largest else GroupSort()
            self.shared[name] = self.builder.activation(kind, before, origin)
        return self.shared[name]
