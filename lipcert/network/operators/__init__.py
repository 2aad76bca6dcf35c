"""The affine operators: one family a file, one list of them all."""

from lipcert.network.operators.base import Operator, Shape
from lipcert.network.operators.convolution import Convolution
from lipcert.network.operators.dense import Dense
from lipcert.network.operators.diagonal import Diagonal
from lipcert.network.operators.select import Select
from lipcert.network.operators.transposed import TransposedConvolution

OPERATORS: tuple[type[Operator], ...] = (
    Dense, Convolution, TransposedConvolution, Diagonal, Select,
)  # fmt: skip

__all__ = [
    "OPERATORS", "Convolution", "Dense", "Diagonal", "Operator", "Select", "Shape",
    "TransposedConvolution",
]  # fmt: skip
