"""The auditor's own reading of a file, as torch and as matrices, against onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_models import model, network, node, preprocessing, program
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from lipcert.audit.deployed import Deployed, Preprocessing
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.operators import RULES, NotRead
from lipcert.audit.program import Affine, Program
from lipcert.audit.reach import LONG
from lipcert.audit.rule import PLAIN
from lipcert.errors import CannotCertify

sys.path.append(str(Path(__file__).parents[1] / "loading"))
from load_models import session
from test_load_operators import CASES

# What the auditor leaves to attacks at random points.
NOT_READ = {
    "a pooling with ceil_mode", "an average pooling with dilations", "a Split without sizes",
    "a pad of mode reflect", "a pad of mode edge",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_agrees_with_onnxruntime_or_is_not_read(case):
    try:
        made = case.model()
    except (InvalidGraph, NoKernel) as error:
        pytest.skip(f"onnxruntime has no such operator: {error}")
    operators = {node.op_type for node in made.graph.node}
    try:
        reading = Interpreter(made, case.shape, softmax=False)
    except NotRead as error:
        if str(error) in NOT_READ or operators - set(RULES):
            return
        raise
    x = np.random.default_rng(1).standard_normal((2, *case.shape)).astype(np.float32)
    ours = reading(torch.from_numpy(x).double()).numpy()
    runtime = session(made)
    theirs = np.stack([runtime.run(None, {"x": one})[0].reshape(-1) for one in x])
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


def values(made: Program, pixels: np.ndarray) -> list[np.ndarray]:
    found = [pixels.reshape(len(pixels), -1).astype(LONG)]
    for step in made.steps:
        if isinstance(step, Affine):
            parts = [m @ found[i] for m, i in zip(step.matrices, step.inputs, strict=True)]
            found.append(sum(parts) + step.bias)
        else:
            found.append(step.function.values(found[step.input]))
    return found


@pytest.mark.parametrize(
    ("activation", "attributes"),
    [("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Abs", {}), ("PRelu", {})],
)
def test_the_matrices_are_the_network(activation, attributes):
    made, front = network(3, activation, **attributes), preprocessing((2, 4, 4), mean=[0.2, 0.4])
    pixels = np.random.default_rng(0).uniform(size=(5, 2, 4, 4)).astype(np.float32)
    reading = Interpreter(made, front.shape, softmax=False)
    expected = reading(torch.from_numpy(front(pixels))).numpy()
    matrices = program(made, front)
    found = values(matrices, pixels)[matrices.output]
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=1e-13, atol=1e-13)
    deployed = Deployed(made, front)(pixels)
    np.testing.assert_allclose(deployed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.75), (0.1, None), (None, 0.3)])
def test_a_clip_is_piecewise_linear(low, high):
    ends = {name: value for name, value in (("low", low), ("high", high)) if value is not None}
    inputs = f"h {'low' if low is not None else ''} {'high' if high is not None else ''}"
    nodes = [node("Gemm", "x w", "h"), node("Clip", "h", "c"), node("Gemm", "c v", "y")]
    nodes[1].input[:] = inputs.rstrip(" ").split(" ")
    random = np.random.default_rng(0)
    made = model(nodes, (6,), w=random.normal(size=(6, 9)), v=random.normal(size=(9, 3)), **ends)
    front = preprocessing((6,))
    pixels = random.uniform(size=(20, 6)).astype(np.float32)
    found = values(program(made, front), pixels)[-1]
    np.testing.assert_allclose(found.astype(float), Deployed(made, front)(pixels), atol=1e-5)


def test_channels_last_ranges_and_statistics_are_applied_in_lipcert_s_order():
    image = np.random.default_rng(0).uniform(size=(1, 3, 4, 5)).astype(np.float32)
    record = {
        "preprocessing": {
            "mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 8.0], "layout": None, "value_range": [-1, 7],
        },
        "input_shape": [1, 4, 5, 3],
    }  # fmt: skip
    found = Preprocessing.of(record, (3, 4, 5))(image)
    wide = np.array([1.0, 2, 3])[:, None, None], np.array([2.0, 4, 8])[:, None, None]
    expected = ((image[0].astype(float) * 8 - 1) - wide[0]) / wide[1]
    np.testing.assert_allclose(found[0, 0], expected.transpose(1, 2, 0), rtol=1e-13)
    record["preprocessing"]["layout"] = "WHC"
    record["input_shape"] = [60]
    flat = Preprocessing.of(record, (3, 4, 5))(image)
    np.testing.assert_allclose(flat[0], expected.transpose(2, 1, 0).reshape(-1), rtol=1e-13)
    record["input_shape"] = [61]
    with pytest.raises(CannotCertify, match="does not fit"):
        Preprocessing.of(record, (3, 4, 5))


def test_margins_are_nan_where_a_logit_is_not_finite():
    logits = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [1.0, np.inf, 0.0], [np.nan, 0.0, 1.0]])
    np.testing.assert_array_equal(PLAIN.lead(logits, 0), [1.0, 0.0, np.nan, np.nan])


def test_a_softmax_at_the_end_is_left_out():
    nodes = [node("Gemm", "x w", "z"), node("Softmax", "z", "y")]
    made = model(nodes, (3,), w=np.eye(3))
    x = torch.tensor([[[1.0, 2.0, 4.0]]], dtype=torch.float64)
    assert Interpreter(made, (1, 3), softmax=True)(x).tolist() == [[1.0, 2.0, 4.0]]
    whole = Interpreter(made, (1, 3), softmax=False)(x)
    assert torch.allclose(whole, torch.softmax(x, -1).reshape(whole.shape), atol=1e-12)
