"""Files that nobody vouches for: refused with one error, never a crash, a hang or a lie."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from loading.load_models import FLOAT, Case
from onnx import TensorProto, helper, numpy_helper

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import inspect_operators, load_model

SMALL = Case(
    "small",
    [
        ("Conv", "x w b", "c", {"pads": [1, 1, 1, 1]}),
        ("MaxPool", "c", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Relu", "p", "r", {}),
        ("Reshape", "r s", "f", {}),
        ("Gemm", "f g", "y", {"transB": 1}),
    ],
    (1, 1, 4, 4),
    17,
    {"w": (2, 1, 3, 3), "b": (2,), "s": np.array([-1, 8]), "g": (3, 8)},
)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, reason: str = "model.onnx") -> str:
    start = time.monotonic()
    with pytest.raises(CannotCertify, match=reason) as refusal:
        load_model(path)
    assert time.monotonic() - start < 20
    assert "model.onnx" in str(refusal.value)
    return str(refusal.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = SMALL.model().SerializeToString()
    path = tmp_path / "model.onnx"
    for size in range(0, len(content) - 1, 7):
        path.write_bytes(content[:size])
        assert "\n" not in refused(path)


def test_changed_bytes_load_or_are_refused(tmp_path: Path) -> None:
    content = SMALL.model().SerializeToString()
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(bytes(changed))
        try:
            load_model(path)
            outcomes.add("loaded")
        except (CannotCertify, UsageError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes >= {"loaded", "CannotCertify"}


def test_no_model_is_a_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="not a file"):
        load_model(tmp_path)
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="never a pickle"):
        load_model(pickled)


def test_a_file_beyond_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**31)
    refused(path, "larger than 2 GiB")


def lie(of: str, **changes: Any) -> onnx.ModelProto:
    model = SMALL.model()
    [tensor] = [t for t in model.graph.initializer if t.name == of]
    for key, value in changes.items():
        if key == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, key, value)
    return model


NAN = np.full((2,), np.nan, dtype=np.float32).tobytes()
INFINITE = np.full((2,), np.inf, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lie("g", dims=[3, 9]), "'g'"),
        (lie("g", dims=[3, 2**40]), "'g' .*too little data"),
        (lie("g", dims=[-3, -8]), "'g' has negative extents"),
        (lie("g", raw_data=b"123"), "'g'"),
        (lie("g", data_type=TensorProto.INT32), "model.onnx"),
        (lie("g", data_type=99), "'g'"),
        (lie("g", data_type=TensorProto.STRING), "model.onnx"),
        (lie("b", raw_data=NAN), "'b' holds NaN"),
        (lie("b", raw_data=INFINITE), "'b' has values that are not finite"),
        (lie("s", name="b"), "model.onnx"),
    ],
)
def test_lying_tensors_are_refused(model: onnx.ModelProto, reason: str, tmp_path: Path) -> None:
    refused(save(model, tmp_path), reason)


def test_broken_graphs_are_refused(tmp_path: Path) -> None:
    cyclic = SMALL.model()
    cyclic.graph.node[0].input[0] = "r"
    refused(save(cyclic, tmp_path))
    doubled = SMALL.model()
    doubled.graph.node[1].output[0] = "c"
    refused(save(doubled, tmp_path))
    dangling = SMALL.model()
    dangling.graph.node[2].input[0] = "nowhere"
    refused(save(dangling, tmp_path))
    unknown = SMALL.model()
    unknown.graph.node[2].op_type = "Rleu"
    refused(save(unknown, tmp_path), "Rleu")
    for version in (6, 99):
        old = SMALL.model()
        old.opset_import[0].version = version
        refused(save(old, tmp_path))


def test_sparse_initializers_are_refused(tmp_path: Path) -> None:
    model = SMALL.model()
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    refused(save(model, tmp_path), "sparse")


def external(folder: Path, **entries: str | None) -> Path:
    """The model with its tensor ``g`` in ``weights.bin``, its entries changed."""
    model = SMALL.model()
    [tensor] = [t for t in model.graph.initializer if t.name == "g"]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    told = {"location": "weights.bin", "offset": "0", "length": str(len(tensor.raw_data))} | entries
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in told.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return save(model, folder)


def test_external_data_is_read_and_named(tmp_path: Path) -> None:
    loaded = load_model(external(tmp_path))
    assert set(loaded.files) == {"model.onnx", "weights.bin"}
    assert not any(
        t.external_data for t in onnx.ModelProto.FromString(loaded.runtime_bytes).graph.initializer
    )
    plain = load_model(external(tmp_path, length=None, offset=None))
    assert plain.runtime_bytes == loaded.runtime_bytes


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "../weights.bin"}, "outside its folder"),
        ({"location": "/etc/hostname"}, "outside its folder"),
        ({"location": "sub/../weights.bin"}, "outside its folder"),
        ({"location": ""}, "outside its folder"),
        ({"location": "gone.bin"}, "is missing"),
        ({"location": "."}, "is missing"),
        ({"offset": "8"}, "ends before"),
        ({"offset": "-8"}, "does not take"),
        ({"offset": "eight"}, "eight"),
        ({"length": "92"}, "does not take 92 bytes"),
    ],
)
def test_external_data_that_does_not_fit_is_refused(
    entries: dict[str, str], reason: str, tmp_path: Path
) -> None:
    refused(external(tmp_path, **entries), reason)


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external(inner)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    (inner / "weights.bin").symlink_to(tmp_path / "weights.bin")
    refused(path, "outside its folder")


def test_external_data_outside_the_initializers_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="c", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    model = Case("const", [("Relu", "x", "y", {})], (1, 5)).model()
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))
    refused(save(model, tmp_path), "external data outside")


BIG = 2**20
GROWTH: dict[str, Any] = {
    "ConstantOfShape": ([("ConstantOfShape", "n", "c", {})], {"n": np.array([BIG, BIG])}),
    "Expand": ([("Expand", "o n", "c", {})], {"o": np.ones(1), "n": np.array([BIG, BIG])}),
    "Tile": ([("Tile", "o n", "c", {})], {"o": np.ones((2, 2)), "n": np.array([BIG, BIG])}),
    "Range": (
        [("Range", "a b s", "c", {})],
        {"a": np.array(0.0), "b": np.array(1e12), "s": np.array(1.0)},
    ),
    "Pad": ([("Pad", "o n", "c", {})], {"o": np.ones((1, 1)), "n": np.array([0, 0, BIG, BIG])}),
    "outer": ([("Add", "a b", "c", {})], {"a": np.ones((BIG, 1)), "b": np.ones((1, BIG))}),
    "MatMul": ([("MatMul", "a b", "c", {})], {"a": np.ones((BIG, 1)), "b": np.ones((1, BIG))}),
    "Gather": (
        [("Gather", "a b", "c", {"axis": 1})],
        {"a": np.ones((BIG, 1)), "b": np.zeros(BIG, np.int64)},
    ),
}


@pytest.mark.parametrize("name", GROWTH)
def test_small_files_cannot_ask_for_all_memory(name: str, tmp_path: Path) -> None:
    nodes, inits = GROWTH[name]
    used: Any = [*nodes, ("ReduceMax", "c", "m", {"keepdims": 0}), ("Add", "x m", "y", {})]
    model = growing(used, inits)
    refused(save(model, tmp_path), "pass the limit of")


def growing(nodes: Any, inits: dict[str, Any]) -> onnx.ModelProto:
    """Written without a run, which is what must not happen."""
    tensors = [
        numpy_helper.from_array(v.astype(np.float32) if v.dtype.kind == "f" else v, k)
        for k, v in inits.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(k, i.split(), o.split(), **a) for k, i, o, a in nodes],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", FLOAT, ["a", "b"])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("nodes", "inits"),
    [
        ([("Expand", "x n", "y", {})], {"n": np.array([BIG, BIG])}),
        ([("Tile", "x n", "y", {})], {"n": np.array([BIG, BIG])}),
        ([("Pad", "x n", "y", {})], {"n": np.array([BIG, BIG, 0, 0])}),
        ([("Add", "x c", "y", {})], {"c": np.ones((0, 1))}),
    ],
)
def test_nor_can_values_of_the_network(nodes: Any, inits: dict[str, Any], tmp_path: Path) -> None:
    refused(save(growing(nodes, inits), tmp_path), r"pass the limit of|empty|malformed")


def test_a_convolution_cannot_grow_without_bound(tmp_path: Path) -> None:
    model = SMALL.model()
    for attribute in model.graph.node[0].attribute:
        attribute.ints[:] = [BIG] * 4
    del model.graph.node[4:], model.graph.node[1:3]
    refused(save(model, tmp_path))


def test_functions_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    model = Case("bomb", [("Relu", "x", "y", {})], (1, 5)).model()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.opset_import.append(imports[1])
    model.graph.node[0].domain, model.graph.node[0].op_type = "own", "f40"
    for level in range(41):
        below = ("Relu", "") if level == 0 else (f"f{level - 1}", "own")
        body = [
            helper.make_node(below[0], ["a"], ["b"], domain=below[1]),
            helper.make_node(below[0], ["b"], ["c"], domain=below[1]),
        ]
        model.functions.append(
            helper.make_function("own", f"f{level}", ["a"], ["c"], body, imports)
        )
    refused(save(model, tmp_path), "more than")
    model.functions[0].node[0].domain, model.functions[0].node[0].op_type = "own", "f40"
    refused(save(model, tmp_path), "calls itself")


def test_a_huge_input_is_refused(tmp_path: Path) -> None:
    model = growing([("Relu", "x", "y", {})], {})
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 2**40
    path = save(model, tmp_path)
    refused(path, "pass the limit of")
    with pytest.raises(CannotCertify, match="pass the limit of"):
        inspect_operators(path)


def test_a_long_chain_is_read_in_time(tmp_path: Path) -> None:
    nodes: Any = [("Identity", f"v{k}" if k else "x", f"v{k + 1}", {}) for k in range(2000)]
    nodes.append(("Relu", "v2000", "y", {}))
    start = time.monotonic()
    load_model(save(growing(nodes, {}), tmp_path))
    assert time.monotonic() - start < 20
