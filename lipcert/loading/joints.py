"""What is neither affine nor element-wise: rules for nodes that no other rule takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from lipcert.loading.assembler import Variable
from lipcert.loading.attention import ATTENTION, masked_softmax
from lipcert.loading.masks import Masked
from lipcert.loading.normalising import NORMALISATIONS
from lipcert.loading.products import PRODUCTS
from lipcert.loading.value import Call, Value, varies

_NOTE = "enclosed by its derivative and a remainder"
_JOINTS = PRODUCTS | NORMALISATIONS | ATTENTION
# Which of their inputs have to depend on the network's input: with a constant it is no joint.
_VALUES: dict[str, tuple[int, ...]] = {
    "Div": (1,), "Einsum": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1), "Mul": (0, 1),
}  # fmt: skip


def joint_rule(
    node: onnx.NodeProto, inputs: Sequence[Value | None]
) -> Callable[[Call], Variable] | None:
    """The rule of a node as a joint of these inputs, None where there is none."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _JOINTS:
        return None
    masks = [value for value in inputs if isinstance(value, Masked)]
    if masks:
        return _noted(lambda call: masked_softmax(call, masks[0]))
    wanted = _VALUES.get(node.op_type, (0,))
    if any(place >= len(inputs) or not varies(inputs[place]) for place in wanted):
        return None
    return _noted(_JOINTS[node.op_type])


def _noted(rule: Callable[[Call], Variable]) -> Callable[[Call], Variable]:
    def noted(call: Call) -> Variable:
        result = rule(call)
        call.notes.append(_NOTE)
        return result

    return noted
