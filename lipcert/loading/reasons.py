"""Why an operator cannot be read where its inputs depend on the network's input."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

from lipcert.loading.affine import PRODUCT
from lipcert.loading.onnx_file import names_in
from lipcert.loading.value import place

_JUMPS = "jumps as its input moves, so that no bound of the change holds"
# Whose results are true or false: what chooses by them is the obstacle.
COMPARISONS = (
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not",
    "Or", "Xor",
)  # fmt: skip
CHOICE = (
    "chooses by a comparison of values that depend on the network's input, where it may jump, as "
    "Hardshrink and Threshold do; use an activation without a jump, such as ReLU or leaky ReLU"
)
_OTHER = "not supported for values that depend on the network's input"
_RECURRENT = "recurrent layers are not supported"
_NORMALISES = (
    "divides by what it finds in the input itself, which no bound here covers; batch norm has "
    "statistics of its own and can be certified"
)
_REASONS = {
    "LRN": f"local response normalisation {_NORMALISES}",
    "LpNormalization": f"a normalisation {_NORMALISES}",
    "MeanVarianceNormalization": f"a normalisation {_NORMALISES}",
    "Shrink": f"{_JUMPS}: the shrink functions are not supported; use ReLU or leaky ReLU",
    "ThresholdedRelu": f"{_JUMPS} at its threshold; use ReLU, or a Clip",
    **dict.fromkeys(("Ceil", "Floor", "Mod", "Round", "Sign"), _JUMPS),
    **dict.fromkeys(("DynamicQuantizeLinear", "QuantizeLinear"), f"it rounds: it {_JUMPS}"),
    **dict.fromkeys(("ArgMax", "ArgMin", "Hardmax", "NonZero", "OneHot"), f"it {_JUMPS}"),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _RECURRENT),
    **dict.fromkeys(("Loop", "Scan"), "loops are not supported; unroll them in the export"),
}
# What leads from a square to a divisor.
_ON_THE_WAY = (
    "Add", "AveragePool", "Conv", "GlobalAveragePool", "If", "Mul", "Pad", "Pow", "ReduceMean",
    "ReduceSum", "Reshape", "Sqrt", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip


def reason(kind: str) -> str:
    """Of an operator that no rule reads."""
    return _REASONS.get(kind, _OTHER)


def is_move(node: onnx.NodeProto) -> bool:
    """Whether it leaves what is true or false as it is."""
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
    moves = ("Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
    return node.op_type in moves or (node.op_type == "Cast" and to == TensorProto.BOOL)


def of_product(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> str:
    """Of a product of two values that vary: where it is a square that something is divided by, as
    torch writes local response normalisation, this says so."""
    if node.input[0] != node.input[1]:
        return PRODUCT
    reached = set(node.output)
    for other in nodes:
        if other.op_type == "Div" and len(other.input) > 1 and other.input[1] in reached:
            return (
                f"a square, by which {place(other)} divides: a normalisation such as local "
                f"response normalisation (LRN) {_NORMALISES}"
            )
        if other.op_type in _ON_THE_WAY and reached.intersection(names_in(other)):
            reached.update(other.output)
    return PRODUCT
