"""A file that computes in float16, in float32.

Its weights are the same numbers, every one of which float32 holds; what was rounded to 16 bits on
the way no longer is. So its reading is checked to float32's accuracy, and it is trained so.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, numpy_helper

from lipcert.loading.onnx_file import graphs_of

# Attributes that name the type of a result.
_TYPES = ("dtype", "stash_type", "to")


def widened(model: onnx.ModelProto) -> bool:
    """Makes float32 of every float16 in a model without functions of its own, which is changed;
    whether there was any."""
    found = False
    for graph in graphs_of(model):
        for tensor in graph.initializer:
            found |= _wide(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.FLOAT16:
                kind.elem_type, found = TensorProto.FLOAT, True
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found |= _wide(attribute.t)
                if attribute.name in _TYPES and attribute.i == TensorProto.FLOAT16:
                    attribute.i, found = TensorProto.FLOAT, True
    return found


def _wide(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT16:
        return False
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
    )
    return True
