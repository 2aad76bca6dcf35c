"""Activations that exporters write out as several operators, and what torch exports."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from load_models import DOUBLE, Case, assert_agrees, network, reading
from onnx import TensorProto
from torch import Tensor, nn

from lipcert.network import Network, simplify
from lipcert.network.activations import Activation

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = (1, 40)
CUBIC, FACTOR = np.array(0.044715), np.array(math.sqrt(2 / math.pi))
ONE, HALF, TWO, THREE = np.array(1.0), np.array(0.5), np.array(2.0), np.array(3.0)


def written(name: str, *lines: str, opset: int = 17, **inits: Any) -> Case:
    """Lines ``y = Mul a b`` as a graph."""
    nodes = []
    for line in lines:
        output, operator, *inputs = line.replace(" = ", " ").split(" ")
        nodes.append((operator, " ".join(inputs), output, {}))
    return Case(name, nodes, SHAPE, opset, inits)


ROOT_TWO = np.array(math.sqrt(2))
TANH = ("t = Tanh i", "o = Add t one")
CASES: list[tuple[Case, str]] = [
    (written("gelu", "d = Div x r", "e = Erf d", "a = Add e one", "m = Mul x a", "y = Mul m h",
             r=ROOT_TWO, one=ONE, h=HALF), "Gelu"),
    (written("gelu, half first", "h = Mul x half", "d = Mul x s", "e = Erf d", "a = Add one e",
             "y = Mul h a", s=np.array(math.sqrt(0.5)), one=ONE, half=HALF), "Gelu"),
    (written("gelu, expanded", "h = Mul x half", "d = Div x r", "e = Erf d", "m = Mul e h",
             "y = Add m h", r=ROOT_TWO, half=HALF), "Gelu"),
    (written("gelu, half inside", "d = Div x r", "e = Erf d", "a = Add e one", "b = Div a two",
             "y = Mul b x", r=ROOT_TWO, one=ONE, two=TWO), "Gelu"),
    (written("gelu of minus x", "d = Div x r", "e = Erf d", "a = Sub one e", "m = Mul x a",
             "y = Mul m h", r=ROOT_TWO, one=ONE, h=HALF), "Gelu"),
    (written("gelu of a multiple", "z = Mul x k", "d = Div z r", "e = Erf d", "a = Add e one",
             "m = Mul z a", "y = Mul m h", k=np.array(1.7), r=ROOT_TWO, one=ONE, h=HALF), "Gelu"),
    (written("gelu tanh, power", "p = Pow x three", "c = Mul p k", "s = Add x c", "i = Mul s f",
             *TANH, "h = Mul x half", "y = Mul h o", k=CUBIC, f=FACTOR, half=HALF, one=ONE,
             three=THREE), "GeluTanh"),
    (written("gelu tanh, products", "q = Mul x x", "p = Mul x q", "c = Mul k p", "s = Add x c",
             "i = Mul f s", *TANH, "g = Mul x o", "y = Mul half g", k=CUBIC, f=FACTOR, half=HALF,
             one=ONE), "GeluTanh"),
    (written("gelu tanh, factored", "q = Mul x x", "c = Mul q k", "b = Add c one", "p = Mul x b",
             "i = Mul p f", *TANH, "h = Mul half x", "y = Mul o h", k=CUBIC, f=FACTOR, half=HALF,
             one=ONE), "GeluTanh"),
    (written("silu", "s = Sigmoid x", "y = Mul x s"), "Silu"),
    (written("silu, other way", "s = Sigmoid x", "y = Mul s x"), "Silu"),
    (written("quick gelu", "m = Mul x k", "s = Sigmoid m", "y = Mul x s", k=np.array(1.702)),
     "Silu"),
    (written("hard swish", "a = Add x three", "c = Clip a low high", "m = Mul x c",
             "y = Div m six", three=THREE, low=np.array(0.0), high=np.array(6.0),
             six=np.array(6.0)), "HardSwish"),
    (written("hard swish, Max and Min", "a = Add x three", "b = Max a zero", "c = Min b six",
             "m = Mul x c", "y = Div m six", three=THREE, zero=np.array(0.0),
             six=np.array(6.0)), "HardSwish"),
    (Case("hard swish, hard sigmoid", [("HardSigmoid", "x", "h", {"alpha": 1 / 6}),
          ("Mul", "x h", "y", {})], SHAPE), "HardSwish"),
    (written("mish", "p = Softplus x", "t = Tanh p", "y = Mul x t"), "Mish"),
    (written("softplus by a threshold", "b = Mul x beta", "p = Softplus b", "d = Div p beta",
             "g = Greater b twenty", "y = Where g x d", beta=TWO, twenty=np.array(20.0)),
     "Softplus"),
    (written("softplus by its own threshold", "p = Softplus x", "g = Greater x twenty",
             "y = Where g x p", twenty=np.array(20.0)), "Softplus"),
]  # fmt: skip


def kinds(ours: Network) -> list[str]:
    nodes = simplify(ours).nodes
    return [type(node.kind).__name__ for node in nodes if isinstance(node.kind, Activation)]


@pytest.mark.parametrize(("case", "kind"), CASES, ids=[case.name for case, _ in CASES])
def test_what_is_written_out_becomes_whole(case: Case, kind: str) -> None:
    ours = assert_agrees(case.model(), 2e-6, samples=20)
    assert kinds(ours) == [kind]
    rows = reading(case.model()).operators
    assert all(row.supported for row in rows)


def test_in_double_precision_constants_are_those_of_float64() -> None:
    """The weights of these cases are float32 numbers."""
    named = {case.name: case for case, _ in CASES}
    assert kinds(assert_agrees(named["silu"].model(DOUBLE), 1e-10)) == ["Silu"]
    # As a float32 constant it is another function there: no activation, but joints.
    assert len(network(named["gelu tanh, power"].model(DOUBLE)).joints) == 2


def test_patterns_after_scaled_layers_and_in_images() -> None:
    nodes: list[Any] = [
        ("Conv", "x w b", "c", {}),
        ("Mul", "c half", "h", {}),
        ("Sigmoid", "h", "s", {}),
        ("Mul", "h s", "g", {}),
        ("Div", "g root", "d", {}),
        ("Erf", "d", "e", {}),
        ("Add", "e one", "a", {}),
        ("Mul", "a g", "m", {}),
        ("Mul", "m half", "k", {}),
        ("Flatten", "k", "y", {}),
    ]
    inits = {"w": (4, 2, 3, 3), "b": (4,), "half": HALF, "one": ONE, "root": ROOT_TWO}
    ours = assert_agrees(Case("image", nodes, (1, 2, 6, 6), 17, inits).model(), 1e-5)
    assert kinds(ours) == ["Silu", "Gelu"]


# What no activation is takes joints, as the file has it; and what jumps is refused by name.
OTHERS: list[tuple[Case, list[str]]] = [
    (written("square", "y = Mul x x"), ["Curve"]),
    (written("cube", "y = Pow x three", three=THREE), ["Curve"]),
    (written("other cubic", "p = Pow x three", "c = Mul p k", "s = Add x c", "i = Mul s f",
             *TANH, "h = Mul x half", "y = Mul h o", k=np.array(0.0448), f=FACTOR, half=HALF,
             one=ONE, three=THREE), ["Curve", "Product"]),
    (written("unequal halves", "e = Erf x", "a = Add e k", "y = Mul x a", k=np.array(1.001)),
     ["Product"]),
    (written("two values", "s = Sigmoid x", "r = Relu x", "y = Mul r s"), ["Product"]),
    (written("a factor a neuron", "m = Mul x k", "s = Sigmoid m", "y = Mul x s", k=(40,)),
     ["Product"]),
    (written("other clip", "c = Clip x low high", "y = Mul x c", low=np.array(0.0),
             high=np.array(6.0)), ["Product"]),
    (written("clip of nothing", "c = Clip x low low", "y = Mul x c", low=np.array(0.0)), []),
    # Read once as a part of GELU and once as a value of its own.
    (written("a part that is needed", "p = Pow x three", "c = Mul p k", "s = Add x c",
             "i = Mul s f", *TANH, "h = Mul x half", "g = Mul h o", "v = Relu p", "y = Add g v",
             k=CUBIC, f=FACTOR, half=HALF, one=ONE, three=THREE), ["Curve"]),
    (written("both", "p = Mul x x", "y = Mul x p"), ["Curve", "Product"]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "joints"), OTHERS, ids=[case.name for case, _ in OTHERS])
def test_other_products_are_joints(case: Case, joints: list[str]) -> None:
    ours = assert_agrees(case.model(), 1e-5, samples=5)
    assert [type(ours.nodes[i].kind).__name__ for i in ours.joints] == joints
    assert all(row.supported for row in reading(case.model()).operators)


REFUSED: list[tuple[Case, str]] = [
    (written("softplus, early threshold", "p = Softplus x", "g = Greater x five",
             "y = Where g x p", five=np.array(5.0)), "softplus with a threshold of 5 jumps"),
    (written("another branch", "n = Neg x", "p = Softplus x", "g = Greater x twenty",
             "y = Where g n p", twenty=np.array(20.0)), "Where-16 at y: chooses by a comparison"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "told"), REFUSED, ids=[case.name for case, _ in REFUSED])
def test_what_is_not_continuous_is_refused_by_name(case: Case, told: str) -> None:
    found = reading(case.model())
    assert found.network is None
    assert any(told in problem for problem in found.problems)


def test_long_chains_of_products_are_read_in_short_time() -> None:
    """Formulas do not grow without end."""
    lines = ["v0 = Tanh x"]
    for k in range(60):
        lines += [f"m{k} = Mul v{k} x", f"v{k + 1} = Tanh m{k}"]
    ours = network(written("long", *lines, "y = Mul v60 x").model())
    assert len(ours.joints) == 61


@pytest.mark.parametrize(
    ("operator", "attributes", "reason"),
    [
        ("Elu", {"alpha": -1.0}, "attribute alpha=-1.0 is not positive"),
        ("Elu", {"alpha": 0.0}, "attribute alpha=0.0 is not positive"),
        ("Selu", {"gamma": math.inf}, "attribute gamma=inf is not positive"),
        ("Celu", {"alpha": -0.5}, "attribute alpha=-0.5 is not positive"),
    ],
)
def test_bad_attributes_are_refused(operator: str, attributes: Any, reason: str) -> None:
    [problem] = reading(Case("bad", [(operator, "x", "y", attributes)], SHAPE).model()).problems
    assert reason in problem


@pytest.mark.parametrize(
    ("size", "attributes", "reason"),
    [
        (3, {"sorted": 0}, "the 2 largest of 3 in no order; only sorted ones"),
        (513, {}, "the 2 largest of 513: at most of 512 are sorted"),
    ],
)
def test_only_values_in_order_are_sorted(
    size: int, attributes: dict[str, int], reason: str
) -> None:
    case = Case("top", [("TopK", "x k", "y i", attributes)], (1, size), 17, {"k": np.array([2])})
    [problem] = reading(case.model()).problems
    assert reason in problem


def test_places_of_sorted_values_are_no_values() -> None:
    nodes: list[Any] = [("TopK", "x k", "v i", {}), ("Cast", "i", "y", {"to": 1})]
    [problem] = reading(Case("top", nodes, (1, 2), 17, {"k": np.array([2])}).model()).problems
    assert "Cast-13 at y: reads by the places of sorted values: it jumps" in problem


def test_swish_of_the_newest_opset() -> None:
    """Newer than onnxruntime: compared with its definition."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Swish", ["x"], ["y"], alpha=1.3)],
        "swish",
        [value("x", onnx.TensorProto.FLOAT, [1, 7])],
        [value("y", onnx.TensorProto.FLOAT, [1, 7])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])
    x = torch.linspace(-6, 6, 7, dtype=torch.float64)[None, None]
    [found] = network(model).values(x)[-1]
    torch.testing.assert_close(found[0], x[0, 0] * torch.sigmoid(1.3 * x[0, 0]))


