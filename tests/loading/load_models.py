"""Small ONNX models for the tests of the reader, and onnxruntime to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from lipcert.loading.reader import ReadGraph, network_of, read
from lipcert.network import Network, simplify

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE

NodeSpec = tuple[str, str, str, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """Nodes as (operator, inputs, outputs, attributes); the graph goes from ``x`` to ``y``.

    ``inits`` are arrays, or shapes of normally distributed weights. ``batch`` is the first extent
    of ``x``, free by default.
    """

    name: str
    nodes: Sequence[NodeSpec]
    shape: tuple[int, ...]
    opset: int = 17
    inits: dict[str, Any] = field(default_factory=dict)
    batch: int | str = "N"

    def model(self, kind: int = FLOAT) -> onnx.ModelProto:
        dtype = np.float64 if kind == DOUBLE else np.float32
        rng = np.random.default_rng(0)
        tensors = []
        for name, value in self.inits.items():
            array = rng.standard_normal(value) if isinstance(value, tuple) else np.asarray(value)
            # Every weight is a float32 number, in both types.
            array = array.astype(np.float32).astype(dtype) if array.dtype.kind == "f" else array
            tensors.append(numpy_helper.from_array(array, name))
        graph = helper.make_graph(
            [
                helper.make_node(kind_, inputs.split(" "), outputs.split(" "), **attributes)
                for kind_, inputs, outputs, attributes in self.nodes
            ],
            "graph",
            [helper.make_tensor_value_info("x", kind, [self.batch, *self.shape[1:]])],
            [helper.make_tensor_value_info("y", kind, None)],
            tensors,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        # The checker asks for the output's rank.
        [y] = session(model).run(None, {"x": np.zeros(self.shape, dtype)})
        model.graph.output[0].CopyFrom(
            helper.make_tensor_value_info("y", kind, [f"y{axis}" for axis in range(np.ndim(y))])
        )
        return model


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def network(model: onnx.ModelProto) -> Network:
    return network_of(reading(model), "test.onnx")


def reading(model: onnx.ModelProto) -> ReadGraph:
    onnx.checker.check_model(model, full_check=True)
    return read(model, "test.onnx")


def assert_agrees(model: onnx.ModelProto, tolerance: float, samples: int = 3) -> Network:
    """Network and simplified network against onnxruntime, one sample at a time."""
    ours = network(model)
    runtime = session(model)
    value = model.graph.input[0]
    dtype = np.float64 if value.type.tensor_type.elem_type == DOUBLE else np.float32
    rng = np.random.default_rng(1)
    for _ in range(samples):
        x = rng.standard_normal(ours.in_shape).astype(dtype)
        [theirs] = runtime.run(None, {value.name: x})
        for candidate in (ours, simplify(ours)):
            [found] = candidate.values(torch.from_numpy(x[None]).double())[-1].numpy()
            if candidate is ours:
                assert found.shape == theirs.shape
            scale = max(1.0, np.abs(theirs).max())
            np.testing.assert_allclose(
                found.reshape(-1), theirs.reshape(-1), rtol=0, atol=tolerance * scale
            )
    return ours
