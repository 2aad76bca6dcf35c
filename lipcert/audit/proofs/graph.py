"""What lies between the bent functions of a network: segments, carried through forth and back.

Pixels and the results of bent functions are sources; what bent functions read, and the logits, are
sinks. Between them all is affine: ``Segments`` carries vectors from the sources to a sink and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lipcert.audit import graph
from lipcert.audit.deployed import Preprocessing
from lipcert.audit.graph import Affine
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.linear import Part
from lipcert.audit.operators import NotRead

# With products of weights up to this, what underflows in float64 costs a norm no more than
# ``norms.UNDERFLOW``, and a margin far less.
STEEPEST = 2.0**200


def add(to: dict[int, Tensor], value: int, row: Tensor) -> None:
    """A row more for a value."""
    to[value] = to[value] + row if value in to else row


class Graph(graph.Graph):
    """A network with its segments. Raises ``NotRead``."""

    def __init__(self, reading: Interpreter, front: Preprocessing) -> None:
        super().__init__(reading, front)
        if not math.prod(segments.swell for segments in self.segments.values()) <= STEEPEST:
            raise NotRead("weights so large that numbers could underflow unseen")

    @cached_property
    def segments(self) -> dict[int, Segments]:
        """By sink."""
        sinks = dict.fromkeys([*(self.bend(k).input for k in self.bends), self.output])
        return {sink: Segments.of(self, sink) for sink in sinks}

    def before(self, value: int) -> Segments:
        """Those that lead to the input of the function at ``value``."""
        return self.segments[self.bend(value).input]

    @cached_property
    def chains(self) -> dict[int, tuple[int, ...]]:
        """For each function those that it depends on, in order."""
        found: dict[int, tuple[int, ...]] = {}
        for value in self.bends:
            direct = [s for s in self.before(value).sources if s in found]
            found[value] = tuple(sorted({*direct, *(b for s in direct for b in found[s])}))
        return found


@dataclass(frozen=True, eq=False)
class Segments:
    """All that is affine between some ``sources`` and a sink. ``path``: the values on the way.

    ``terms``: more roundings than any way through has, in one direction; ``sums``: of those what
    sums have forth; ``once``: no number is a sum of sums; ``single``: each source has one way to
    the sink, on which at most one step mixes numbers.
    """

    graph: Graph
    sink: int
    path: tuple[int, ...]
    sources: tuple[int, ...]
    terms: int
    sums: int
    once: bool
    single: bool

    @classmethod
    def of(cls, graph: Graph, sink: int) -> Segments:
        # From the sink down: how many ways lead there, and how many steps mix on the worst.
        count, mixed = {sink: 1}, {sink: 0}
        path, terms, sums = [], 16, 16
        for value in range(sink, 0, -1):
            step = graph.steps[value - 1]
            if value not in count or not isinstance(step, Affine):
                continue
            path.append(value)
            ways, mixes = count.pop(value), mixed.pop(value)
            for source, linear in zip(step.inputs, step.maps, strict=True):
                terms += linear.terms + 4
                sums += linear.terms + 1
                count[source] = count.get(source, 0) + ways
                mixed[source] = max(mixed.get(source, 0), mixes + linear.mixes)
        once = max(mixed.values()) <= 1
        single = once and max(count.values()) == 1
        return cls(
            graph, sink, tuple(reversed(path)), tuple(sorted(count)), terms, sums, once, single
        )

    def along(
        self, values: Mapping[int, Tensor], part: Part = "entries", *, biases: bool = False
    ) -> dict[int, Tensor]:
        """From vectors at some sources, others 0, every value on the way to the sink."""
        known = dict(values)
        for value in self.path:
            step = self.graph.affine(value)
            pairs = zip(step.inputs, step.maps, strict=True)
            terms = [linear.forth(known[i], part) for i, linear in pairs if i in known]
            if biases:
                terms.append((step.bias if part == "entries" else step.size)[None])
            if terms:
                known[value] = sum(terms[1:], terms[0])
        return known

    def forth(self, values: Mapping[int, Tensor], part: Part = "entries") -> Tensor:
        """What arrives at the sink, without biases."""
        return self.along(values, part)[self.sink]

    def back(self, rows: Tensor, part: Part = "entries") -> dict[int, Tensor]:
        """From coefficients at the sink to those of the sources."""
        pending = {self.sink: rows}
        for value in reversed(self.path):
            row, step = pending.pop(value), self.graph.affine(value)
            for i, linear in zip(step.inputs, step.maps, strict=True):
                add(pending, i, linear.back(row, part))
        return pending

    @cached_property
    def swell(self) -> float:
        """More than values on the way are multiplied with until the sink, and than any weight, also
        where some are merged or come later: the product of the largest sums of rows, at least 2."""
        found = 2.0
        for value in self.path:
            maps = self.graph.affine(value).maps
            ones = [torch.ones(1, linear.inputs, dtype=torch.float64) for linear in maps]
            sums = [a.forth(one, "magnitudes").amax() for a, one in zip(maps, ones, strict=True)]
            found *= max(1.0, float(sum(sums)))
        return found
