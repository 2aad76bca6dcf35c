"""Small files that ask for all memory or for hours: refused by what they would take, in time."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from load_models import FLOAT, Case, assert_agrees
from onnx import helper, numpy_helper

from lipcert.errors import CannotCertify
from lipcert.loading import cross_check, load_model
from lipcert.loading.allowance import GraphLimits, TooLarge
from lipcert.loading.fold import FOLDABLE, evaluate, result_size, work

BIG = 2**15


def written(
    folder: Path,
    nodes: Any,
    inits: dict[str, Any] | None = None,
    shape: tuple[int, ...] = (1, 1, 1, 1),
    outputs: str = "y",
    rank: int = 4,
) -> Path:
    """Written without a run, which is what must not happen."""
    graph = helper.make_graph(
        [
            helper.make_node(k, i.split(), o.split(), f"node{n}", **a)
            for n, (k, i, o, a) in enumerate(nodes)
        ],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, FLOAT, [f"{name}{k}" for k in range(rank)])
            for name in outputs.split()
        ],
        [numpy_helper.from_array(value, key) for key, value in (inits or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "bomb.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, node: str, reason: str = "pass the limit of") -> None:
    start = time.monotonic()
    with pytest.raises(CannotCertify) as refusal:
        load_model(path)
    assert time.monotonic() - start < 20
    told = str(refusal.value)
    assert told.startswith("bomb.onnx")
    assert node in told
    assert reason in told
    assert "shrink the model" in told


WIDE = {"kernel_shape": [BIG, BIG], "pads": [BIG - 1, BIG - 1, 0, 0]}


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("AveragePool", WIDE | {"count_include_pad": 1}),
        ("AveragePool", WIDE | {"strides": [BIG, BIG]}),
        ("AveragePool", {"kernel_shape": [1, 1], "pads": [BIG] * 4, "count_include_pad": 1}),
        ("MaxPool", WIDE),
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "dilations": [BIG, BIG]}),
        ("AveragePool", {"kernel_shape": [2**30, 1], "pads": [2**30 - 1, 0, 0, 0]}),
    ],
)
def test_pooling_kernels(tmp_path: Path, kind: str, attributes: dict[str, Any]) -> None:
    path = written(tmp_path, [(kind, "x", "y", attributes)])
    assert path.stat().st_size < 320
    try:
        refused(path, f"{kind}-")
    except AssertionError:
        # The checker finds windows that begin beyond their padding by itself.
        with pytest.raises(CannotCertify, match=r"does not fit|padding alone|pads"):
            load_model(path)


ONES = np.ones(1, np.float32)
SIDE = np.array([8000, 8000])


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_products_of_constants(tmp_path: Path, kind: str) -> None:
    nodes = [
        ("ConstantOfShape", "n", "a", {}),
        (kind, "a a", "b", {}),
        ("ReduceMax", "b", "m", {"keepdims": 0}),
        ("Add", "x m", "y", {}),
    ]
    refused(written(tmp_path, nodes, {"n": SIDE}), "at node1", "folding the graph's constants")


def test_many_small_products_of_constants_add_up(tmp_path: Path) -> None:
    nodes: Any = [("MatMul", f"a{k} a{k}", f"a{k + 1}", {}) for k in range(200)]
    nodes += [("ReduceMax", "a200", "m", {"keepdims": 0}), ("Add", "x m", "y", {})]
    side = np.zeros((512, 512), np.float32)
    refused(written(tmp_path, nodes, {"a0": side}), "MatMul-", "folding the graph's constants")


def test_a_weight_that_is_used_a_thousand_times(tmp_path: Path) -> None:
    names = ["x", *(f"v{k}" for k in range(1000)), "y"]
    nodes = [("MatMul", f"{i} w", o, {}) for i, o in pairwise(names)]
    weight = np.zeros((1024, 1024), np.float32)
    refused(written(tmp_path, nodes, {"w": weight}, (1, 1024), rank=2), "MatMul-")


EMPTY = np.zeros((0, 2**30), np.float32)


@pytest.mark.parametrize(
    ("nodes", "inits"),
    [
        # A sum of no numbers is one, for every place beside them.
        ([("ReduceSum", "e", "c", {"keepdims": 0})], {"e": EMPTY}),
        # Indices without a place choose everything.
        (
            [("GatherND", "o i", "c", {})],
            {"o": np.ones(2, np.float32), "i": np.zeros((2**30, 0), np.int64)},
        ),
    ],
)
def test_extents_that_hide_a_size(tmp_path: Path, nodes: Any, inits: dict[str, Any]) -> None:
    axes: Any = {"z": np.array([0])}
    if nodes[0][0] == "ReduceSum":
        nodes = [("ReduceSum", "e z", "c", {"keepdims": 0})]
    used = [*nodes, ("ReduceMax", "c", "m", {"keepdims": 0}), ("Add", "x m", "y", {})]
    refused(written(tmp_path, used, inits | axes), "at node")


def test_negative_sizes_give_nothing_back() -> None:
    for kind, arrays in (
        ("ConstantOfShape", [np.array([-4, 4])]),
        ("Tile", [np.ones((1, 1)), np.array([-2, -2])]),
    ):
        with pytest.raises(TooLarge, match="negative"):
            result_size(kind, {}, arrays)
    allowance = GraphLimits(numbers=8)
    for charge in (allowance.keep, allowance.borrow, allowance.move, allowance.fold, allowance.run):
        with pytest.raises(TooLarge):
            charge(-1)
    assert allowance.numbers == 8


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        # A maximum of many becomes matrices of all pairs.
        ([("ReduceMax", "x", "y", {"axes": [1], "keepdims": 0})], (1, 10**6)),
        ([("GlobalMaxPool", "x", "y", {})], (1, 1, 1000, 1000)),
        ([("MaxPool", "x", "y", {"kernel_shape": [700, 700]})], (1, 1, 700, 700)),
    ],
)
def test_maxima_of_many(tmp_path: Path, nodes: Any, shape: tuple[int, ...]) -> None:
    rank = len(shape) - (nodes[0][0] == "ReduceMax")
    refused(written(tmp_path, nodes, shape=shape, rank=rank), nodes[0][0])


def test_more_classes_than_margins_have_room_for(tmp_path: Path) -> None:
    path = written(tmp_path, [("Relu", "x", "y", {})], shape=(1, 2**16), rank=2)
    with pytest.raises(CannotCertify, match="65536 values, more than the 16384 classes"):
        load_model(path)


def test_a_scale_that_does_not_fit_is_not_broadcast(tmp_path: Path) -> None:
    side = 2**14
    tensors = {name: np.ones(side, np.float32) for name in ("g", "b", "m", "v")}
    nodes = [("BatchNormalization", "x g b m v", "y", {})]
    with pytest.raises(CannotCertify):
        load_model(written(tmp_path, nodes, tensors, (1, 1, side), rank=3))


def test_what_the_output_does_not_need_is_never_run(tmp_path: Path) -> None:
    """onnxruntime computes every node of a file, and so takes 64 GiB here."""
    nodes = [
        ("Relu", "x", "y", {}),
        ("ConstantOfShape", "n", "c", {}),
        ("ReduceMax", "c", "z", {"keepdims": 0}),
    ]
    n = np.array([2**17, 2**17])
    path = written(tmp_path, nodes, {"n": n}, (1, 3), "y", rank=2)
    code = f"""
