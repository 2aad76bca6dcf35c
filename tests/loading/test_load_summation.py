"""The order of onnxruntime's sums, layer by layer of a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sums import backwards

from lipcert.errors import CannotCertify
from lipcert.loading import load_model
from lipcert.loading.model import LoadedModel
from lipcert.loading.sum_probes import SummedLayer
from lipcert.loading.summation import measured
from lipcert.numbers import SumOrder, SumTree


def constants(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(3)
    return [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def saved(folder: Path, nodes: list, shape: tuple[int, ...], tensors: list, kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], kind, [1, 3])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")
    return load_model(folder / "model.onnx")


def small(folder: Path) -> LoadedModel:
    """Strides, groups, dilation, padding of unequal sides, a bias or none, Gemm and MatMul."""
    node = helper.make_node
    return saved(
        folder,
        [
            node("Conv", ["x", "w1", "b1"], ["a"], name="first", kernel_shape=[3, 3],
                 pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "w2"], ["c"], name="grouped", group=2, strides=[2, 2],
                 pads=[1, 0, 1, 2]),
            node("Conv", ["c", "w3", "b3"], ["d"], name="dilated", dilations=[2, 1]),
            node("Flatten", ["d"], ["f"]),
            node("Gemm", ["f", "w4", "b4"], ["e"], name="gemm", transB=1),
            node("Relu", ["e"], ["s"]),
            node("MatMul", ["s", "w5"], ["m"], name="matmul"),
            node("Add", ["m", "b5"], ["y"]),
        ],
        (1, 2, 8, 8),
        constants(w1=(4, 2, 3, 3), b1=(4,), w2=(6, 2, 3, 3), w3=(5, 6, 2, 2), b3=(5,),
                  w4=(9, 30), b4=(9,), w5=(9, 3), b5=(3,)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LoadedModel:
    return measured(small(tmp_path_factory.mktemp("sums")))


def test_all_layers_are_measured_and_named(model):
    assert model.summation is not None
    layers = model.summation["layers"]
    assert [one["layer"] for one in layers] == ["first", "grouped", "dilated", "gemm", "matmul"]
    assert [one["order"] for one in layers] == ["measured"] * 5
    assert [one["terms"] for one in layers] == [19, 18, 25, 31, 9]
    assert all(one["depth"] < one["terms"] for one in layers)
    assert model.summation["threads"] == model.summation["batch"] == 1
    orders = [node.order for node in model.network.nodes if node.order is not None]
    assert [order.bias for order in orders] == [True, False, True, True, False]


def test_measuring_again_finds_the_same(model, tmp_path):
    assert measured(small(tmp_path)).summation == model.summation


def layer_of(model: LoadedModel, name: str) -> tuple[SummedLayer, int]:
    content = onnx.ModelProto.FromString(model.runtime_bytes)
    [node] = [node for node in content.graph.node if node.name == name]
    given = {t.name: numpy_helper.to_array(t) for t in content.graph.initializer}
    place = next(i for i, n in enumerate(model.network.nodes) if n.origin == name and n.order)
    kind = model.network.operators[place]
    bias = given[node.input[2]] if len(node.input) > 2 else None
    layer = SummedLayer(
        node, given[node.input[1]], bias, kind.in_shape, kind.out_shape, 17, content.ir_version
    )
    return layer, place


@pytest.mark.parametrize("name", ["first", "grouped", "dilated", "gemm", "matmul"])
def test_results_are_those_of_the_order_to_the_last_bit(model, name):
    """And an order that is another one does not explain them."""
    layer, place = layer_of(model, name)
    order, operator = model.network.nodes[place].order, model.network.operators[place]
    runtime, rng = layer.alone(layer.weight, layer.bias), np.random.default_rng(1)
    other = SumOrder((SumTree(backwards(layer.terms)),), order.bias)
    seen = []
    for _ in range(8):
        x = rng.standard_normal(layer.in_shape).astype(np.float32)
        y = runtime.run(x)
        assert layer.replayed(order, operator, x, y)
        seen.append(layer.replayed(other, operator, x, y))
    assert not all(seen)


def test_results_in_fewer_bits_are_not_explained(model):
    """Probes add powers of two and small numbers, which narrower types hold; other numbers tell."""
    layer, place = layer_of(model, "gemm")
    order, operator = model.network.nodes[place].order, model.network.operators[place]
    x = np.random.default_rng(2).standard_normal(layer.in_shape).astype(np.float32)
    coarse = layer.weight.astype(np.float16).astype(np.float32)
    assert not layer.replayed(order, operator, x, layer.alone(coarse, layer.bias).run(x))
    truncated = (layer.alone(layer.weight, layer.bias).run(x).view(np.int32) & ~3).view(np.float32)
    assert not layer.replayed(order, operator, x, truncated)


def test_what_is_not_covered_stays_with_any_order(tmp_path):
    node = helper.make_node
    model = measured(
        saved(
            tmp_path,
            [
                node("Gemm", ["x", "w1", "b1"], ["a"], name="scaled", alpha=2.0),
                node("Relu", ["a"], ["r"]),
                node("Gemm", ["r", "w2"], ["y"], name="plain"),
            ],
            (1, 6), constants(w1=(6, 5), b1=(5,), w2=(5, 3)),
        )
    )  # fmt: skip
    assert model.summation is not None
    first, second = model.summation["layers"]
    assert (first["order"], second["order"]) == ("any", "measured")
    assert "alpha" in first["reason"]
    assert [node.order is not None for node in model.network.nodes if node.origin == "scaled"] == [
        False
    ] * 3


def test_files_without_measured_layers_are_refused(tmp_path):
    node, tensors = helper.make_node, constants(w=(4, 3), b=(3,))
    scaled = [node("Gemm", ["x", "w", "b"], ["y"], name="scaled", beta=0.5)]
    with pytest.raises(CannotCertify, match=r"no layer's order was found \(scaled: alpha, beta"):
        measured(saved(tmp_path, scaled, (1, 4), tensors))
    plain = [node("MatMul", ["x", "w"], ["y"])]
    wide = [numpy_helper.from_array(np.ones((4, 3)), "w")]
    with pytest.raises(CannotCertify, match="float32 alone"):
        measured(saved(tmp_path, plain, (1, 4), wide, TensorProto.DOUBLE))


def test_a_layer_with_other_numbers_than_were_read_has_no_order(tmp_path):
    model = small(tmp_path)
    content = onnx.ModelProto.FromString(model.runtime_bytes)
    for tensor in content.graph.initializer:
        if tensor.name == "w4":
            numbers = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(numbers * np.float32(1 + 1e-6), "w4"))
    found = measured(replace(model, runtime_bytes=content.SerializeToString()))
    assert found.summation is not None
    assert found.summation["layers"][3]["reason"] == "it is not read as one sum of products"


def test_products_of_a_branch_are_listed_with_any_order(tmp_path):
    def graph(nodes: list, out: str) -> onnx.GraphProto:
        shape = helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, 4])
        return helper.make_graph(nodes, out, [], [shape])

    node = helper.make_node
    branch = graph([node("MatMul", ["x", "w"], ["t"], name="inner")], "t")
    other = graph([node("Identity", ["x"], ["e"])], "e")
    model = saved(
        tmp_path,
        [
            node("If", ["c"], ["m"], name="choice", then_branch=branch, else_branch=other),
            node("MatMul", ["m", "v"], ["y"], name="outer"),
        ],
        (1, 4),
        [*constants(w=(4, 4), v=(4, 3)), numpy_helper.from_array(np.array(True), "c")],
    )
    found = measured(model)
    assert found.summation is not None
    told = [(one["layer"], one["order"]) for one in found.summation["layers"]]
    assert told == [("choice", "any"), ("outer", "measured")]
    assert [n.order is not None for n in found.network.nodes if n.origin == "inner"] == [False]
