"""The order of a machine's sums, found by running it (after FPRev: Xie, Gao, Wang and Xue, USENIX
ATC 2025).

Let one term be ``M``, another one ``−M``, so large that whatever is added to either is lost, and
all others 1. Along a tree of additions the terms that come together with ``M`` or ``−M`` before
these two meet are lost; what comes after counts. So the result is ``n`` less the leaves below the
node where the two meet. With one term ``p`` fixed and the other going through all of a subtree,
these numbers say which terms join the way from ``p`` to the subtree's top at which addition; those
that join together are a subtree of their own, found in the same way. That determines the tree of
every output, whatever it is, and what fits no tree of additions of two values is refused: adders
of several values at once, compensated sums, transforms.

All outputs of one run are looked at side by side, each by itself. What is assumed is that the order
does not depend on the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert.numbers.summation import ADD, SumOrder, SumTree

Array = NDArray[Any]
# ``values (n,)`` to ``(m,)``: every output is the sum of the ``n`` values, but for those that are
# not ``valid`` there.
Sums = Callable[[Array], Array]

_MASK = 2.0**100
# Outputs may be summed along so many trees; where terms are left out they do not count anew.
_MOST_TREES, _MOST_CLASSES = 4, 64


class NoOrder(Exception):
    """Why it was not looked for, or not found: sums can still be taken to be in any order."""


class NoSum(Exception):
    """What a machine does is no tree of rounded additions of two values: in no order."""


@dataclass
class Probes:
    """Runs of the machine; ``most`` of them are made."""

    sums: Sums
    valid: Array
    most: int
    made: int = 0

    def below(self, pivot: int, others: Sequence[int]) -> Array:
        """``(len(others), m)``: how many terms are below the node where each of the ``others``
        meets ``pivot``, 0 at outputs that do not have both. Raises ``NoOrder`` and ``NoSum``."""
        return np.stack([self._below(pivot, other) for other in others])

    def _below(self, one: int, other: int) -> Array:
        self.made += 1
        if self.made > self.most:
            raise NoOrder(f"finding it would take more than {self.most} runs")
        values = np.ones(len(self.valid), np.float32)
        values[one], values[other] = _MASK, -_MASK
        found, count = self.sums(values).astype(np.float64), self.valid.sum(0)
        first, second = self.valid[one], self.valid[other]
        alone = np.where(first, _MASK, np.where(second, -_MASK, count))
        both = first & second
        whole = np.where(both, found, 0.0)
        proper = (whole >= 0) & (whole <= count - 2) & (whole == np.floor(whole))
        if not (np.where(both, proper, found == alone)).all():
            raise NoSum("its results are not those of a tree of additions")
        return np.where(both, count - whole, 0).astype(np.int32)


def sum_order(
    sums: Sums, valid: Array, *, most: int = 2**31, bias: bool = False
) -> tuple[SumOrder, int]:
    """The order of the sums of all outputs, and how many runs it took.

    ``valid`` ``(n, m)``: which terms each output has; at least one of them has all. ``bias``: the
    last term is one. Raises ``NoOrder`` and ``NoSum``.
    """
    probes = Probes(sums, valid.astype(bool), most)
    _, label = np.unique(probes.valid, axis=1, return_inverse=True)
    label = label.reshape(-1)
    while True:
        classes = [np.flatnonzero(label == c) for c in range(label.max() + 1)]
        if len(classes) > _MOST_CLASSES:
            raise NoOrder(f"outputs have more than {_MOST_CLASSES} orders")
        search = _Search(probes, classes)
        # No run is made where there would be too many.
        if search.least > most:
            raise NoOrder(f"finding it would take more than {most} runs")
        split = search.run()
        if split is None:
            return _together(search, bias), probes.made
        _, label = np.unique(np.stack([label, split]), axis=1, return_inverse=True)
        label = label.reshape(-1)


@dataclass
class _Search:
    """The trees of classes of outputs that have the same terms, and so far answered alike.

    ``joins``: by class and first term of a subtree, the first terms of the subtrees that join the
    way from that term to the top, in order.
    """

    probes: Probes
    classes: list[Array]
    joins: list[dict[int, list[int]]] = field(default_factory=list)

    @property
    def least(self) -> int:
        """How many runs it takes at least: one for every term that an output's first one meets."""
        met: dict[int, Array] = {}
        for outputs in self.classes:
            terms = self.probes.valid[:, outputs[0]]
            pivot = int(terms.argmax())
            met[pivot] = met.get(pivot, False) | terms
        return sum(int(terms.sum()) - 1 for terms in met.values())

    def run(self) -> Array | None:
        """Finds all trees; or, where outputs of one class differ, what tells them apart, ``(m,)``.

        Subtrees are taken by their first terms, in order, so that one pivot serves all classes.
        """
        valid = self.probes.valid
        self.joins = [{} for _ in self.classes]
        waiting: dict[int, list[tuple[int, Array]]] = {}
        for c, outputs in enumerate(self.classes):
            terms = np.flatnonzero(valid[:, outputs[0]])
            waiting.setdefault(int(terms[0]), []).append((c, terms))
        while waiting:
            pivot = min(waiting)
            items = waiting.pop(pivot)
            others = np.unique(np.concatenate([terms[1:] for _, terms in items]))
            if not len(others):
                self._alone(pivot, items)
                continue
            below = self.probes.below(pivot, others.tolist())
            for c, terms in items:
                rows = below[np.searchsorted(others, terms[1:])][:, self.classes[c]]
                if len(rows) and (rows != rows[:, :1]).any():
                    return self._told_apart(c, rows)
                groups = _groups(terms, rows[:, 0] if len(rows) else rows)
                self.joins[c][pivot] = [int(group[0]) for group in groups]
                for group in groups:
                    waiting.setdefault(int(group[0]), []).append((c, group))
        return None

    def _alone(self, pivot: int, items: list[tuple[int, Array]]) -> None:
        for c, _ in items:
            self.joins[c][pivot] = []

    def _told_apart(self, c: int, rows: Array) -> Array:
        _, kinds = np.unique(rows, axis=1, return_inverse=True)
        told = np.zeros(self.probes.valid.shape[1], np.int64)
        told[self.classes[c]] = kinds.reshape(-1)
        return told

    def program(self, c: int) -> tuple[int, ...]:
        joins, found = self.joins[c], list[int]()
        first = int(np.flatnonzero(self.probes.valid[:, self.classes[c][0]])[0])
        todo: list[tuple[bool, int]] = [(True, first)]
        while todo:
            subtree, step = todo.pop()
            found.append(step)
            if subtree:
                for join in reversed(joins[step]):
                    todo += [(False, ADD), (True, join)]
        return tuple(found)


