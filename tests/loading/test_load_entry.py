"""How a file begins: its order, its input's extents and type, its batch, its branches; and the
weights that come beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file, save_model
from torch import nn

from lipcert.errors import CannotCertify, UsageError
from lipcert.loading import cross_check, inspect_operators, load_model
from lipcert.rounding import HALF
from lipcert.run import ModelSource, Preprocessing
from lipcert.run.model import open_model

F, H, U = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
N = helper.make_node


def weights(**shapes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(v).astype(np.float32) if isinstance(v, tuple) else np.asarray(v)
            for k, v in shapes.items()}  # fmt: skip


def write(
    path: Path, nodes: Sequence[Any], inits: dict[str, Any], dims: Any, *, kind: int = F,
    out: int = F, opset: int = 17, y: Any = ("a", "b"),
) -> Path:  # fmt: skip
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info("y", out, list(y))],
        [numpy_helper.from_array(v, k) for k, v in inits.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


LAYER = [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w", "b"], ["y"], transB=1)]
LAYER_WEIGHTS = weights(w=(5, 16), b=(5,))


def agrees(path: Path, shape: tuple[int, ...], **options: Any) -> Any:
    model = load_model(path, **options)
    pixels = np.random.default_rng(0).random((9, *shape)).astype(np.float32)
    cross_check(model, model.network, pixels)
    return model


def test_nodes_may_come_in_any_order(tmp_path: Path) -> None:
    nodes = [*LAYER[:1], N("Gemm", ["f", "w", "b"], ["h"], transB=1), N("Relu", ["h"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes[::-1], LAYER_WEIGHTS, ["N", 1, 4, 4])
    onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    agrees(path, (1, 1, 4, 4))
    assert [row.operator for row in inspect_operators(path)] == ["Flatten", "Gemm", "Relu"]


def test_a_circle_is_refused(tmp_path: Path) -> None:
    nodes = [N("Add", ["x", "b"], ["a"]), N("Relu", ["a"], ["b"]), N("Relu", ["b"], ["y"])]
    with pytest.raises(CannotCertify, match="not a valid ONNX model"):
        load_model(write(tmp_path / "m.onnx", nodes, {}, ["N", 4]))


POOLED = [
    N("Conv", ["x", "k"], ["c"]), N("GlobalAveragePool", ["c"], ["p"]), N("Flatten", ["p"], ["f"]),
    N("Gemm", ["f", "w"], ["y"], transB=1),
]  # fmt: skip
CONV = weights(k=(4, 3, 3, 3), w=(5, 4))


@pytest.mark.parametrize("dims", [["N", 3, "h", "w"], [None] * 4, [1, 3, None, 7]])
def test_free_height_and_width_are_those_of_the_data(tmp_path: Path, dims: Any) -> None:
    path = write(tmp_path / "m.onnx", POOLED, CONV, dims)
    model = agrees(path, (1, 3, 6, 7), input_shape=(3, 6, 7))
    assert model.network.in_shape == (1, 3, 6, 7)
    assert "those of the data: [3, 6, 7]" in model.notes[0]
    with pytest.raises(CannotCertify, match="open"):
        load_model(path)
    assert all(row.note != "after a refused node" for row in
               inspect_operators(path, input_shape=(3, 6, 7)))  # fmt: skip


def test_free_extents_follow_the_layout(tmp_path: Path) -> None:
    nodes = [N("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
             N("Conv", ["t", "k"], ["c"]), *POOLED[1:]]  # fmt: skip
    path = write(tmp_path / "m.onnx", nodes, CONV, ["N", "h", "w", 3])
    assert load_model(path, input_shape=(3, 6, 7)).network.in_shape == (1, 6, 7, 3)
    both = write(tmp_path / "b.onnx", nodes, CONV, [None] * 4)
    model = load_model(both, input_shape=(3, 6, 7), layout="HWC")
    assert model.network.in_shape == (1, 6, 7, 3)


@pytest.mark.parametrize("reshape", [False, True])
def test_a_fixed_batch_of_several(tmp_path: Path, reshape: bool) -> None:
    nodes = [N("Reshape", ["x", "s"], ["f"]), LAYER[1]] if reshape else LAYER
    inits = LAYER_WEIGHTS | ({"s": np.array([8, -1])} if reshape else {})
    path = write(tmp_path / "m.onnx", nodes, inits, [8, 1, 4, 4], y=(8, 5))
    model = agrees(path, (1, 1, 4, 4))
    assert model.any_batch
    assert "8 samples at once" in model.notes[0]


def test_a_fixed_batch_that_is_mixed_is_refused(tmp_path: Path) -> None:
    nodes = [*LAYER[:1], N("ReduceMean", ["f"], ["m"], axes=[0]), N("Sub", ["f", "m"], ["g"]),
             N("Gemm", ["g", "w", "b"], ["y"], transB=1)]  # fmt: skip
    path = write(tmp_path / "m.onnx", nodes, LAYER_WEIGHTS, [4, 1, 4, 4], y=(4, 5))
    with pytest.raises(CannotCertify, match="4 samples at once"):
        load_model(path)


def branch(axis: int, source: str, result: str) -> list[Any]:
    """As exporters write a squeeze of an extent that they do not know."""
    made = [helper.make_tensor_value_info(result + end, F, None) for end in ("t", "e")]
    then = helper.make_graph([N("Squeeze", [source, f"axis{axis}"], [result + "t"])], "t", [],
                             made[:1])  # fmt: skip
    other = helper.make_graph([N("Identity", [source], [result + "e"])], "e", [], made[1:])
    return [
        N("Shape", [source], [result + "s"]), N("Gather", [result + "s", f"axis{axis}"],
                                                [result + "g"]),
        N("Equal", [result + "g", "one"], [result + "c"]),
        N("If", [result + "c"], [result], then_branch=then, else_branch=other),
    ]  # fmt: skip


def test_a_branch_with_a_constant_condition_is_taken(tmp_path: Path) -> None:
    nodes = [*POOLED[:2], *branch(3, "p", "q"), *branch(2, "q", "z"),
             N("Gemm", ["z", "w"], ["y"], transB=1)]  # fmt: skip
    inits = CONV | {f"axis{k}": np.array([k]) for k in (2, 3)} | {"one": np.array([1])}
    path = write(tmp_path / "m.onnx", nodes, inits, ["N", 3, 5, 5])
    assert agrees(path, (1, 3, 5, 5)).any_batch


def test_a_branch_by_the_number_of_samples_is_refused(tmp_path: Path) -> None:
    """One sample is squeezed and scaled, two are not: no certificate would hold beside another."""
    made = [helper.make_tensor_value_info(name, F, None) for name in ("t", "e")]
    nodes = [
        *LAYER[:1], N("Gemm", ["f", "w", "b"], ["h"], transB=1), N("Shape", ["h"], ["s"]),
        N("Gather", ["s", "zero"], ["g"]), N("Equal", ["g", "one"], ["c"]),
        N("If", ["c"], ["y"],
          then_branch=helper.make_graph([N("Neg", ["h"], ["t"])], "t", [], made[:1]),
          else_branch=helper.make_graph([N("Identity", ["h"], ["e"])], "e", [], made[1:])),
    ]  # fmt: skip
    inits = LAYER_WEIGHTS | {"zero": np.array([0]), "one": np.array([1])}
    path = write(tmp_path / "m.onnx", nodes, inits, ["N", 1, 4, 4])
    with pytest.raises(CannotCertify, match="how many samples"):
        load_model(path)


def test_a_branch_by_a_value_is_refused(tmp_path: Path) -> None:
    made = [helper.make_tensor_value_info(name, F, None) for name in ("t", "e")]
    nodes = [
        N("ReduceSum", ["x"], ["r"], keepdims=0), N("Greater", ["r", "zero"], ["c"]),
        *LAYER[:1], N("Gemm", ["f", "w", "b"], ["h"], transB=1),
        N("If", ["c"], ["y"],
          then_branch=helper.make_graph([N("Neg", ["h"], ["t"])], "t", [], made[:1]),
          else_branch=helper.make_graph([N("Identity", ["h"], ["e"])], "e", [], made[1:])),
    ]  # fmt: skip
    inits = LAYER_WEIGHTS | {"zero": np.float32(0)}
    with pytest.raises(CannotCertify, match=r"1 obstacle.*\n.*If-16 at y: its branch depends on"):
        load_model(write(tmp_path / "m.onnx", nodes, inits, [1, 1, 4, 4]))


@pytest.mark.parametrize("axis", [None, 0])
def test_weights_that_are_stored_as_whole_numbers(tmp_path: Path, axis: int | None) -> None:
    rng = np.random.default_rng(0)
    scale = rng.random(() if axis is None else 5).astype(np.float32)
    zero = np.zeros(scale.shape, np.int8)
    nodes = [N("DequantizeLinear", ["q", "s", "z"], ["w"], **({} if axis is None else {"axis": 0})),
             *LAYER]  # fmt: skip
    inits = {"q": rng.integers(-128, 128, (5, 16)).astype(np.int8), "s": scale, "z": zero,
             "b": LAYER_WEIGHTS["b"]}  # fmt: skip
    agrees(write(tmp_path / "m.onnx", nodes, inits, ["N", 1, 4, 4]), (1, 1, 4, 4))


def test_whole_numbers_are_certified_as_real_ones(tmp_path: Path) -> None:
    nodes = [N("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), N("Cast", ["t"], ["c"], to=F),
             N("Div", ["c", "most"], ["d"]), N("Flatten", ["d"], ["f"]), LAYER[1]]  # fmt: skip
    inits = LAYER_WEIGHTS | {"most": np.float32(255)}
    path = write(tmp_path / "m.onnx", nodes, inits, ["N", 4, 4, 1], kind=U)
    model = open_model(ModelSource(path), Preprocessing())
    assert model.loaded.whole
    assert "uint8" in model.loaded.notes[0]
    assert model.preprocessing.value_range == (0.0, 255.0)
    network = model.on_images((1, 4, 4))
    pixels = np.random.default_rng(0).integers(0, 256, (7, 1, 4, 4)).astype(np.float32) / 255
    cross_check(model.loaded, network, pixels)
    # What the original file itself says of the same pixels.
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    whole = np.round(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    [theirs] = session.run(None, {"x": whole})
    ours = network.logits(torch.from_numpy(pixels).double()).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["Add", "Max"])
def test_arithmetic_in_whole_numbers_is_refused(tmp_path: Path, kind: str) -> None:
    nodes = [N(kind, ["x", "x"], ["t"]), N("Cast", ["t"], ["c"], to=F), N("Flatten", ["c"], ["f"]),
             LAYER[1]]  # fmt: skip
    path = write(tmp_path / "m.onnx", nodes, LAYER_WEIGHTS, ["N", 1, 4, 4], kind=U)
    with pytest.raises(CannotCertify, match="has type UINT8"):
        load_model(path)


HALVES = {k: v.astype(np.float16) for k, v in LAYER_WEIGHTS.items()}


@pytest.mark.parametrize("way", ["inside", "all", "weights"])
def test_float16(tmp_path: Path, way: str) -> None:
    core = [N("Flatten", ["h"], ["f"]), N("Gemm", ["f", "w", "b"], ["o"], transB=1)]
    ends = {
        "inside": [N("Cast", ["x"], ["h"], to=H), *core, N("Cast", ["o"], ["y"], to=F)],
        "all": [N("Identity", ["x"], ["h"]), *core, N("Identity", ["o"], ["y"])],
        "weights": [*(N("Cast", [k + "h"], [k], to=F) for k in HALVES), *LAYER],
    }
    inits = {k + "h": v for k, v in HALVES.items()} if way == "weights" else HALVES
    kind = H if way == "all" else F
    path = write(tmp_path / "m.onnx", ends[way], inits, ["N", 1, 4, 4], kind=kind, out=kind)
    model = agrees(path, (1, 1, 4, 4))
    formats = {node.format for node in model.network.nodes}
    # What the file computes in 16 bits is charged there, whatever is deployed; weights that are
    # only stored so are exact.
    assert (HALF in formats) == (way != "weights")
    assert any("float16" in note for note in model.notes) == (way != "weights")
    assert model.half == (way == "all")
    if way == "all":
        assert {node.format for node in model.network.nodes} == {HALF}


def test_a_wrong_reading_of_float16_is_found(tmp_path: Path) -> None:
    nodes = [
        N("Cast", ["x"], ["h"], to=H), N("Flatten", ["h"], ["f"]),
        N("Gemm", ["f", "w", "b"], ["o"], transB=1), N("Cast", ["o"], ["y"], to=F),
    ]  # fmt: skip
    path = write(tmp_path / "m.onnx", nodes, HALVES, ["N", 1, 4, 4])
    other = write(
        tmp_path / "o.onnx", nodes, HALVES | {"w": HALVES["w"] * np.float16(1.1)}, ["N", 1, 4, 4]
    )
    pixels = np.random.default_rng(0).random((9, 1, 1, 4, 4)).astype(np.float32)
    with pytest.raises(CannotCertify, match="differ"):
        cross_check(load_model(path), load_model(other).network, pixels)


# Weights -------------------------------------------------------------------------------------

NETS = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 5))
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import importlib
    import sys

    (tmp_path / "entry_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("entry_nets", None)
    yield importlib.import_module("entry_nets")
    sys.modules.pop("entry_nets", None)


def trained(net: nn.Module) -> nn.Module:
    torch.manual_seed(7)
    for parameter in net.parameters():
        parameter.data = torch.randn_like(parameter)
    return net.eval()


def same(path: Path, net: nn.Module, factory: str = "net", tolerance: float = 1e-5) -> None:
    model = load_model(path, arch=f"entry_nets:{factory}", input_shape=(1, 4, 4))
    x = torch.rand(5, 1, 4, 4)
    with torch.no_grad():
        wanted = net(x).double()
    assert torch.allclose(model.network.logits(x.double()), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers(tmp_path: Path, nets: Any, prefix: str) -> None:
    net = trained(nets.net())
    path = tmp_path / "w.safetensors"
    save_file({prefix + k: v for k, v in net.state_dict().items()}, path)
    same(path, net)


def test_a_prefix_that_only_some_have_stays(tmp_path: Path, nets: Any) -> None:
    state = trained(nets.net()).state_dict()
    names = [("module." if k.startswith("1") else "") + k for k in state]
    save_file(dict(zip(names, state.values(), strict=True)), tmp_path / "w.safetensors")
    with pytest.raises(CannotCertify, match=r"not a parameter of the model: 'module\.1"):
        load_model(tmp_path / "w.safetensors", arch="entry_nets:net", input_shape=(1, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_widened(tmp_path: Path, nets: Any, dtype: torch.dtype) -> None:
    net = trained(nets.net()).to(dtype)
    path = tmp_path / "w.safetensors"
    save_file(net.state_dict(), path)
    same(path, net.float())


def test_wide_weights_are_not_narrowed(tmp_path: Path, nets: Any) -> None:
    path = tmp_path / "w.safetensors"
    save_file(trained(nets.net()).double().state_dict(), path)
    with pytest.raises(CannotCertify, match="float64"):
        load_model(path, arch="entry_nets:net", input_shape=(1, 4, 4))


def test_tied_weights_of_which_one_is_stored(tmp_path: Path, nets: Any) -> None:
    net = trained(nets.Tied())
    path = tmp_path / "w.safetensors"
    save_model(net, str(path))
    same(path, net, "Tied")


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_of_torch(tmp_path: Path, nets: Any, key: str | None) -> None:
    net = trained(nets.net())
    state = net.state_dict()
    path = tmp_path / "w.pt"
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    same(path, net)


def test_nothing_that_runs_is_unpickled(tmp_path: Path, nets: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    for name, value in {"module.pt": trained(nets.net()), "evil.pt": {"w": Evil()}}.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(CannotCertify, match="more than a state dict"):
            load_model(tmp_path / name, arch="entry_nets:net", input_shape=(1, 4, 4))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UsageError, match="state dict"):
        load_model(tmp_path / "module.pt")


WHOLE = np.round(127 * LAYER_WEIGHTS["w"] / np.abs(LAYER_WEIGHTS["w"]).max()).astype(np.int8)
SCALE = np.float32(np.abs(LAYER_WEIGHTS["w"]).max() / 127)
ROWS = (np.abs(LAYER_WEIGHTS["w"]).max(1) / 127).astype(np.float32)
STORED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int]] = {
    "a row each": ([N("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0)],
                   {"q": WHOLE, "s": ROWS, "z": np.zeros(len(ROWS), np.int8)}, 17),
    "a column each": ([N("DequantizeLinear", ["q", "s"], ["w"], axis=-1)],
                      {"q": WHOLE, "s": np.full(WHOLE.shape[1], SCALE)}, 17),
    "unsigned": ([N("DequantizeLinear", ["q", "s", "z"], ["w"])],
                 {"q": (WHOLE.astype(int) + 128).astype(np.uint8), "s": SCALE, "z": np.uint8(128)},
                 17),
    "in blocks": ([N("DequantizeLinear", ["q", "s"], ["w"], axis=1, block_size=4)],
                  {"q": WHOLE, "s": np.full((len(ROWS), WHOLE.shape[1] // 4), SCALE)}, 21),
    "rounded in the file": ([N("QuantizeLinear", ["v", "s", "z"], ["q"]),
                             N("DequantizeLinear", ["q", "s", "z"], ["w"])],
                            {"v": LAYER_WEIGHTS["w"], "s": SCALE, "z": np.int8(0)}, 17),
    "in 4 bits": ([N("DequantizeLinear", ["q", "s"], ["w"])],
                  {"q": (WHOLE // 16).astype(ml_dtypes.int4), "s": np.float32(16 * SCALE)}, 21),
}  # fmt: skip


@pytest.mark.parametrize("stored", STORED)
def test_weights_in_fewer_bits_are_the_numbers_that_they_stand_for(
    tmp_path: Path, stored: str
) -> None:
    nodes, inits, version = STORED[stored]
    given = {"b": LAYER_WEIGHTS["b"]} | inits
    layer = [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w", "b"], ["y"], transB=1)]
    path = write(tmp_path / "m.onnx", [*nodes, *layer], given, ["N", 1, 4, 4], opset=version)
    agrees(path, (1, 1, 4, 4))


def test_values_in_whole_numbers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """As onnxruntime's static quantisation writes them, in both of its formats."""
    quantised = N("QuantizeLinear", ["f", "s", "z"], ["q"])
    given = {"s": np.float32(0.01), "z": np.uint8(0)}
    for name, nodes, more in (
        ("qdq", [N("DequantizeLinear", ["q", "s", "z"], ["d"]),
                 N("Gemm", ["d", "w", "b"], ["y"], transB=1)], LAYER_WEIGHTS),
        ("integers", [N("MatMulInteger", ["q", "i"], ["m"]), N("Cast", ["m"], ["y"], to=1)],
         {"i": WHOLE.T.copy()}),
    ):  # fmt: skip
        layers = [N("Flatten", ["x"], ["f"]), quantised, *nodes]
        path = write(tmp_path / f"{name}.onnx", layers, given | more, ["N", 1, 4, 4])
        with pytest.raises(CannotCertify, match="the file was quantised from, which says nothing"):
            load_model(path)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("nested", [True, False])
def test_a_condition_that_is_stored_is_taken(
    tmp_path: Path, shape: tuple[int, ...], nested: bool, free: bool
) -> None:
    def graph(nodes: list[onnx.NodeProto], out: str) -> onnx.GraphProto:
        return helper.make_graph(nodes, out, [], [helper.make_tensor_value_info(out, F, None)])

    yes, no = graph([N("Relu", ["h"], ["t"])], "t"), graph([N("Neg", ["h"], ["e"])], "e")
    taken = N("If", ["c"], ["i"], then_branch=yes, else_branch=no)
    if nested:
        yes = graph([taken], "i")
    nodes = [
        N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w", "b"], ["h"], transB=1),
        N("If", ["c"], ["y"], then_branch=yes, else_branch=no),
    ]  # fmt: skip
    inits = LAYER_WEIGHTS | {"c": np.full(shape, True)}
    path = write(tmp_path / "m.onnx", nodes, inits, ["N" if free else 1, 1, 4, 4])
    assert [type(n.kind).__name__ for n in agrees(path, (1, 1, 4, 4)).network.nodes][-1] == "Clip"
