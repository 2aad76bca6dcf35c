"""A file's network as sparse matrices and piecewise linear functions, for numpy's longest type.

No two steps are multiplied, so that the coefficients of a convolution or a Gemm are exactly those
of the file; only steps that move values are merged into the next one, by renaming its columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcert.audit import graph
from lipcert.audit.bent import Bent
from lipcert.audit.deployed import Preprocessing
from lipcert.audit.graph import Graph
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.linear import Linear, Sparse
from lipcert.audit.matrix import Matrix
from lipcert.audit.operators import NotRead

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Affine:
    """``v = Σ M_i v_i + bias``; ``size`` bounds the numbers that ``bias`` is the sum of. ``maps``:
    the same in torch."""

    inputs: tuple[int, ...]
    matrices: tuple[Matrix, ...]
    maps: tuple[Linear, ...]
    bias: Array
    size: Array


@dataclass(frozen=True, eq=False)
class Bend:
    """``σ`` of value ``input``."""

    input: int
    function: Bent


Step = Affine | Bend


class Program:
    """The network as a function of flat pixels: value 0 is the pixels, value ``k + 1`` the result
    of ``steps[k]``, the last one the logits. Raises ``NotRead``."""

    def __init__(self, reading: Interpreter, preprocessing: Preprocessing) -> None:
        found = Graph(reading, preprocessing)
        self.steps: list[Step] = []
        self.widths = found.widths[:1]
        # Where a value of the graph is, and which of those entries it has; None: all, in order.
        self._places: list[tuple[int, Array | None]] = [(0, None)]
        for step in found.steps:
            self._places.append(self._placed(step))
        self.output = self._whole(found.output)

    def _placed(self, step: graph.Affine | graph.Bend) -> tuple[int, Array | None]:
        if isinstance(step, graph.Bend):
            bent = getattr(step.function, "bent", None)
            if not isinstance(bent, Bent):
                raise NotRead(f"{step.operator} in a bound")
            source = self._whole(step.input)
            return self._append(Bend(source, bent), self.widths[source]), None
        parts = [self._renamed(i, linear) for i, linear in zip(step.inputs, step.maps, strict=True)]
        places, matrices, maps = zip(*parts, strict=True)
        bias, size = step.bias.numpy(), step.size.numpy()
        if len(matrices) == 1 and matrices[0].selects and not bias.any():
            return places[0], matrices[0].columns
        return self._append(Affine(places, matrices, maps, bias, size), len(bias)), None

    def _append(self, step: Step, width: int) -> int:
        self.steps.append(step)
        self.widths.append(width)
        return len(self.steps)

    def _renamed(self, value: int, linear: Linear) -> tuple[int, Matrix, Linear]:
        (place, chosen), m = self._places[value], linear.matrix
        if chosen is None:
            return place, m, linear
        shape = (m.shape[0], self.widths[place])
        renamed = Matrix.of(m.rows, chosen[m.columns], m.entries, shape)
        return place, renamed, Sparse.of(renamed)

    def _whole(self, value: int) -> int:
        """The value itself, made where it is only a choice of another one's entries."""
        place, chosen = self._places[value]
        if chosen is None:
            return place
        n = len(chosen)
        ones = Matrix.of(np.arange(n), chosen, np.ones(n), (n, self.widths[place]))
        step = Affine((place,), (ones,), (Sparse.of(ones),), np.zeros(n), np.zeros(n))
        self._places[value] = (self._append(step, n), None)
        return len(self.steps)
