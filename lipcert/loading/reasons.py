"""Why an operator cannot be read where its inputs depend on the network's input."""

from __future__ import annotations

import onnx
from onnx import TensorProto

JUMPS = "jumps as its input moves, so that no bound of the change holds"
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
_QUANTISED = (
    f"it rounds to whole numbers: it {JUMPS}; certify the model of real numbers that the file was "
    "quantised from, which says nothing of this one"
)
_RECURRENT = "recurrent layers are not supported"
_REASONS = {
    "MeanVarianceNormalization": "not supported; LayerNormalization and GroupNormalization are",
    **dict.fromkeys(("Ceil", "Floor", "Mod", "Round", "Sign"), JUMPS),
    **dict.fromkeys(
        (
            "ConvInteger",
            "DynamicQuantizeLinear",
            "MatMulInteger",
            "QLinearConv",
            "QLinearMatMul",
            "QuantizeLinear",
        ),
        _QUANTISED,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin", "Hardmax", "NonZero", "OneHot"), f"it {JUMPS}"),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _RECURRENT),
    **dict.fromkeys(("Loop", "Scan"), "loops are not supported; unroll them in the export"),
}


def reason(kind: str) -> str:
    """Of an operator that no rule reads."""
    return _REASONS.get(kind, _OTHER)


def is_move(node: onnx.NodeProto) -> bool:
    """Whether it leaves what is true or false as it is."""
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
    moves = ("Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
    return node.op_type in moves or (node.op_type == "Cast" and to == TensorProto.BOOL)
