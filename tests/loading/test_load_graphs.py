"""Whole graphs: MaxMin in the ways it is written, residuals, softmax, inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from load_models import FLOAT, Case, assert_agrees, network, reading
from onnx import TensorProto, helper

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import inspect_operators, load_model
from lipcert.loading.reader import network_of, read
from lipcert.network import Network, simplify

CONV: Any = ("Conv", "x w", "z", {"pads": [1, 1, 1, 1]})
WEIGHTS: dict[str, Any] = {"w": (6, 2, 3, 3)}
HALVES: Any = ("Split", "z", "a b", {"axis": 1})
JOIN: Any = ("Concat", "p q", "y", {"axis": 1})
LIMITS: dict[str, Any] = {"t": np.array(0.5), "s": np.array(-0.5)}


def kinds(net: Network) -> list[str]:
    return [type(node.kind).__name__ for node in net.nodes if type(node.kind).__name__ != "Select"]


MAXMIN = {
    "split": (HALVES, ("Max", "a b", "p", {}), ("Min", "b a", "q", {}), JOIN),
    "slices": (
        ("Slice", "z zero three one", "a", {}), ("Slice", "z three six one", "b", {}),
        ("Slice", "z zero three one", "c", {}), ("Slice", "z three six one", "d", {}),
        ("Max", "a b", "p", {}), ("Min", "c d", "q", {}), JOIN,
    ),
    "reduce": (
        ("Reshape", "z pairs", "r", {}), ("ReduceMax", "r", "p", {"axes": [1], "keepdims": 0}),
        ("ReduceMin", "r", "q", {"axes": [1], "keepdims": 0}), JOIN,
    ),
}  # fmt: skip
EXTENTS: dict[str, Any] = {
    "zero": np.array([0]), "three": np.array([3]), "six": np.array([6]), "one": np.array([1]),
    "pairs": np.array([1, 2, 3, 4, 4]),
}  # fmt: skip


@pytest.mark.parametrize("form", MAXMIN)
def test_max_and_min_of_halves_become_one_maxmin(form: str) -> None:
    case = Case(form, [CONV, *MAXMIN[form]], (1, 2, 4, 4), 17, WEIGHTS | EXTENTS)
    read_network = assert_agrees(case.model(FLOAT), 1e-5)
    assert kinds(read_network).count("MaxMin") == 1
    assert kinds(simplify(read_network)) == ["Input", "Convolution", "MaxMin"]


def test_clipped_maxmin_becomes_maxmin_and_one_clip() -> None:
    nodes = [
        CONV, HALVES,
        ("Max", "a b", "m", {}), ("Min", "m t", "p", {}),
        ("Min", "a b", "n", {}), ("Max", "n s", "q", {}), JOIN,
    ]  # fmt: skip
    case = Case("clipped", nodes, (1, 2, 4, 4), 13, WEIGHTS | LIMITS)
    simple = simplify(assert_agrees(case.model(FLOAT), 1e-5))
    assert kinds(simple) == ["Input", "Convolution", "MaxMin", "Clip"]


def test_a_residual_block_keeps_its_sum() -> None:
    nodes = [
        CONV,
        ("Relu", "z", "r", {}),
        ("Conv", "r v", "c", {}),
        ("Add", "c z", "s", {}),
        ("GlobalAveragePool", "s", "g", {}),
        ("Flatten", "g", "y", {}),
    ]
    case = Case("residual", nodes, (1, 2, 4, 4), 13, WEIGHTS | {"v": (6, 6, 1, 1)})
    assert "Sum" in kinds(simplify(assert_agrees(case.model(FLOAT), 1e-5)))


def test_batch_norm_is_centred_before_it_is_scaled() -> None:
    inits = {"g": (2,), "b": (2,), "m": (2,), "v": np.array([1.0, 2.0])}
    case = Case("bn", [("BatchNormalization", "x g b m v", "y", {})], (1, 2, 3), 15, inits)
    _, centre, scale = network(case.model()).nodes
    assert centre.kind.entries() is None
    assert centre.kind.bias is not None
    assert scale.kind.entries() is not None


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_final_softmax_is_left_out(kind: str, opset: int) -> None:
    nodes = [("Gemm", "x w", "z", {}), (kind, "z", "p", {}), ("Flatten", "p", "y", {})]
    found = reading(Case("end", nodes, (1, 5), opset, {"w": (5, 3)}).model())
    assert found.stripped == kind
    assert kinds(network_of(found, "end")) == ["Input", "Dense"]


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([("Softmax", "x", "p", {}), ("Relu", "p", "y", {})], (1, 5)),
        ([("Softmax", "x", "p", {}), ("Add", "p p", "y", {})], (1, 5)),
        ([("Softmax", "x", "p", {}), ("Flatten", "p", "f", {}), ("Add", "f p", "y", {})], (1, 5)),
        ([("Softmax", "x", "y", {"axis": 1})], (1, 2, 3)),
    ],
)
def test_any_other_softmax_is_a_joint(nodes: Any, shape: tuple[int, ...]) -> None:
    ours = assert_agrees(Case("softmax", nodes, shape).model(), 1e-6)
    assert [type(ours.nodes[i].kind).__name__ for i in ours.joints] == ["Softmax"]


def test_a_softmax_over_the_samples_of_a_batch_is_refused() -> None:
    with pytest.raises(CannotCertify, match=r"Softmax-13 at .*: mixes the samples"):
        network(Case("softmax", [("Softmax", "x", "y", {"axis": 0})], (1, 3)).model())


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    nodes = [
        ("Sin", "x", "e", {}),
        ("Mul", "e e", "m", {}),
        ("Cos", "m", "v", {}),
        ("Relu", "v", "r", {}),
        ("Sinh", "x", "p", {}),
        ("Div", "r p", "y", {}),
    ]
    model = Case("bad", nodes, (1, 5), 13).model()
    model.graph.node[0].name = "activation"
    prop = model.graph.node[2].metadata_props.add()
    prop.key, prop.value = "pkg.torch.onnx.name_scopes", "['', 'block.3', 'cosine']"
    with pytest.raises(CannotCertify) as refusal:
        network(model)
    told = str(refusal.value)
    assert "test.onnx: 3 obstacles" in told
    assert "Sin-7 at activation: " in told
    assert "Cos-7 at block.3: " in told
    assert "Sinh-9 at p: " in told
    supported = {row.operator: row.supported for row in reading(model).operators}
    assert supported == {
        "Sin": False, "Mul": True, "Cos": False, "Relu": True, "Sinh": False, "Div": True,
    }  # fmt: skip


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "by zero": (("Div", "x c", "y", {}), {"c": np.array([1.0, 0, 1, 1, 1])}, "division by zero"),
    "infinite": (("Add", "x c", "y", {}), {"c": np.array([np.inf])}, "'c' has values that are not"),
    "limits": (("Max", "x c", "y", {}), {"c": np.array([np.inf])}, "no finite value"),
    "power": (("Pow", "x c", "y", {}), {"c": (5,)}, "Pow-15 at y: only one constant exponent"),
    "power 0": (("Pow", "x c", "y", {}), {"c": np.array(0.0)}, "an exponent of 0"),
    "a log-softmax inside": (("LogSoftmax", "x", "y", {"axis": 0}), {}, "only as the last"),
    "random": (("RandomNormalLike", "x", "y", {}), {}, "RandomNormalLike-1 at y: not supported"),
    "resize": (("Sinh", "x", "y", {}), {}, "Sinh-9 at y: not supported"),
    "products": (("MatMul", "x c", "y", {}), {"c": (2, 5, 3)}, "a batch of constant matrices"),
    "pads": (
        ("Pad", "x c", "y", {}), {"c": np.array([0, 1, 0, -1])}, "negative pads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    node, inits, reason = REFUSED[name]
    with pytest.raises(CannotCertify, match=reason):
        network(Case(name, [node], (1, 5), 17, inits).model())


def test_a_cast_to_fewer_bits_is_refused() -> None:
    nodes = [("Cast", "x", "h", {"to": TensorProto.BFLOAT16}), ("Cast", "h", "y", {"to": FLOAT})]
    with pytest.raises(CannotCertify, match="Cast-13 at h: a cast to BFLOAT16"):
        network(Case("half", nodes, (1, 5)).model())


def test_training_mode_is_refused() -> None:
    inits = {"g": (2,), "b": (2,), "m": (2,), "v": np.array([1.0, 2.0])}
    node: Any = ("BatchNormalization", "x g b m v", "y rm rv", {"training_mode": 1})
    with pytest.raises(CannotCertify, match="evaluation mode"):
        network(Case("bn", [node], (1, 2, 3), 15, inits).model())
    drop: Any = ("Dropout", "x r t", "y", {})
    flags = {"r": np.array(0.5), "t": np.array(True)}
    with pytest.raises(CannotCertify, match="training_mode is on"):
        network(Case("drop", [drop], (1, 5), 13, flags).model())


def test_the_places_of_a_max_pool_are_refused() -> None:
    nodes = [
        ("MaxPool", "x", "p i", {"kernel_shape": [2]}),
        ("Cast", "i", "f", {"to": 1}),
        ("Add", "p f", "y", {}),
    ]
    with pytest.raises(CannotCertify, match="its output 'i' is not supported"):
        network(Case("pool", nodes, (1, 2, 6)).model())


def test_other_domains_are_listed() -> None:
    model = Case("gelu", [("Relu", "x", "y", {})], (1, 5)).model()
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "QuickGelu"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(CannotCertify, match=r"com\.microsoft\.QuickGelu at y: .*domain"):
        network(model)


def with_input(*extents: int | str, kind: int = FLOAT) -> onnx.ModelProto:
    model = Case("input", [("Relu", "x", "y", {})], (1, 5)).model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, extents))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind, extents))
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (with_input(8, 5), r"'x' \[8, 5\] takes 8 samples at once"),
        (with_input("N", "height", 3), "leaves height open"),
        (with_input(), "has no shape"),
        (with_input("N", 5, kind=TensorProto.INT32), "has type INT32"),
    ],
)
def test_inputs_that_are_not_one_sample_are_refused(model: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(CannotCertify, match=reason):
        network(model)


def test_the_batch_may_be_open_or_one() -> None:
    for extent in ("N", -1, 1):
        found = reading(with_input(extent, 5))
        assert network_of(found, "").in_shape == (1, 5)
        assert found.any_batch is (extent != 1)


def test_two_inputs_are_refused() -> None:
    model = Case("two", [("Relu", "x", "y", {})], (1, 5)).model()
    model.graph.input.append(helper.make_tensor_value_info("other", FLOAT, [1]))
    with pytest.raises(CannotCertify, match=r"2 inputs \(x, other\)"):
        network(model)


def test_one_of_several_outputs_is_chosen_by_name() -> None:
    nodes = [("Relu", "x", "y", {}), ("Erf", "y", "e", {})]
    model = Case("outputs", nodes, (1, 5)).model()
    model.graph.output.append(helper.make_tensor_value_info("e", FLOAT, ["N", 5]))
    with pytest.raises(CannotCertify, match=r"2 outputs \(y, e\)"):
        network(model)
    # What the other output computes does not matter.
    assert kinds(network_of(read(model, "m", "y"), "m")) == ["Input", "Clip"]
    with pytest.raises(UsageError, match="no output 'z'; it has y, e"):
        read(model, "m", "z")


def test_an_output_without_the_input_is_refused() -> None:
    model = Case("constant", [("Relu", "c", "y", {})], (1, 5), 17, {"c": (1, 3)}).model()
    with pytest.raises(CannotCertify, match="output 'y' does not depend on the input"):
        network(model)


def test_functions_of_the_file_are_unfolded(tmp_path: Path) -> None:
    model = Case("function", [("Relu", "x", "y", {})], (1, 5), 17).model()
    model.graph.node[0].domain, model.graph.node[0].op_type = "own", "Twice"
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["c"], body, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    path = tmp_path / "function.onnx"
    onnx.save(model, path)
    assert kinds(load_model(path).network) == ["Input", "Diagonal", "Clip"]
    assert [row.operator for row in inspect_operators(path)] == ["Add", "Relu"]