# What torch exports ------------------------------------------------------------------------------


class GroupSort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, 2).sort(dim=-1)[0].reshape(x.shape)


class StackedMaxMin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.reshape(x.shape[0], -1, 2).unbind(-1)
        return torch.stack([torch.maximum(a, b), torch.minimum(a, b)], -1).reshape(x.shape)


class HalvesMaxMin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], 2, -1)
        return torch.cat([y.amax(1), y.amin(1)], 1)


class WrittenGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2)))


MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GELU": (nn.GELU, "Gelu"),
    "GELU, tanh": (lambda: nn.GELU("tanh"), "GeluTanh"),
    "GELU, written": (WrittenGelu, "Gelu"),
    "SiLU": (nn.SiLU, "Silu"),
    "ELU": (lambda: nn.ELU(0.7), "Elu"),
    "CELU": (lambda: nn.CELU(0.4), "Elu"),
    "SELU": (nn.SELU, "Elu"),
    "Softplus": (nn.Softplus, "Softplus"),
    "Softplus, beta": (lambda: nn.Softplus(2.0), "Softplus"),
    "Mish": (nn.Mish, "Mish"),
    "Hardswish": (nn.Hardswish, "HardSwish"),
    "Hardsigmoid": (nn.Hardsigmoid, "Clip"),
    "GroupSort": (GroupSort, "MaxMin"),
    "MaxMin, stacked": (StackedMaxMin, "MaxMin"),
    "MaxMin, halves": (HalvesMaxMin, "MaxMin"),
}
# What the newer exporter, which takes its time, writes in its own way; 18 is its oldest opset.
OTHERWISE = ("GELU, tanh", "Softplus, beta", "GroupSort", "MaxMin, stacked")


