"""A file's network as sparse matrices and piecewise linear functions, one for every node.

Unit vectors pulled back through a node give the rows of its matrix, a zero its bias. No two nodes
are multiplied, so that the coefficients of a convolution or a Gemm are exactly those of the file;
only nodes that move values are merged into the next one, by renaming its columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.audit.deployed import Preprocessing
from lipcert.audit.interpreter import Interpreter, Value
from lipcert.audit.matrix import Matrix
from lipcert.audit.operators import NotRead, attributes_of, run

Array = NDArray[Any]

# Above this, pulling unit vectors through a node takes longer than the bound is worth.
MOST_ENTRIES = 2**27
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Affine:
    """``v = Σ M_i v_i + bias``; ``size`` bounds the numbers that ``bias`` is the sum of."""

    inputs: tuple[int, ...]
    matrices: tuple[Matrix, ...]
    bias: Array
    size: Array


@dataclass(frozen=True, eq=False)
class Bent:
    """An element-wise, continuous, piecewise linear function.

    ``slopes`` ``(p, n)`` or ``(p, 1)`` of its pieces, from left to right, between the ``kinks``
    ``(p − 1,)``; ``start`` is the value at the first kink.
    """

    input: int
    slopes: Array
    kinks: Array
    start: float

    @cached_property
    def steepest(self) -> Array:
        found: Array = np.abs(self.slopes).max(axis=0)
        return found

    def values(self, z: Array) -> Array:
        """The function of ``(…, n)``."""
        kinks, slopes = self.kinks, self.slopes
        result: Array = self.start + slopes[0] * np.minimum(z - kinks[0], 0)
        for k, kink in enumerate(kinks):
            reach = kinks[k + 1] - kink if k + 1 < len(kinks) else np.inf
            result = result + slopes[k + 1] * np.clip(z - kink, 0, reach)
        return result


Step = Affine | Bent


class Program:
    """The network as a function of flat pixels: value 0 is the pixels, value ``k + 1`` the result
    of ``steps[k]``, the last one the logits. Raises ``NotRead``."""

    def __init__(self, reading: Interpreter, preprocessing: Preprocessing) -> None:
        n = len(preprocessing.order)
        shape = (n, preprocessing.pixels)
        scale = Matrix.of(np.arange(n), preprocessing.order, preprocessing.scale, shape)
        front = Affine((0,), (scale,), preprocessing.shift, preprocessing.size)
        self.steps: list[Step] = [front]
        # Where a value of the file is, and which of those entries it has; None: all, in order.
        self._places: dict[str, tuple[int, Array | None]] = {reading.input: (1, None)}
        for node in reading.nodes:
            self._add(node, reading)
        self.output = self._whole(reading.output)

    def _add(self, node: onnx.NodeProto, reading: Interpreter) -> None:
        values = [reading.constants.get(name) for name in node.input]
        bent = bent_function(node, values, reading.shapes[node.output[0]])
        if bent is not None:
            source = self._whole(node.input[0])
            self.steps.append(Bent(source, *bent))
            self._places[node.output[0]] = (len(self.steps), None)
            return
        if node.op_type not in AFFINE:
            raise NotRead(f"{node.op_type} in a bound")
        varying = varying_inputs(node, self._places)
        for which, name in enumerate(node.output):
            matrices, bias = pulled(node, which, varying, reading)
            self._append(name, varying, matrices, bias)

    def _append(
        self, name: str, varying: Sequence[str], matrices: Sequence[Matrix], bias: Array
    ) -> None:
        places, renamed = zip(
            *(self._renamed(v, m) for v, m in zip(varying, matrices, strict=True)), strict=True
        )
        if len(renamed) == 1 and renamed[0].selects and not bias.any():
            self._places[name] = (places[0], renamed[0].columns)
            return
        self.steps.append(Affine(places, renamed, bias, np.abs(bias)))
        self._places[name] = (len(self.steps), None)

    def _renamed(self, name: str, matrix: Matrix) -> tuple[int, Matrix]:
        place, chosen = self._places[name]
        if chosen is None:
            return place, matrix
        shape = (matrix.shape[0], self.width(place))
        return place, Matrix.of(matrix.rows, chosen[matrix.columns], matrix.entries, shape)

    def width(self, value: int) -> int:
        if value == 0:
            step = self.steps[0]
            assert isinstance(step, Affine)
            return step.matrices[0].shape[1]
        step = self.steps[value - 1]
        return len(step.bias) if isinstance(step, Affine) else self.width(step.input)

    def _whole(self, name: str) -> int:
        """The value itself, made where it is only a choice of another one's entries."""
        place, chosen = self._places[name]
        if chosen is None:
            return place
        n = len(chosen)
        ones = Matrix.of(np.arange(n), chosen, np.ones(n), (n, self.width(place)))
        self.steps.append(Affine((place,), (ones,), np.zeros(n), np.zeros(n)))
        self._places[name] = (len(self.steps), None)
        return len(self.steps)


