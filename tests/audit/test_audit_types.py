"""The audit charges what a file rounds in types of its own; ties are those of its output."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from audit_models import model, node, preprocessing
from onnx import TensorProto, helper, numpy_helper
from proof_files import network_of

from lipcert.audit.arithmetic import Arithmetic
from lipcert.audit.deployed import Deployed
from lipcert.audit.dual import Dual
from lipcert.audit.interpreter import Interpreter
from lipcert.audit.operators import NotRead
from lipcert.audit.program import Program
from lipcert.audit.proofs.norms import Coins
from lipcert.audit.proofs.replay import Replay
from lipcert.audit.reach import Norms
from lipcert.proving.prover import Prover

NUMPY = {
    TensorProto.FLOAT16: np.float16, TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64,
}  # fmt: skip


def typed(nodes: list[onnx.NodeProto], width: int, kind: int, **arrays: object) -> onnx.ModelProto:
    """A model from ``x`` to ``y`` whose input and constants are of one type."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, [1, width])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(a, NUMPY[kind]), n) for n, a in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def cast(source: str, output: str, to: int) -> onnx.NodeProto:
    return node("Cast", source, output, to=to)


def proven(
    made: onnx.ModelProto, x: np.ndarray, eps: float, deployed: str, *, softmax: bool = False
) -> dict[str, bool]:
    """Whether the own bound and a proof say that class 0 stays, within ``eps`` of ``x``."""
    front = preprocessing((len(x),))
    reading = Interpreter(made, front.shape, softmax=softmax)
    arithmetic = Arithmetic.of(deployed, reading.inside, reading.leaves)
    found = {}
    dual = Dual(Program(reading, front), x, eps, Norms())
    found["bound"] = bool(dual.margins(0, arithmetic, softmax=softmax).min() > 0)
    coins = Coins(1e-9, 1000)
    replay = Replay(
        network_of(made, front, softmax=softmax), arithmetic, coins, pixel_domain=False,
        softmax=softmax,
    )  # fmt: skip
    inputs = (
        torch.from_numpy(x[None].astype(np.float64)),
        torch.tensor([0]),
        torch.tensor([eps]).double(),
    )
    found["proof"] = Prover(replay)(*inputs)[0] is not None
    return found


def through(kind: int, own: int = TensorProto.DOUBLE, *, bend: str = "Identity") -> onnx.ModelProto:
    """``x + 2^20``, in another type, less ``2^20 + .51``, against 0."""
    large = 2.0**20 if kind == TensorProto.FLOAT else 2.0**9
    nodes = [
        node("Gemm", "x w b", "z"), node(bend, "z", "a"), cast("a", "c", kind),
        cast("c", "d", own), node("Gemm", "d v e", "y"),
    ]  # fmt: skip
    return typed(
        nodes, 1, own, w=[[1.0]], b=[large], v=[[1.0, 0.0]], e=[-large - 0.51, 0.0]
    )  # fmt: skip


