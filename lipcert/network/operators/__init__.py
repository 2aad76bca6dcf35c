"""The affine operators: one family a file, one list of them all."""

from lipcert.network.operators.base import Operator, Shape
from lipcert.network.operators.convolution import Convolution
from lipcert.network.operators.dense import Dense
from lipcert.network.operators.diagonal import Diagonal
from lipcert.network.operators.select import Select

OPERATORS: tuple[type[Operator], ...] = (Dense, Convolution, Diagonal, Select)

__all__ = ["OPERATORS", "Convolution", "Dense", "Diagonal", "Operator", "Select", "Shape"]