SUMS = ("Add", "Sub", "Sum", "Concat")
AFFINE = frozenset((
    *SUMS, "AveragePool", "Cast", "Conv", "Div", "Dropout", "Flatten", "Gather", "Gemm",
    "GlobalAveragePool", "Identity", "MatMul", "Mul", "Neg", "Pad", "ReduceMean", "ReduceSum",
    "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
))  # fmt: skip


def varying_inputs(node: onnx.NodeProto, places: Mapping[str, object]) -> list[str]:
    """Which of a node's inputs depend on the network's. What multiplies two of them, a value by
    itself too, or divides by one, is not affine: raises ``NotRead``."""
    found = [name for name in node.input if name in places]
    if node.op_type not in SUMS and len(found) > 1:
        raise NotRead(f"{node.op_type} of two values in a bound")
    if node.op_type == "Div" and node.input[1] in places:
        raise NotRead("a Div by a value in a bound")
    return list(dict.fromkeys(found))


def pulled(
    node: onnx.NodeProto, which: int, varying: Sequence[str], reading: Interpreter
) -> tuple[list[Matrix], Array]:
    """The matrices of one output, one for each varying input, and its bias."""
    zeros = {name: torch.zeros(reading.shapes[name], dtype=torch.float64) for name in varying}

    def result(values: dict[str, Tensor]) -> Tensor:
        inputs: list[Value | None] = [
            values[n] if n in values else reading.constants.get(n) for n in node.input
        ]
        return run(node, inputs)[which].reshape(-1)

    bias, pull, *_ = torch.func.vjp(result, zeros)
    m, widths = len(bias), {name: zero.numel() for name, zero in zeros.items()}
    if m * sum(widths.values()) > MOST_ENTRIES:
        n = sum(widths.values())
        raise NotRead(f"a {node.op_type} from {n} to {m} values in a bound")
    found: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in varying}
    for first in range(0, m, _AT_ONCE):
        units = torch.zeros(min(_AT_ONCE, m - first), m, dtype=torch.float64)
        units[torch.arange(len(units)), first + torch.arange(len(units))] = 1
        images = torch.vmap(pull)(units)[0]
        for name, parts in found.items():
            image = images[name].reshape(len(units), -1).numpy()
            rows, columns = image.nonzero()
            parts.append((first + rows, columns, image[rows, columns]))
    matrices = []
    for name, parts in found.items():
        rows, columns, entries = (np.concatenate(part) for part in zip(*parts, strict=True))
        matrices.append(Matrix.of(rows, columns, entries, (m, widths[name])))
    return matrices, bias.detach().numpy()


def bent_function(
    node: onnx.NodeProto, values: Sequence[Value | None], shape: tuple[int, ...]
) -> tuple[Array, Array, float] | None:
    """Slopes, kinks and start of a piecewise linear node; None for any other node."""
    attributes = attributes_of(node)
    column = np.array([[0.0], [1.0]])
    origin = np.zeros(1)
    match node.op_type:
        case "Relu":
            return column, origin, 0.0
        case "LeakyRelu":
            return np.array([[attributes.get("alpha", 0.01)], [1.0]]), origin, 0.0
        case "PRelu":
            slope = np.broadcast_to(np.asarray(values[1]), shape).reshape(1, -1)
            return np.concatenate([slope, np.ones_like(slope)]), origin, 0.0
        case "Abs":
            return np.array([[-1.0], [1.0]]), origin, 0.0
        case "Clip":
            low, high = (attributes.late(n, values, k) for n, k in (("min", 1), ("max", 2)))
            ends = [float(end) for end in (low, high) if end is not None and math.isfinite(end)]
            if not ends or (len(ends) == 2 and ends[0] >= ends[1]):
                raise NotRead("a Clip without an interval in a bound")
            slopes = [0.0, 1.0, 0.0]
            if len(ends) == 1:
                slopes = slopes[:2] if high is None or not math.isfinite(high) else slopes[1:]
            return np.array(slopes)[:, None], np.array(ends), ends[0]
        case _:
            return None