@pytest.mark.parametrize("name", MODULES)
def test_what_torch_exports_is_read(name: str, tmp_path: Path) -> None:
    module, kind = MODULES[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), module(), nn.Linear(8, 4)).eval()
    x = 4 * torch.randn(200, 6)
    for opset, dynamo in [(13, False), (20, False), *([(18, True)] if name in OTHERWISE else [])]:
        path = tmp_path / f"{opset}-{dynamo}.onnx"
        torch.onnx.export(
            net, (x[:1],), str(path), opset_version=opset, dynamo=dynamo, verbose=False
        )
        ours = network(onnx.load(path))
        assert kinds(ours) == [kind], (opset, dynamo)
        theirs = net(x).detach().double()
        found = ours.logits(x[:, None].double())
        assert bool(((found - theirs).abs() <= 1e-5).all()), (opset, dynamo)


JUMPS = {
    "hardshrink": [
        ("Greater", "x t", "above", {}), ("Less", "x u", "below", {}),
        ("Or", "above below", "kept", {}), ("Where", "kept x z", "y", {}),
    ],
    "threshold": [("LessOrEqual", "x t", "below", {}), ("Where", "below z x", "y", {})],
    "threshold by a number": [
        ("Greater", "x t", "above", {}), ("Cast", "above", "mask", {"to": 1}),
        ("Mul", "x mask", "y", {}),
    ],
    "between": [
        ("GreaterOrEqual", "x u", "a", {}), ("LessOrEqual", "x t", "b", {}),
        ("And", "a b", "c", {}),
        ("Not", "c", "d", {}), ("Identity", "d", "e", {}), ("Where", "e x z", "y", {}),
    ],
    "jumps between": [
        ("Abs", "x", "a", {}), ("Greater", "a t", "g", {}), ("Where", "g z x", "y", {}),
    ],
    "heaviside": [("Sign", "x", "s", {}), ("Relu", "s", "y", {})],
    "shrink": [("Shrink", "x", "y", {"lambd": 0.5})],
    "thresholded relu": [("ThresholdedRelu", "x", "y", {"alpha": 0.5})],
    "rounded": [("Round", "x", "y", {})],
}  # fmt: skip


