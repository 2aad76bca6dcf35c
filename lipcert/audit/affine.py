"""The matrices of affine nodes, found by running them.

Unit vectors pulled back through a node give the rows of its matrix, a zero its bias, so that the
coefficients are exactly those of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipcert.audit.interpreter import Interpreter, Value
from lipcert.audit.matrix import Matrix
from lipcert.audit.operators import NotRead, run

Array = NDArray[Any]

# Above this, pulling unit vectors through a node takes longer than the bound is worth.
MOST_ENTRIES = 2**27
_AT_ONCE = 256
_ADDING = ("Add", "Sub", "Sum")
SUMS = (*_ADDING, "Concat")
# What makes each of its results from one number of an input.
PLACING = frozenset((
    *SUMS, "Cast", "Div", "Dropout", "Flatten", "Gather", "Identity", "Mul", "Neg", "Pad",
    "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
))  # fmt: skip
AFFINE = PLACING | {
    "AveragePool", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "ReduceMean", "ReduceSum",
}  # fmt: skip


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

    def result(values: dict[str, Tensor], *, bare: bool = False) -> Tensor:
        inputs: list[Value | None] = [
            values[n] if n in values else reading.constants.get(n) for n in node.input
        ]
        if bare:
            found = zip(node.input, inputs, strict=True)
            inputs = [x if n in values else torch.zeros_like(torch.as_tensor(x)) for n, x in found]
        return run(node, inputs)[which].reshape(-1)

    if node.op_type in PLACING:
        return _placed(node, result, zeros)
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


def _placed(
    node: onnx.NodeProto, result: Callable[..., Tensor], zeros: dict[str, Tensor]
) -> tuple[list[Matrix], Array]:
    """Of a node each of whose results depends on one number of an input at most: what it makes of
    ones are the factors, and what it makes of 1, 2, 3, … then tells the places."""
    # A constant that is added would round what it is added to, and one that is put in is the same.
    bare = node.op_type in _ADDING
    bias, matrices = result(zeros), []
    rest = torch.zeros_like(bias) if bare else bias
    for name, zero in zeros.items():

        def of(numbers: Tensor, name: str = name) -> Array:
            return np.asarray(result(zeros | {name: numbers}, bare=bare) - rest)

        entries = of(torch.ones_like(zero))
        rows = entries.nonzero()[0]
        codes = of(torch.arange(1.0, zero.numel() + 1, dtype=zero.dtype).reshape(zero.shape))
        columns = np.rint(codes[rows] / entries[rows]) - 1
        if not ((columns >= 0) & (columns < zero.numel())).all():
            raise NotRead(f"a {node.op_type} by numbers that are not finite")
        shape = (len(bias), zero.numel())
        matrices.append(Matrix.of(rows, columns.astype(np.int64), entries[rows], shape))
    return matrices, bias.numpy()
