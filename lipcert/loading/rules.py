"""What the reader makes of each operator: one table, of the tables of the operators' families."""

from __future__ import annotations

from collections.abc import Callable

from lipcert.loading.activations import ACTIVATIONS, left_out
from lipcert.loading.affine import AFFINE
from lipcert.loading.arithmetic import ARITHMETIC
from lipcert.loading.assembler import Variable
from lipcert.loading.einsum import EINSUM
from lipcert.loading.moves import MOVES
from lipcert.loading.pooling import POOLING
from lipcert.loading.resize import RESIZE
from lipcert.loading.value import Array, Call, Value

Rule = Callable[[Call], Variable | Array | list[Variable] | list[Value]]

RULES: dict[str, Rule] = {
    **MOVES, **AFFINE, **ARITHMETIC, **EINSUM, **POOLING, **RESIZE, **ACTIVATIONS,
}  # fmt: skip
FINAL_RULES: dict[str, Rule] = dict.fromkeys(("LogSoftmax", "Sigmoid", "Softmax"), left_out)

SHAPES = ("Shape", "Size")
SOFTMAX = ("LogSoftmax", "Softmax")
RESHAPES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
