"""A file's network for proofs: affine steps as maps, bent functions, and what lies between them.

Value 0 is the flat pixels, value ``k + 1`` the result of ``steps[k]``. Pixels and the results of
bent functions are sources; what bent functions read, and the logits, are sinks. Between them all is
affine: ``Segments`` carries vectors from the sources to a sink and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import torch
from torch import Tensor

from lipcert.audit.deployed import Preprocessing
from lipcert.audit.interpreter import Interpreter, Value
from lipcert.audit.matrix import Matrix
from lipcert.audit.operators import Attributes, NotRead, attributes_of, run
from lipcert.audit.program import AFFINE, Bent, bent_function, pulled, varying_inputs
from lipcert.audit.proofs.bends import Function, Piecewise, smooth_function
from lipcert.audit.proofs.linear import Convolution, Dense, Linear, Part, Sparse

# With products of weights up to this, what underflows in float64 costs a norm no more than
# ``norms.UNDERFLOW``, and a margin far less.
STEEPEST = 2.0**200
_MOVES = frozenset((
    "Cast", "Dropout", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Affine:
    """``Σ A_i v_i + bias``, over ``inputs``; ``size`` bounds what ``bias`` is the sum of."""

    inputs: tuple[int, ...]
    maps: tuple[Linear, ...]
    bias: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False)
class Bend:
    """``σ`` of value ``input``."""

    input: int
    function: Function


class Graph:
    """The network of a file behind its preprocessing. Raises ``NotRead``, for a Cast to a narrower
    type than is ``deployed`` too."""

    def __init__(self, reading: Interpreter, front: Preprocessing, deployed: str) -> None:
        if deployed == "float64" and any(
            node.op_type == "Cast" and attributes_of(node)["to"] != onnx.TensorProto.DOUBLE
            for node in reading.nodes
        ):
            raise NotRead("a Cast that rounds to float32")
        n = len(front.order)
        self.widths = [n]
        self.steps: list[Affine | Bend] = []
        self._place = {reading.input: 0}
        order = np.asarray(front.order)
        scale, shift, size = (
            np.array(np.broadcast_to(each, n))[order]
            for each in (front.scale, front.shift, front.size)
        )
        first = Sparse.of(Matrix.of(np.arange(n), order, scale, (n, n)))
        value = 0
        if not _is_identity(first) or shift.any():
            value = self._append((0,), (first,), torch.from_numpy(shift), torch.from_numpy(size))
        self._place[reading.input] = value
        for node in reading.nodes:
            self._add(node, reading)
        self.output = self._place[reading.output]
        steepness = math.prod(segments.steepness for segments in self.segments.values())
        if not steepness <= STEEPEST:
            raise NotRead("weights so large that numbers could underflow unseen")

    def _append(
        self, inputs: tuple[int, ...], maps: tuple[Linear, ...], bias: Tensor | None = None,
        size: Tensor | None = None,
    ) -> int:  # fmt: skip
        width = maps[0].outputs
        bias = torch.zeros(width, dtype=torch.float64) if bias is None else bias.contiguous()
        self.steps.append(Affine(inputs, maps, bias, bias.abs() if size is None else size))
        self.widths.append(width)
        return len(self.steps)

    def _add(self, node: onnx.NodeProto, reading: Interpreter) -> None:
        values: list[Value | None] = [reading.constants.get(name) for name in node.input]
        function = smooth_function(node.op_type, attributes_of(node))
        bent = bent_function(node, values, reading.shapes[node.output[0]])
        if bent is not None:
            function = Piecewise(Bent(0, *bent))
        if function is not None:
            source = self._place[node.input[0]]
            self.steps.append(Bend(source, function))
            self.widths.append(self.widths[source])
            self._place[node.output[0]] = len(self.steps)
            return
        if node.op_type not in AFFINE:
            raise NotRead(f"{node.op_type} in a proof")
        varying = varying_inputs(node, self._place)
        for which, name in enumerate(node.output):
            maps, bias = _maps_of(node, which, varying, reading)
            sources = tuple(self._place[v] for v in varying)
            if len(maps) == 1 and _is_identity(maps[0]) and not bool(bias.any()):
                self._place[name] = sources[0]
            else:
                self._place[name] = self._append(sources, maps, bias)

    @cached_property
    def bends(self) -> list[int]:
        """The values that bent functions make, in order."""
        return [k + 1 for k, step in enumerate(self.steps) if isinstance(step, Bend)]

    def bend(self, value: int) -> Bend:
        step = self.steps[value - 1]
        assert isinstance(step, Bend)
        return step

    @cached_property
    def segments(self) -> dict[int, Segments]:
        """By sink."""
        sinks = dict.fromkeys([*(self.bend(k).input for k in self.bends), self.output])
        return {sink: Segments.of(self, sink) for sink in sinks}


@dataclass(frozen=True, eq=False)
class Segments:
    """All that is affine between some ``sources`` and a sink. ``path``: the values on the way.

    ``terms``: more roundings than any way through has, in one direction; ``sums``: of those what
    sums have forth; ``once``: no number is a sum of sums; ``single``: the sources with one way to
    the sink, on which at most one step mixes numbers.
    """

    graph: Graph
    sink: int
    path: tuple[int, ...]
    sources: tuple[int, ...]
    terms: int
    sums: int
    once: bool
    single: frozenset[int]

    @classmethod
    def of(cls, graph: Graph, sink: int) -> Segments:
        needed, sources = {sink}, set[int]()
        path = []
        for value in range(sink, -1, -1):
            if value not in needed:
                continue
            step = graph.steps[value - 1] if value else None
            if not isinstance(step, Affine):
                sources.add(value)
                continue
            path.append(value)
            needed.update(step.inputs)
        # From the sink down: how many ways lead there, and how many steps mix on the worst.
        count, mixed = {sink: 1}, {sink: 0}
        terms = sums = 16
        for value in path:
            step = graph.steps[value - 1]
            assert isinstance(step, Affine)
            for source, linear in zip(step.inputs, step.maps, strict=True):
                terms += linear.terms + 4
                sums += linear.terms + 1
                count[source] = count.get(source, 0) + count[value]
                mixed[source] = max(mixed.get(source, 0), mixed[value] + linear.mixes)
        return cls(
            graph, sink, tuple(reversed(path)), tuple(sorted(sources)), terms, sums,
            all(mixed[s] <= 1 for s in sources),
            frozenset(s for s in sources if count[s] == 1 and mixed[s] <= 1),
        )  # fmt: skip

    def forth(self, values: Mapping[int, Tensor], part: Part = "entries") -> Tensor:
        """From vectors at some sources, others 0, to the sink, without biases."""
        known = dict(values)
        for value in self.path:
            step = self._step(value)
            pairs = [
                linear.forth(known[i], part)
                for i, linear in zip(step.inputs, step.maps, strict=True) if i in known
            ]  # fmt: skip
            if pairs:
                known[value] = sum(pairs[1:], pairs[0])
        return known[self.sink]

    def back(self, rows: Tensor, part: Part = "entries") -> dict[int, Tensor]:
        """From coefficients at the sink to those of the sources."""
        pending = {self.sink: rows}
        for value in reversed(self.path):
            row, step = pending.pop(value), self._step(value)
            for i, linear in zip(step.inputs, step.maps, strict=True):
                down = linear.back(row, part)
                pending[i] = pending[i] + down if i in pending else down
        return pending

    @cached_property
    def steepness(self) -> float:
        """More than what any value on the way is multiplied with on its way to the sink, than any
        weight, and at least 2."""
        total = 2.0
        pending = {self.sink: torch.ones(1, self.graph.widths[self.sink], dtype=torch.float64)}
        for value in reversed(self.path):
            row, step = pending.pop(value), self._step(value)
            for i, linear in zip(step.inputs, step.maps, strict=True):
                down = linear.back(row, "magnitudes")
                total = total + float(down.amax())
                pending[i] = pending[i] + down if i in pending else down
        return total

    @cached_property
    def offset(self) -> Tensor:
        """What the biases come to at the sink, ``(1, n)``."""
        return self._biases("entries")

    @cached_property
    def size(self) -> Tensor:
        """What their magnitudes come to."""
        return self._biases("magnitudes")

    def _biases(self, part: Part) -> Tensor:
        known: dict[int, Tensor] = {}
        for value in self.path:
            step = self._step(value)
            known[value] = (step.bias if part == "entries" else step.size)[None]
            for i, linear in zip(step.inputs, step.maps, strict=True):
                if i in known:
                    known[value] = known[value] + linear.forth(known[i], part)
        width = self.graph.widths[self.sink]
        return known.get(self.sink, torch.zeros(1, width, dtype=torch.float64))

    def _step(self, value: int) -> Affine:
        step = self.graph.steps[value - 1]
        assert isinstance(step, Affine)
        return step


def _is_identity(linear: Linear) -> bool:
    same = isinstance(linear, Sparse) and linear.inputs == linear.outputs and linear.matrix.selects
    return same and bool((linear.matrix.columns == np.arange(linear.outputs)).all())  # type: ignore[attr-defined]


def _maps_of(
    node: onnx.NodeProto, which: int, varying: Sequence[str], reading: Interpreter
) -> tuple[tuple[Linear, ...], Tensor]:
    """The maps of one output, for each varying input, and its bias."""
    shapes, made = reading.shapes, reading.shapes[node.output[which]]
    given = shapes[varying[0]]
    n, m = math.prod(given), math.prod(made)
    a, none = attributes_of(node), torch.zeros(m, dtype=torch.float64)
    constants = [reading.constants.get(one) for one in node.input]
    first, pair = node.input[0] == varying[0], len(node.input) == 2
    sign = -1.0 if node.op_type == "Sub" else 1.0
    if len(varying) == len(node.input) > 1 and node.op_type in ("Add", "Sub", "Sum"):
        if all(shapes[one] == made for one in varying):
            signs = [1.0] + [sign] * (len(varying) - 1)
            return tuple(Sparse.of(Matrix.diagonal(s * np.ones(m))) for s in signs), none
    elif len(varying) == 1:
        other = constants[1] if first and len(constants) > 1 else constants[0]
        if first and isinstance(other, Tensor):
            if node.op_type == "Conv" and given[0] == 1:
                found = _convolution(a, other, constants[2:], given, made)
                if found is not None:
                    return (found[0],), found[1]
            if node.op_type == "Gemm" and not a.get("transA"):
                weight = (other.T if a.get("transB") else other).to(none) * a.get("alpha", 1.0)
                if len(constants) > 2 and isinstance(constants[2], Tensor):
                    bias = constants[2].to(none) * a.get("beta", 1.0)
                    none = bias.expand(made).reshape(-1)
                return (Dense.of(n, m, weight),), none
            if node.op_type == "MatMul" and other.ndim == 2:
                return (Dense.of(n, m, other.to(none)),), none
        if n == m and pair and isinstance(other, Tensor):
            number = other.to(none).expand(made).reshape(-1)
            if node.op_type in ("Mul", "Div"):
                scale = number if node.op_type == "Mul" else 1 / number
                return (Sparse.of(Matrix.diagonal(scale.numpy())),), none
            if node.op_type in ("Add", "Sub"):
                # x − c has a bias of −c, and c − x a factor of −1.
                factor, number = (1.0, sign * number) if first else (sign, number)
                return (Sparse.of(Matrix.diagonal(factor * np.ones(m))),), number
        moved = _moved(node, which, varying[0], reading) if node.op_type in _MOVES else None
        if moved is not None:
            return (moved,), none
    matrices, bias = pulled(node, which, varying, reading)
    return tuple(Sparse.of(matrix) for matrix in matrices), torch.from_numpy(np.array(bias))


def _moved(node: onnx.NodeProto, which: int, source: str, reading: Interpreter) -> Linear | None:
    """Where a node only moves numbers, and fills in zeros."""
    given = reading.shapes[source]
    n = math.prod(given)

    def of(first: float) -> Tensor:
        numbers = (first * torch.arange(1, n + 1, dtype=torch.float64)).reshape(given)
        known = reading.constants
        inputs = [numbers if name == source else known.get(name) for name in node.input]
        return run(node, inputs)[which].reshape(-1)

    read = of(1.0)
    # A constant that is filled in would not be doubled.
    if not bool((of(2.0) == 2 * read).all()):
        return None
    rows = np.flatnonzero(read.numpy())
    columns = read.numpy()[rows].astype(np.int64) - 1
    return Sparse.of(Matrix.of(rows, columns, np.ones(len(rows)), (len(read), n)))


def _convolution(
    a: Attributes, weight: Tensor, rest: Sequence[Value | None], given: tuple[int, ...],
    made: tuple[int, ...],
) -> tuple[Linear, Tensor] | None:  # fmt: skip
    weight = weight.to(torch.float64)
    axes = weight.ndim - 2
    if axes not in (1, 2, 3) or a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pads = a.get("pads", [0] * 2 * axes)
    linear = Convolution.of(
        tuple(given[1:]), weight, a.get("strides", [1] * axes), a.get("dilations", [1] * axes),
        tuple((pads[k], pads[axes + k]) for k in range(axes)), a.get("group", 1),
    )  # fmt: skip
    bias = torch.zeros(made[1:], dtype=torch.float64)
    if rest and isinstance(rest[0], Tensor):
        bias = bias + rest[0].to(bias).reshape(-1, *(1,) * axes)
    return (linear, bias.reshape(-1)) if linear.outputs == bias.numel() else None
