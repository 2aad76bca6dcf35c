"""Balancing makes norms equal and leaves the function; what lets no factor pass stays as it is."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from train_models import CONV, CONV_TENSORS, GRAPHS, SHAPE, graph, rewritten, run, trainable

from lipcert.network.operators import Convolution, Dense
from lipcert.train.balance import balance, operator_size
from lipcert.train.trainable import Trainable


def lopsided(model: onnx.ModelProto) -> onnx.ModelProto:
    """Its first layer a thousand times as large, the last one as much smaller."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        factor = {"c.w": 300.0, "c.b": 300.0, "l.w": 1 / 300}.get(tensor.name, 1.0)
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((factor * value).astype(np.float32), tensor.name))
    return changed


def sizes(made: Trainable) -> list[float]:
    kinds = [node.kind for node in made.template.nodes]
    return [operator_size(kind) for kind in kinds if isinstance(kind, Dense | Convolution)]


@pytest.mark.parametrize("activation", ["keep", "maxmin", "clipped", "maxmin-clipped"])
def test_the_function_stays_and_the_norms_become_equal(activation):
    made = trainable(lopsided(GRAPHS["conv"]), activation)
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, product = made(x), float(np.prod(sizes(made)))
    made.settle()
    assert max(sizes(made)) > 100 * min(sizes(made))
    assert balance(made)
    after = sizes(made)
    assert max(after) == pytest.approx(min(after), rel=1e-3)
    assert float(np.prod(after)) == pytest.approx(product, rel=1e-3)
    with torch.no_grad():
        assert torch.allclose(made(x), before, rtol=1e-4, atol=1e-4)
    exported = run(made.exported(made.weights()), x)
    assert torch.allclose(exported, before, rtol=1e-4, atol=1e-4)


def test_what_is_not_homogeneous_lets_nothing_pass():
    made = trainable(lopsided(GRAPHS["sigmoid"]))
    before = made.weights()
    assert not balance(made)
    assert all(torch.equal(made.weights()[name], tensor) for name, tensor in before.items())


def test_branches_around_layers_are_left_alone():
    made = trainable(GRAPHS["residual"])
    before = made.weights()
    assert not balance(made)
    assert all(torch.equal(made.weights()[name], tensor) for name, tensor in before.items())


def test_only_what_lies_between_two_limits_is_balanced():
    """A ReLU6 pins the scale where it stands: the layers behind it share out among themselves."""
    nodes = [
        ("Clip", "c low high", "r", {}) if kind == ("Relu", "c", "r", {}) else kind for kind in CONV
    ]
    tensors = CONV_TENSORS | {"low": np.float32(0), "high": np.float32(6)}
    model = lopsided(graph(nodes, tensors, SHAPE))
    found = rewritten(model)
    made = Trainable(found.model, "relu6.onnx", lambda network: network)
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = made(x)
    first = made.weights()["c.w"]
    assert balance(made)
    assert torch.equal(made.weights()["c.w"], first)
    assert sizes(made)[1] == pytest.approx(sizes(made)[2], rel=1e-3)
    with torch.no_grad():
        assert torch.allclose(made(x), before, rtol=1e-4, atol=1e-5)