import resource
import numpy as np
from pathlib import Path
from lipcert.loading import cross_check, load_model
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (4 << 30),) * 2)
model = load_model(Path({str(path)!r}))
check = cross_check(model, model.network, np.random.rand(4, 1, 3).astype(np.float32))
print(check.max_relative_difference)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0


def test_the_part_that_is_run_is_the_output_that_was_named(tmp_path: Path) -> None:
    nodes = [("Relu", "x", "y", {}), ("Neg", "x", "n", {}), ("Neg", "n", "z", {})]
    path = written(tmp_path, nodes, shape=(1, 3), outputs="y z", rank=2)
    for output, kept in (("y", 1), ("z", 2)):
        model = load_model(path, output=output)
        part = onnx.ModelProto.FromString(model.runtime_bytes)
        assert len(part.graph.node) == kept
        assert [value.name for value in part.graph.output] == [output]
        x = np.random.default_rng(0).standard_normal((4, 1, 3)).astype(np.float32)
        assert cross_check(model, model.network, x).max_relative_difference < 1e-6


def test_every_operator_that_folds_says_how_much() -> None:
    """For each of them: no result is larger than was said, with no number too many refused."""
    for name, arrays, attributes in RESULTS:
        node = helper.make_node(name, [f"i{k}" for k in range(len(arrays))], ["o"], **attributes)
        said = result_size(name, attributes, arrays)
        results = evaluate(node, 17, arrays, attributes, GraphLimits())
        assert sum(result.size for result in results) <= said, name
        with pytest.raises(TooLarge):
            evaluate(node, 17, arrays, attributes, GraphLimits(numbers=said - 1))
        steps = work(name, attributes, arrays) - 1
        with pytest.raises(TooLarge):
            evaluate(node, 17, arrays, attributes, GraphLimits(folding=steps))
    with pytest.raises(TooLarge, match="before Einsum is computed"):
        result_size("Einsum", {}, [np.ones(2)])
    assert "Einsum" not in FOLDABLE


F = np.arange(12, dtype=np.float32).reshape(3, 4)
RESULTS: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Add", [F, F[:1]], {}),
    ("Concat", [F, F], {"axis": 0}),
    ("ConstantOfShape", [np.array([3, 5])], {}),
    ("Dropout", [F], {}),
    ("Erf", [F], {}),
    ("Expand", [F[:, :1], np.array([3, 7])], {}),
    ("Gather", [F, np.array([0, 0, 1, 2, 2])], {"axis": 0}),
    ("GatherND", [F, np.array([[0], [2], [1], [0]])], {}),
    ("Gemm", [F, F], {"transB": 1}),
    ("MatMul", [F, F.T.copy()], {}),
    ("Pad", [F, np.array([1, 2, 3, 4])], {}),
    ("Range", [np.float32(0), np.float32(7), np.float32(2)], {}),
    ("ReduceSum", [F[:0], np.array([0])], {"keepdims": 0}),
    ("Shape", [F], {}),
    ("Tile", [F, np.array([2, 3])], {}),
    ("Transpose", [F], {"perm": [1, 0]}),
]


def test_ordinary_networks_load_as_before() -> None:
    conv = Case(
        "conv",
        [
            ("Conv", "x w b", "c", {"pads": [1, 1, 1, 1]}),
            ("AveragePool", "c", "a", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("MaxPool", "a", "p", {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}),
            ("Flatten", "p", "f", {}),
            ("Gemm", "f g", "y", {"transB": 1}),
        ],
        (1, 3, 32, 32),
        17,
        {"w": (8, 3, 3, 3), "b": (8,), "g": (5, 8 * 16 * 16)},
    )
    assert_agrees(conv.model(FLOAT), 1e-4)
