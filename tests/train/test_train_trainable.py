"""A file's numbers as parameters, and back: names, ties, gradients, and what onnxruntime says."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from train_models import CONV, CONV_TENSORS, GRAPHS, SHAPE, graph, rewritten, run, trainable

from lipcert.errors import CannotCertify, UsageError
from lipcert.network.operators import Diagonal
from lipcert.train.trainable import Trainable

TIED = graph(
    [
        ("Flatten", "x", "f", {}),
        ("Gemm", "f a.w a.b", "a", {"transB": 1}),
        ("Relu", "a", "r", {}),
        ("Gemm", "r b.w b.b", "b", {"transB": 1}),
        ("Relu", "b", "s", {}),
        ("Transpose", "b.w", "t", {"perm": [1, 0]}),
        ("Gemm", "s t b.b", "c", {"transB": 1}),
        ("Relu", "c", "u", {}),
        ("MatMul", "u l.w", "l", {}),
        ("Sub", "l l.b", "y", {}),
    ],
    {"a.w": (5, 72), "a.b": (5,), "b.w": (5, 5), "b.b": (5,), "l.w": (5, 3), "l.b": (3,)},
    SHAPE,
)

NORMED = graph(
    [
        ("Sub", "x mean", "m", {}),
        ("Div", "m std", "n", {}),
        ("Conv", "n c.w", "c", {}),
        ("BatchNormalization", "c ones zeros mu var", "d", {"epsilon": 1e-3}),
        ("Relu", "d", "r", {}),
        ("Conv", "r e.w", "e", {}),
        ("BatchNormalization", "e ones zeros mu var2", "g", {"epsilon": 1e-3}),
        ("Relu", "g", "s", {}),
        ("Flatten", "s", "f", {}),
        ("Gemm", "f l.w l.b", "y", {"alpha": 0.3, "transB": 1}),
    ],
    {
        "mean": np.full((1, 2, 1, 1), 0.4, np.float32),
        "std": np.full((1, 2, 1, 1), 0.2, np.float32),
        "c.w": (4, 2, 3, 3),
        "e.w": (4, 4, 3, 3),
        "ones": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.float32),
        "mu": np.linspace(-1, 1, 4, dtype=np.float32),
        "var": np.linspace(0.5, 2, 4, dtype=np.float32),
        "var2": np.linspace(1, 3, 4, dtype=np.float32),
        "l.w": (3, 16),
        "l.b": (3,),
    },
    SHAPE,
)

ALL = GRAPHS | {"tied": TIED, "normed": NORMED}


def images(count=5):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ALL)
def test_an_untouched_network_is_the_file(name):
    model = ALL[name]
    made = trainable(model)
    expected = run(model, images())
    assert torch.allclose(made(images()), expected, atol=1e-5)
    exported = made.exported(made.weights())
    onnx.checker.check_model(exported, full_check=True)
    assert torch.allclose(run(exported, images()), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["keep", "clipped", "maxmin-clipped"])
@pytest.mark.parametrize("name", ALL)
def test_what_is_trained_is_what_is_exported(name, activation):
    if name == "sigmoid" and activation != "keep":
        with pytest.raises(CannotCertify, match="no Relu, nor MaxMin"):
            trainable(ALL[name], activation)
        return
    made = trainable(ALL[name], activation)
    with torch.no_grad():
        for tensor in made.tensors:
            tensor.add_(0.05 * torch.randn(tensor.shape))
    made.project()
    exported = made.exported(made.weights())
    onnx.checker.check_model(exported, full_check=True)
    found = run(exported, images())
    assert torch.allclose(made(images()), found, atol=1e-5)
    assert not torch.allclose(found, run(ALL[name], images()), atol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_names_and_numbers_are_those_of_the_file(name):
    made = trainable(ALL[name])
    file = {t.name: numpy_helper.to_array(t) for t in ALL[name].graph.initializer}
    if name == "normed":
        # Shared statistics are told apart; everything else keeps its name.
        assert {"c.w", "e.w", "l.w", "l.b"} < set(made.names)
        assert not {"mean", "std"} & set(made.names)
        return
    assert set(made.names) == set(file)
    for key, value in made.weights().items():
        assert np.array_equal(value.numpy(), file[key])


def test_tied_weights_are_one_parameter_with_one_gradient():
    made = trainable(TIED)
    assert made.names.count("b.w") == 1
    made(images()).square().sum().backward()
    place = made.names.index("b.w")
    whole = made.tensors[place].grad

    # The same network with the second use untied, as a reference.
    loose = onnx.ModelProto()
    loose.CopyFrom(TIED)
    tied = next(t for t in loose.graph.initializer if t.name == "b.w")
    copy = loose.graph.initializer.add()
    copy.CopyFrom(tied)
    copy.name = "b2.w"
    next(n for n in loose.graph.node if n.op_type == "Transpose").input[0] = "b2.w"
    apart = trainable(loose)
    apart(images()).square().sum().backward()
    parts = [apart.tensors[apart.names.index(name)].grad for name in ("b.w", "b2.w")]
    assert all(bool(part.abs().max() > 1e-3) for part in parts)
    assert torch.allclose(whole, parts[0] + parts[1], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    for name in ("tied", "normed"):
        made = trainable(ALL[name], "clipped")
        made(images()).sum().backward()
        step = 1e-2
        for tensor in made.tensors:
            direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
            direction = direction / direction.norm()
            with torch.no_grad():
                tensor.add_(step * direction)
                above = float(made(images()).double().sum())
                tensor.sub_(2 * step * direction)
                below = float(made(images()).double().sum())
                tensor.add_(step * direction)
            slope = float((tensor.grad * direction).sum())
            assert abs((above - below) / (2 * step) - slope) < 0.05 * abs(slope) + 0.02


def test_normalisation_before_the_first_layer_stays_as_it_is():
    made = trainable(NORMED)
    bound = {binding.node for binding in made.bindings}
    front = [i for i, node in enumerate(made.template.nodes[:3]) if isinstance(node.kind, Diagonal)]
    assert front
    assert not bound & set(front)


def test_what_the_reader_computes_is_left_alone():
    model = graph(
        [
            ("Flatten", "x", "f", {}),
            ("Mul", "w scale", "scaled", {}),
            ("MatMul", "f scaled", "h", {}),
            ("Relu", "h", "r", {}),
            ("MatMul", "r v", "y", {}),
        ],
        {"w": (72, 4), "scale": (72, 1), "v": (4, 3)},
        SHAPE,
    )
    made = trainable(model)
    assert made.names == ("v",)
    assert set(made.frozen) == {"w", "scale"}


def test_weights_in_constant_nodes_are_trained_too():
    model = graph(CONV, CONV_TENSORS, SHAPE)
    kept = [t for t in model.graph.initializer if t.name != "d.w"]
    [moved] = [t for t in model.graph.initializer if t.name == "d.w"]
    value = helper.make_node("Constant", [], ["d.w"], value=moved)
    nodes = [value, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    made = trainable(model)
    assert "d.w" in made.names
    assert torch.allclose(run(made.exported(made.weights()), images()), run(model, images()))


def test_a_file_without_weights_is_refused():
    model = graph([("Flatten", "x", "f", {}), ("ReduceSum", "f", "y", {"keepdims": 1})], {}, SHAPE)
    with pytest.raises(CannotCertify):
        trainable(model)


def test_limits_that_stand_for_none_are_left_alone():
    """As of files that write them so; the other numbers are found as without them."""
    model = onnx.ModelProto()
    model.CopyFrom(rewritten(GRAPHS["conv"], "clipped").model)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".theta"):
            far = np.full_like(numpy_helper.to_array(tensor), 1e30)
            tensor.CopyFrom(numpy_helper.from_array(far, tensor.name))
    made = Trainable(model, "model.onnx", lambda network: network)
    assert set(made.names) == set(CONV_TENSORS)


def test_upper_thresholds_do_not_cross_zero():
    made = trainable(GRAPHS["conv"], "clipped")
    with torch.no_grad():
        for tensor in made.tensors:
            tensor.sub_(1.0)
    made.project()
    weights = made.weights()
    thetas = [value for name, value in weights.items() if name.endswith(".theta")]
    assert len(thetas) == 2
    assert all(bool((theta >= 0).all()) and bool((theta == 0).any()) for theta in thetas)
    assert bool((weights["d.w"] < 0).any())


def test_one_threshold_a_channel_or_a_neuron():
    shapes = {}
    for sharing in ("neuron", "channel"):
        found = rewritten(GRAPHS["conv"], "clipped", sharing)
        tensors = {t.name: tuple(t.dims) for t in found.model.graph.initializer}
        shapes[sharing] = [tensors[name] for name in found.thresholds]
    assert shapes == {"neuron": [(1, 4, 3, 3), (1, 6)], "channel": [(1, 4, 1, 1), (1, 6)]}


def test_an_old_opset_cannot_be_clipped():
    model = graph(CONV, CONV_TENSORS, SHAPE, opset=7)
    with pytest.raises(CannotCertify, match="opset 7"):
        rewritten(model, "clipped")
    assert torch.allclose(trainable(model)(images()), run(model, images()), atol=1e-5)


def test_a_network_that_has_maxmin_keeps_it_and_gets_thresholds():
    model = graph(
        [
            ("Flatten", "x", "f", {}),
            ("Gemm", "f a.w a.b", "a", {"transB": 1}),
            ("Split", "a", "p q", {"axis": 1}),
            ("Max", "p q", "hi", {}),
            ("Min", "q p", "lo", {}),
            ("Concat", "hi lo", "s", {"axis": 1}),
            ("Gemm", "s l.w l.b", "y", {"transB": 1}),
        ],
        {"a.w": (8, 72), "a.b": (8,), "l.w": (3, 8), "l.b": (3,)},
        SHAPE,
    )
    found = rewritten(model, "clipped")
    assert len(found.thresholds) == 2
    made = Trainable(found.model, "model.onnx", lambda network: network)
    assert torch.allclose(made(images()), run(model, images()), atol=1e-5)


@pytest.mark.parametrize("activation", ["keep", "maxmin", "clipped"])
@pytest.mark.parametrize("name", ["conv", "residual"])
def test_features_are_what_the_last_layer_is_given(name, activation):
    made, x = trainable(GRAPHS[name], activation), images()
    by_name = dict(zip(made.names, made.tensors, strict=True))
    weight = by_name["l.w"] if name == "conv" else by_name["l.w"].mT
    assert torch.allclose(made.features(x) @ weight + by_name["l.b"], made(x), atol=1e-5)
    made.features(x).sum().backward()
    assert by_name["l.w"].grad is None
    assert bool(made.tensors[0].grad.any())


def test_a_linear_model_has_no_features():
    model = graph(
        [("Flatten", "x", "f", {}), ("Gemm", "f l.w l.b", "y", {"transB": 1})],
        {"l.w": (3, 72), "l.b": (3,)},
        SHAPE,
    )
    with pytest.raises(UsageError, match="no activation in front of its last layer"):
        Trainable(model, "model.onnx", lambda network: network).features(images())
