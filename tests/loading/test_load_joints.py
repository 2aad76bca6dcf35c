"""Joints as exporters write them: both exporters of torch, and the operators of newer opsets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import smallest_margins
from joint_networks import NETWORKS, NORM, Attention, Transformer
from load_models import Case, assert_agrees, network, reading
from torch import Tensor, nn
from torch.nn import functional

import lipcert
from lipcert.errors import CannotCertify
from lipcert.loading import inspect_operators, load_model

pytestmark = pytest.mark.filterwarnings("ignore")


def joints(model: Any) -> list[str]:
    """The joints of a network that agrees with onnxruntime."""
    ours = assert_agrees(model, 1e-5)
    assert all(row.supported for row in reading(model).operators)
    return [type(ours.nodes[i].kind).__name__ for i in ours.joints]


def case(*nodes: Any, shape: tuple[int, ...] = (1, 4, 6), opset: int = 17, **inits: Any) -> Case:
    return Case("joint", nodes, shape, opset, inits)


OPERATORS: dict[str, tuple[Case, list[str]]] = {
    "layer norm 17": (
        case(("LayerNormalization", "x s b", "y", {"epsilon": 1e-3}), s=(6,), b=(6,)),
        NORM,
    ),
    "layer norm over two axes": (
        case(("LayerNormalization", "x s", "y", {"axis": 1}), s=(4, 6)), NORM,
    ),
    "instance norm": (
        case(("InstanceNormalization", "x s b", "y", {}), shape=(1, 4, 3, 3), s=(4,), b=(4,)),
        NORM,
    ),
    "group norm 21": (
        case(("GroupNormalization", "x s b", "y", {"num_groups": 2}), shape=(1, 4, 3, 3), opset=21,
             s=(4,), b=(4,)), NORM,
    ),
    "L2 normalisation": (
        case(("LpNormalization", "x", "y", {"axis": 1})), ["InverseLength", "Product"],
    ),
    "length": (
        case(("ReduceL2", "x", "l", {"axes": [-1], "keepdims": 1}), ("Div", "x l", "y", {})),
        ["Curve", "Curve", "Quotient"],
    ),
    "sum of squares": (
        case(("ReduceSumSquare", "x", "y", {"axes": [-1]})), ["Curve"],
    ),
    "softmax before opset 13": (
        case(("Softmax", "x", "p", {"axis": 1}), ("Relu", "p", "y", {}), opset=9), ["Softmax"],
    ),
    "softmax of an inner axis": (
        case(("Softmax", "x", "p", {"axis": 1}), ("Relu", "p", "y", {})), ["Softmax"],
    ),
    "a product of matrices": (
        case(("Transpose", "x", "t", {"perm": [0, 2, 1]}), ("MatMul", "x t", "y", {})),
        ["MatrixProduct"],
    ),
    "matrices for each head": (
        case(("Einsum", "x x", "y", {"equation": "bthd,bshd->bhts"}), shape=(1, 3, 2, 4)),
        ["MatrixProduct"],
    ),
    "an outer product": (
        case(("Einsum", "x x", "y", {"equation": "bi,bj->bij"}), shape=(1, 4)), ["MatrixProduct"],
    ),
    "gemm of two values": (
        case(("Squeeze", "x axes", "v", {}), ("Gemm", "v v c", "y", {"transB": 1, "alpha": 0.5}),
             shape=(1, 4, 6), axes=np.array([0]), c=(4, 4)), ["MatrixProduct"],
    ),
    "a gate that is broadcast": (
        case(("GlobalAveragePool", "x", "p", {}), ("Sigmoid", "p", "g", {}),
             ("Mul", "x g", "y", {}), shape=(1, 3, 4, 4)), ["Product"],
    ),
    "softsign": (case(("Softsign", "x", "y", {})), ["Quotient"]),
    "reciprocal": (
        case(("Abs", "x", "a", {}), ("Add", "a one", "p", {}), ("Reciprocal", "p", "y", {}),
             one=np.array(1.0)), ["Curve"],
    ),
    "a constant by a value": (
        case(("Exp", "x", "e", {}), ("Add", "e one", "p", {}), ("Div", "c p", "y", {}),
             one=np.array(1.0), c=(6,)), ["Curve", "Curve"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_read(name: str) -> None:
    given, expected = OPERATORS[name]
    if name == "gemm of two values":
        given = Case(given.name, given.nodes, given.shape, given.opset, given.inits, batch=1)
    assert joints(given.model()) == expected


def test_decomposed_normalisation_of_the_legacy_exporters() -> None:
    """As torch wrote LayerNorm before opset 17."""
    axes = {"axes": [-1]}
    nodes: list[Any] = [
        ("ReduceMean", "x", "m", axes), ("Sub", "x m", "d", {}), ("Pow", "d two", "q", {}),
        ("ReduceMean", "q", "v", axes), ("Add", "v eps", "e", {}), ("Sqrt", "e", "s", {}),
        ("Div", "d s", "n", {}), ("Mul", "n w", "k", {}), ("Add", "k b", "y", {}),
    ]  # fmt: skip
    inits = {"two": np.array(2.0), "eps": np.array(1e-5), "w": (6,), "b": (6,)}
    found = joints(Case("decomposed", nodes, (1, 4, 6), 13, inits).model())
    assert found == ["Curve", "Curve", "Quotient"]


PIECEWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "softshrink": functional.softshrink,
    "a leaky ReLU by a choice": lambda x: torch.where(x > 0, x, 0.3 * x),
    "a clipped line": lambda x: torch.where(x > 1, torch.ones_like(x), torch.where(x < -1, -1, x)),
    "a dead zone by signs": lambda x: torch.sign(x) * functional.relu(x.abs() - 0.25),
}


def exported(net: nn.Module, path: Path, *, dynamo: bool, opset: int | None = None) -> Path:
    net.eval()
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    if dynamo:
        torch.onnx.export(net, (x,), path, dynamo=True, opset_version=opset, external_data=False)
    else:
        torch.onnx.export(
            net, (x,), path, dynamo=False, opset_version=opset or 17, input_names=["x"],
            output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return path


def same(net: nn.Module, path: Path) -> list[str]:
    """The joints of the network, which has the values of torch at random images."""
    ours = load_model(path).network
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = net(x)
    torch.testing.assert_close(ours.logits(x.double()), theirs.double(), rtol=1e-4, atol=1e-5)
    return [type(ours.nodes[i].kind).__name__ for i in ours.joints]


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp(function: Callable[[Tensor], Tensor]) -> nn.Module:
    layers = nn.Linear(192, 16), Function(function), nn.Linear(16, 5)
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize("name", PIECEWISE)
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
def test_piecewise_linear_functions_need_no_joint(name: str, dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = mlp(PIECEWISE[name])
    assert same(net, exported(net, tmp_path / "net.onnx", dynamo=dynamo)) == []


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
def test_what_jumps_is_refused_with_the_places(dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = exported(mlp(functional.hardshrink), tmp_path / "net.onnx", dynamo=dynamo)
    with pytest.raises(CannotCertify, match=r"Where.*jumps.*at -0.5, 0.5, as Hardshrink"):
        load_model(path)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_legacy_exporter(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, expected = NETWORKS[name]
    net = build()
    found = same(net, exported(net, tmp_path / "net.onnx", dynamo=False))
    assert found == (expected or found) != []


DYNAMO = ("attention, sdpa", "squeeze-excite", "group norm", "a head of unit lengths")


@pytest.mark.parametrize("opset", [None, 21, 23])
@pytest.mark.parametrize("name", DYNAMO)
def test_the_default_exporter(name: str, opset: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, _ = NETWORKS[name]
    net = build()
    assert same(net, exported(net, tmp_path / "net.onnx", dynamo=True, opset=opset)) != []


def test_rms_norm_of_the_default_exporter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for opset in (None, 23):
        net = Transformer(Attention("sdpa"), nn.RMSNorm)
        assert same(net, exported(net, tmp_path / "net.onnx", dynamo=True, opset=opset)) != []


def test_attention_of_opset_23_against_onnx_s_own_definition() -> None:
    """onnxruntime need not run it yet: the reference of ONNX does."""
    import onnx
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    shape = [1, 5, 12]
    for attributes in (
        {"q_num_heads": 3, "kv_num_heads": 3}, {"q_num_heads": 4, "kv_num_heads": 4, "scale": 0.3},
    ):  # fmt: skip
        node = helper.make_node("Attention", ["x", "x", "x"], ["y"], **attributes)
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 23)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model)
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        [theirs] = ReferenceEvaluator(model).run(None, {"x": x})
        ours = network(model).values(torch.from_numpy(x)[None].double())[-1].numpy()[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


REFUSED: dict[str, tuple[Case, str]] = {
    "the 1-norm": (case(("LpNormalization", "x", "y", {"p": 1})), "only the Euclidean norm"),
    "an axis that only one has": (
        case(("Einsum", "x x", "y", {"equation": "bij,bkl->bil"})),
        "equation 'bij,bkl->bil'",
    ),
    "an exponent": (
        case(("Abs", "x", "a", {}), ("Pow", "a x", "y", {})),
        "must be a constant",
    ),
    "a jump": (case(("Sign", "x", "y", {})), "jumps as its input moves"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_forms_are_refused_by_name(name: str) -> None:
    given, reason = REFUSED[name]
    found = reading(given.model())
    assert found.network is None
    assert reason in found.problems[0]


CERTIFIED = ("attention, products", "squeeze-excite", "group norm", "gated linear units")


@pytest.mark.parametrize("name", CERTIFIED)
def test_exported_networks_are_certified_and_not_broken(name: str, tmp_path: Path) -> None:
    """Through the file, the cross-check and the bounds; labelled by the network itself."""
    torch.manual_seed(0)
    build, _ = NETWORKS[name]
    net = build()
    model = lipcert.load(exported(net, tmp_path / "net.onnx", dynamo=False))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = net(images).argmax(1)
    result = lipcert.certify(
        model, images.numpy(), labels.numpy(), eps=["1e-4"], effort="fast", seed=1
    )
    radii = torch.tensor([sample.radius for sample in result.samples], dtype=torch.float64)
    assert int((radii > 1e-5).sum()) >= 3
    x = images.double().reshape(4, *model.loaded.network.in_shape)
    reached = smallest_margins(model.loaded.network, x, labels, radii, steps=15, restarts=1)
    assert bool((reached > 0).all())


def test_an_inspection_says_what_is_exact_and_what_enclosed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = exported(NETWORKS["attention, products"][0](), tmp_path / "net.onnx", dynamo=False)
    bounds = {row.operator: row.bound for row in inspect_operators(path)}
    assert {bounds[kind] for kind in ("Conv", "Reshape", "Add")} == {"exact"}
    assert {bounds[kind] for kind in ("Softmax", "LayerNormalization")} == {"enclosed"}
