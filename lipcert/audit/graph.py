"""A file's network behind its preprocessing: affine steps as linear maps, and bent functions.

Value 0 is the flat pixels, value ``k + 1`` the result of ``steps[k]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import torch
from torch import Tensor

from lipcert.audit.affine import AFFINE, varying_inputs
from lipcert.audit.deployed import Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.linear import Linear, Sparse, maps_of
from lipcert.audit.matrix import Matrix
from lipcert.audit.operators import NotRead
from lipcert.audit.proofs.bends import Function, function_of


@dataclass(frozen=True, eq=False)
class Affine:
    """``Σ A_i v_i + bias``, over ``inputs``; ``size`` bounds what ``bias`` is the sum of."""

    inputs: tuple[int, ...]
    maps: tuple[Linear, ...]
    bias: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False)
class Bend:
    """``σ`` of value ``input``, which the ``operator`` of the file is."""

    input: int
    function: Function
    operator: str


class Graph:
    """The network of a file behind its preprocessing. Raises ``NotRead``."""

    def __init__(self, reading: Interpreter, front: Preprocessing) -> None:
        n, self.widths = len(front.order), [front.pixels]
        self.steps: list[Affine | Bend] = []
        shape = (n, front.pixels)
        first = Sparse.of(Matrix.of(np.arange(n), np.array(front.order), front.scale, shape))
        shift, size = (torch.from_numpy(np.array(each)) for each in (front.shift, front.size))
        self._place = {reading.input: self._affine((0,), (first,), shift, size)}
        for node in reading.nodes:
            self._add(node, reading)
        self.output = self._place[reading.output]

    def _affine(
        self, inputs: tuple[int, ...], maps: tuple[Linear, ...], bias: Tensor, size: Tensor
    ) -> int:
        """The value that a step makes: its input where it does nothing."""
        if len(maps) == 1 and _is_identity(maps[0]) and not bool(bias.any()):
            return inputs[0]
        return self._append(Affine(inputs, maps, bias, size), maps[0].outputs)

    def _append(self, step: Affine | Bend, width: int) -> int:
        self.steps.append(step)
        self.widths.append(width)
        return len(self.steps)

    def _add(self, node: onnx.NodeProto, reading: Interpreter) -> None:
        values = [reading.constants.get(name) for name in node.input]
        function = function_of(node, values, reading.shapes[node.output[0]])
        if function is not None:
            source = self._place[node.input[0]]
            self._place[node.output[0]] = self._append(
                Bend(source, function, node.op_type), self.widths[source]
            )
            return
        if node.op_type not in AFFINE:
            raise NotRead(f"{node.op_type} in a proof")
        varying = varying_inputs(node, self._place)
        for which, name in enumerate(node.output):
            maps, bias = maps_of(node, which, varying, reading)
            sources = tuple(self._place[v] for v in varying)
            self._place[name] = self._affine(sources, maps, bias, bias.abs())

    @cached_property
    def bends(self) -> list[int]:
        """The values that bent functions make, in order."""
        return [k + 1 for k, step in enumerate(self.steps) if isinstance(step, Bend)]

    def bend(self, value: int) -> Bend:
        step = self.steps[value - 1]
        assert isinstance(step, Bend)
        return step

    def affine(self, value: int) -> Affine:
        step = self.steps[value - 1]
        assert isinstance(step, Affine)
        return step


def _is_identity(linear: Linear) -> bool:
    if not isinstance(linear, Sparse) or linear.inputs != linear.outputs:
        return False
    same = linear.matrix.columns == linear.matrix.rows
    return linear.matrix.selects and bool(same.all())