@pytest.mark.parametrize("bend", ["Identity", "Relu"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("deployed", ["float64", "real", "float32"])
def test_a_cast_to_a_narrower_type_rounds(kind, deployed, bend):
    """The margin is .06 in real numbers and changes by at most .04, yet the file flips: it keeps
    multiples of 1/8 (of 1/2 in float16)."""
    made, x = through(kind, bend=bend), np.array([0.57], np.float32)
    run = Deployed(made, preprocessing((1,)))
    points = np.linspace(0.531, 0.609, 40, dtype=np.float32)[:, None]
    flips = (run(points).argmax(1) != 0).any() or run(x[None]).argmax(1)[0] != 0
    assert flips
    assert proven(made, x, 0.039, deployed) == {"bound": False, "proof": False}
    # A type that is no narrower rounds nothing that is not charged anyway.
    if deployed != "float32":
        wide = through(TensorProto.DOUBLE, bend=bend)
        assert proven(wide, x, 0.039, deployed) == {"bound": True, "proof": True}


@pytest.mark.parametrize("deployed", ["float64", "real", "float32"])
def test_a_file_of_float16_rounds_in_float16_however_it_is_deployed(deployed):
    nodes = [node("Gemm", "x w b", "z"), node("Relu", "z", "a"), node("Gemm", "a v e", "y")]
    arrays = {"w": [[1.0]], "b": [512.0], "v": [[1.0, 0.0]], "e": [-512.51, 0.0]}
    half, x = typed(nodes, 1, TensorProto.FLOAT16, **arrays), np.array([0.57], np.float32)
    assert proven(half, x, 0.039, deployed) == {"bound": False, "proof": False}
    single = typed(nodes, 1, TensorProto.FLOAT, **arrays)
    assert proven(single, x, 0.039, deployed) == {"bound": True, "proof": True}


@pytest.mark.parametrize(
    ("behind", "tie"),
    [((), 2.0**-24), ((TensorProto.FLOAT16,), 2.0**-11),
     ((TensorProto.DOUBLE, TensorProto.FLOAT), 2.0**-24)],
)  # fmt: skip
@pytest.mark.parametrize("deployed", ["float64", "real", "float32"])
def test_a_softmax_ties_in_the_coarsest_type_that_it_leaves_in(behind, tie, deployed):
    """Two logits that the type in which the probabilities leave cannot tell apart."""
    names = ["p", *(f"p{k}" for k in range(len(behind)))]
    nodes = [node("Gemm", "x w", "z"), node("Softmax", "z", "p")]
    nodes += [cast(a, b, kind) for a, b, kind in zip(names, names[1:], behind, strict=False)]
    nodes.append(node("Identity", names[-1], "y"))
    made = typed(nodes, 1, TensorProto.FLOAT, w=[[1.0, 0.0]])
    close, apart = (np.array([share * tie], np.float32) for share in (0.4, 2.0**11))
    logits = Deployed(made, preprocessing((1,)))(np.stack([close, apart]))
    assert logits[0, 0] == logits[0, 1]
    assert logits[1, 0] > logits[1, 1]
    assert proven(made, close, 0.0, deployed, softmax=True) == {"bound": False, "proof": False}
    assert proven(made, apart, 0.0, deployed, softmax=True) == {"bound": True, "proof": True}


def test_a_cast_to_what_is_no_number_is_not_read():
    for kind in (TensorProto.INT64, TensorProto.BOOL):
        nodes = [cast("x", "n", kind), cast("n", "y", TensorProto.FLOAT)]
        with pytest.raises(NotRead, match="not floating"):
            Interpreter(typed(nodes, 2, TensorProto.FLOAT), (2,), softmax=False)
        nodes = [node("Softmax", "x", "p"), cast("p", "y", kind)]
        with pytest.raises(NotRead, match="not floating"):
            Interpreter(typed(nodes, 2, TensorProto.FLOAT), (2,), softmax=True)


@pytest.mark.parametrize(
    ("low", "high"),
    [(np.inf, None), (None, -np.inf), (np.nan, 1.0), (0.0, np.nan), (2.0, 1.0), (1.0, 1.0)],
)
def test_limits_that_let_nothing_pass_are_not_left_out(low, high):
    arrays = {name: end for name, end in (("low", low), ("high", high)) if end is not None}
    clip = node("Clip", "x", "c")
    inputs = ["x", "low" if low is not None else "", "high" if high is not None else ""]
    clip.input[:] = inputs if high is not None else inputs[:2]
    made = model([clip, node("Gemm", "c w", "y")], (2,), w=np.eye(2), **arrays)
    reading = Interpreter(made, (1, 2)[1:], softmax=False)
    with pytest.raises(NotRead, match="Clip"):
        Program(reading, preprocessing((2,)))
    with pytest.raises(NotRead, match="Clip"):
        network_of(made, preprocessing((2,)))


def test_what_overflows_on_the_way_proves_nothing():
    """1e60 is no number of float32, whatever it is multiplied with later."""
    nodes = [
        node("Mul", "x up", "a"), node("Mul", "a up", "b"), node("Mul", "b down", "c"),
        node("Mul", "c down", "d"), node("Gemm", "d w", "y"),
    ]  # fmt: skip
    x = np.array([0.75], np.float32)
    up, down = np.full(1, 2.0**70), np.full(1, 2.0**-70)
    made = model(nodes, (1,), up=up, down=down, w=[[1.0, 0.0]])
    assert not np.isfinite(Deployed(made, preprocessing((1,)))(x[None])).all()
    assert proven(made, x, 0.01, "float32") == {"bound": False, "proof": False}
    assert proven(made, x, 0.01, "float64") == {"bound": True, "proof": True}
    steep = [node("LeakyRelu", "x", "y", alpha=3e38)]
    made = model(steep, (2,))
    assert proven(made, np.array([0.5, -2.0], np.float32), 0.01, "float32") == {
        "bound": False, "proof": False,
    }  # fmt: skip


def scaled(nodes: list[onnx.NodeProto], **arrays: object) -> onnx.ModelProto:
    """``x g``, what ``nodes`` make of it as ``v``, and ``v · back − .3`` against its negative."""
    first, last = node("Mul", "x g", "z"), node("Mul", "v back", "b")
    ends = [node("Sub", "b h", "d"), node("MatMul", "d w", "y")]
    return model([first, *nodes, last, *ends], (1,), h=[0.3], w=[[1.0, -1.0]], **arrays)


SCALED = {
    "sums that overflow before their factor": (
        [node("Gemm", "z u", "v", alpha=2.0**-100)],
        {"g": [2.0**60], "u": [[2.0**100]], "back": [2.0**-60]},
    ),
    "weights that underflow with their scale": (
        [node("MatMul", "z u", "p"), node("Mul", "p s", "v")],
        {"g": [2.0**60], "u": [[2.0**-80]], "s": [2.0**-80], "back": [2.0**100]},
    ),
    "weights that overflow with their scale": (
        [node("MatMul", "z u", "p"), node("Mul", "p s", "v")],
        {"g": [2.0**-100], "u": [[2.0**90]], "s": [2.0**90], "back": [2.0**-80]},
    ),
    "a product that overflows without its scale": (
        [node("Mul", "z s", "p"), node("MatMul", "p u", "v")],
        {"g": [2.0**100], "u": [[2.0**60]], "s": [2.0**-100], "back": [2.0**-60]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_scales_may_be_merged_with_weights_or_come_later(name):
    nodes, arrays = SCALED[name]
    made, x = scaled(nodes, **arrays), np.array([0.75], np.float32)
    assert proven(made, x, 0.05, "float32") == {"bound": False, "proof": False}
    assert proven(made, x, 0.05, "float64") == {"bound": True, "proof": True}