def test_shrinking_without_a_jump_is_read() -> None:
    soft = ("Shrink", "x", "y", {"lambd": 0.5, "bias": 0.5})
    assert not assert_agrees(Case("soft", [soft], SHAPE).model(), 1e-6).joints
    plain = ("ThresholdedRelu", "x", "y", {"alpha": 0.0})
    assert kinds(assert_agrees(Case("plain", [plain], SHAPE).model(), 1e-6)) == ["Clip"]


@pytest.mark.parametrize("name", JUMPS)
def test_what_jumps_is_one_obstacle_and_says_so(name: str) -> None:
    inits = {"t": np.float32(0.5), "u": np.float32(-0.5), "z": np.float32(0)}
    found = reading(Case(name, JUMPS[name], SHAPE, 17, inits).model())
    [problem] = found.problems
    assert "jump" in problem
    refused = [row.operator for row in found.operators if not row.supported]
    assert len(refused) == 1
    assert not {"Greater", "Less", "LessOrEqual", "And", "Or", "Not"} & set(refused)


def test_an_output_that_is_true_or_false_is_no_logits() -> None:
    model = Case("above", [("Sub", "x t", "y", {})], SHAPE, 17, {"t": np.float32(0.5)}).model()
    model.graph.node[0].op_type = "Greater"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    [problem] = reading(model).problems
    assert "true or false" in problem


@pytest.mark.parametrize("pooled", ["AveragePool", "ReduceMean"])
def test_a_normalisation_by_the_input_takes_joints(pooled: str) -> None:
    how = {"kernel_shape": [1, 1]} if pooled == "AveragePool" else {"axes": [1]}
    nodes = [
        ("Mul", "x x", "s", {}), (pooled, "s", "m", how), ("Mul", "m t", "a", {}),
        ("Add", "a k", "b", {}), ("Pow", "b p", "d", {}), ("Div", "x d", "y", {}),
    ]  # fmt: skip
    inits = {"t": np.float32(1e-4), "k": np.float32(1), "p": np.float32(0.75)}
    assert len(assert_agrees(Case("lrn", nodes, (1, 2, 3, 3), 17, inits).model(), 1e-6).joints) == 3
    for size in (1, 3, 5):
        node = ("LRN", "x", "y", {"size": size, "alpha": 0.5, "bias": 1.5})
        assert len(assert_agrees(Case("lrn", [node], (1, 4, 3, 3)).model(), 1e-6).joints) == 3