def _groups(terms: Array, below: Array) -> list[Array]:
    """The subtrees that join the way from ``terms[0]`` to the top of the subtree of all ``terms``,
    in order; ``below``: at how many leaves each of the others meets it. Raises ``NoSum``."""
    groups, size = [], 1
    for leaves in np.unique(below):
        group = terms[1:][below == leaves]
        size += len(group)
        if size != leaves:
            raise NoSum("more than two values are added at once, or it is no sum")
        groups.append(group)
    return groups


def _together(search: _Search, bias: bool) -> SumOrder:
    """The trees of outputs that have all terms; others must be parts of these. Raises
    ``NoOrder``."""
    valid = search.probes.valid
    kept = [valid[:, outputs[0]] for outputs in search.classes]
    programs = [search.program(c) for c in range(len(kept))]
    trees = tuple({SumTree(p): None for p, all_ in zip(programs, kept, strict=True) if all_.all()})
    if not trees:
        raise NoOrder("no output has all terms")
    if len(trees) > _MOST_TREES:
        raise NoOrder(f"outputs have more than {_MOST_TREES} orders")
    for program, some in zip(programs, kept, strict=True):
        if not some.all() and all(tree.within(some.tolist()) != program for tree in trees):
            raise NoOrder("outputs at the edge are summed in an order of their own")
    return SumOrder(trees, bias)
