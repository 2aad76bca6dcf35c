"""What a file says of its input, its order and its branches, made definite before it is read.

Each change is the identity on what onnxruntime computes for the shapes that are certified: free
extents become those of the data; a fixed batch becomes a free one; an input of whole numbers
becomes one of real numbers; a branch whose condition is a constant takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipcert.errors import CannotCertify
from lipcert.loading.onnx_file import names_in
from lipcert.loading.runtime import Runtime

_SAME = 1e-5
# What moves whole numbers and does not compute with them.
_MOVES = (
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
WHOLE = (
    "takes whole numbers (uint8): certified for all real ones between them, which it is given "
    "as float32"
)


def _source(model: onnx.ModelProto) -> onnx.ValueInfoProto | None:
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    return inputs[0] if len(inputs) == 1 else None


def bound(
    model: onnx.ModelProto, shape: Sequence[int] | None, layout: str | None = None
) -> tuple[onnx.ModelProto, str | None]:
    """The model with free extents of its input, but the batch's, set to those of the data's
    ``shape``, ``(C, H, W)`` or ``(n,)``."""
    source = _source(model)
    if source is None or shape is None:
        return model, None
    dims = list(source.type.tensor_type.shape.dim)
    fixed = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in dims]
    if -1 not in fixed[1:]:
        return model, None
    for wanted in _candidates(tuple(shape), len(dims) - 1, layout):
        if all(own in (-1, new) for own, new in zip(fixed[1:], wanted, strict=True)):
            found = onnx.ModelProto()
            found.CopyFrom(model)
            given = _source(found)
            assert given is not None
            for dim, new in zip(given.type.tensor_type.shape.dim[1:], wanted, strict=True):
                dim.Clear()
                dim.dim_value = new
            del found.graph.value_info[:]
            told = f"free extents of the input {source.name!r} are those of the data"
            return found, f"{told}: {list(wanted)}"
    return model, None


def _candidates(shape: tuple[int, ...], axes: int, layout: str | None) -> list[tuple[int, ...]]:
    """The shapes of one sample that fit the data, the likeliest first."""
    found = [shape] if len(shape) == axes else []
    if len(shape) == 3 == axes:
        orders = ["CHW", "HWC"] if layout is None else [layout]
        found = [tuple(shape["CHW".index(axis)] for axis in order) for order in orders]
    if axes == 1:
        found = [(math.prod(shape),)]
    return found


def one_by_one(model: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, str | None]:
    """The model for any number of samples, where it is for a fixed number of several.

    A Reshape to that number becomes one to as many as there are. Raises ``CannotCertify`` where
    onnxruntime gives a sample something else in the original batch.
    """
    source = _source(model)
    dims = list(source.type.tensor_type.shape.dim) if source is not None else []
    count = dims[0].dim_value if dims and dims[0].HasField("dim_value") else 1
    kind = source.type.tensor_type.elem_type if source is not None else 0
    if source is None or count <= 1 or any(d.dim_value < 1 for d in dims):
        return model, None
    free = _freed(model, count)
    shape = [d.dim_value for d in dims]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    values = np.random.default_rng(0).random(shape)
    samples = (values if np.dtype(dtype).kind == "f" else 255 * values).astype(dtype)
    if not _alike_alone(model, free, samples, name):
        return model, None
    return free, f"takes {count} samples at once, each by itself: certified for any number"


def _freed(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The model of ``count`` samples for any number of them."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    extents = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    constants = {tensor.name: tensor for tensor in free.graph.initializer}
    for node in free.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    for node in free.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = numpy_helper.to_array(constants[node.input[1]]).copy()
        if extents.get(node.input[0], [])[:1] == [count] and target[:1].tolist() == [count]:
            target[0] = 0
            extra = f"{node.output[0]}/shape of any batch"
            free.graph.initializer.append(numpy_helper.from_array(target, extra))
            node.input[1] = extra
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        own = value.type.tensor_type.shape.dim
        if len(own) and own[0].dim_value == count:
            own[0].Clear()
            own[0].dim_param = "batch"
    return free


def _alike_alone(
    model: onnx.ModelProto, free: onnx.ModelProto, samples: np.ndarray, name: str
) -> bool:
    """Whether onnxruntime gives each sample alone what it gives them together."""
    together = Runtime(model.SerializeToString(), name)
    alone = Runtime(free.SerializeToString(), name)
    try:
        for output in model.graph.output:
            whole = together.run(samples, output.name)
            parts = np.concatenate([alone.run(x[None], output.name) for x in samples])
            if whole.shape != parts.shape or not np.allclose(whole, parts, _SAME, _SAME):
                return False
    except (CannotCertify, ValueError):
        return False
    return True


def real(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    """The model with an input of real numbers, where it takes uint8 and moves them at most until
    they are cast to a floating type."""
    source = _source(model)
    if source is None or source.type.tensor_type.elem_type != TensorProto.UINT8:
        return model, None
    whole = {source.name}
    for node in model.graph.node:
        if not whole.intersection(names_in(node)):
            continue
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        if node.op_type not in _MOVES or node.domain not in ("", "ai.onnx"):
            return model, None
        if node.op_type == "Concat" and not whole.issuperset(node.input):
            return model, None
        if node.op_type == "Cast" and to in (
            TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
        ):  # fmt: skip
            continue
        if node.op_type == "Cast":
            return model, None
        if node.op_type != "Shape":
            whole.update(node.output)
    if whole.intersection(value.name for value in model.graph.output):
        return model, None
    found = onnx.ModelProto()
    found.CopyFrom(model)
    wide = _source(found)
    assert wide is not None
    wide.type.tensor_type.elem_type = TensorProto.FLOAT
    for value in list(found.graph.value_info):
        if value.name in whole:
            found.graph.value_info.remove(value)
    return found, WHOLE


def taken(model: onnx.ModelProto, node_name: str, condition: bool) -> onnx.ModelProto:
    """The model with the branch that this condition takes in the place of the If whose first output
    is ``node_name``."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    nodes = list(found.graph.node)
    [place] = [i for i, node in enumerate(nodes) if node_name in node.output]
    chosen = nodes[place]
    wanted = "then_branch" if condition else "else_branch"
    [branch] = [a.g for a in chosen.attribute if a.name == wanted]
    inner = {t.name for t in branch.initializer} | {
        name for node in branch.node for name in node.output
    }
    prefix = f"{node_name}/{wanted}/"
    names = {name: prefix + name for name in inner if name}
    moved = [_renamed(node, names) for node in branch.node]
    for made, wanted_name in zip(branch.output, chosen.output, strict=True):
        if wanted_name:
            source = names.get(made.name, made.name)
            moved.append(helper.make_node("Identity", [source], [wanted_name]))
    for tensor in branch.initializer:
        fresh = found.graph.initializer.add()
        fresh.CopyFrom(tensor)
        fresh.name = names[tensor.name]
    del found.graph.node[:]
    found.graph.node.extend([*nodes[:place], *moved, *nodes[place + 1 :]])
    return found


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """A node of a branch under names of the whole graph, in its own branches too."""
    fresh = onnx.NodeProto()
    fresh.CopyFrom(node)
    for own in (fresh.input, fresh.output):
        for place, name in enumerate(own):
            own[place] = names.get(name, name)
    for attribute in fresh.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for place, inner in enumerate(list(graph.node)):
                graph.node[place].CopyFrom(_renamed(inner, names))
            for value in graph.output:
                value.name = names.get(value.name, value.name)
    return fresh
