"""What the loader leaves out, merges or computes beforehand is what the file does, in its own type:
see ``lipcert/loading/IDENTITIES.md``."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from certification.file_cases import file_of
from load_models import DOUBLE, FLOAT, Case, network, reading, session
from onnx import helper

from lipcert.errors import CannotCertify
from lipcert.loading import load_model
from lipcert.loading.patterns import known
from lipcert.loading.polynomial import Function, NoPolynomial, Polynomial, X
from lipcert.network import Network, simplify
from lipcert.network.activations import Activation, Clip, GeluTanh, HardSwish
from lipcert.network.joints import Product
from lipcert.network.operators import Diagonal
from lipcert.rounding import DOUBLE as DOUBLE_FORMAT
from lipcert.rounding import FORMATS, SINGLE, Arithmetic, coarsest

MOST = {FLOAT: float(np.finfo(np.float32).max), DOUBLE: float(np.finfo(np.float64).max)}


def clips(ours: Network) -> list[Clip]:
    return [node.kind for node in ours.nodes if isinstance(node.kind, Clip)]


def stored(ours: Network) -> list[Arithmetic | None]:
    """The formats of the nodes that only store a value."""
    return [
        node.format
        for node in ours.nodes
        if isinstance(node.kind, Diagonal) and node.kind.is_identity
    ]


def limited(operator: str, limit: Any, kind: int) -> Network:
    nodes: list[Any] = [(operator, "x c", "z", {}), ("Mul", "z two", "y", {})]
    case = Case("limit", nodes, (1, 3), 17, {"c": np.array(0.0), "two": np.array(2.0)})
    model = case.model(kind)
    exact = np.asarray(limit, np.float64 if kind == DOUBLE else np.float32)
    [place] = [i for i, tensor in enumerate(model.graph.initializer) if tensor.name == "c"]
    model.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(exact, "c"))
    return network(model)


@pytest.mark.parametrize("kind", [FLOAT, DOUBLE])
@pytest.mark.parametrize("operator", ["Max", "Min", "Clip"])
def test_a_limit_is_left_out_where_no_number_of_the_type_passes_it(
    operator: str, kind: int
) -> None:
    sign = 1.0 if operator == "Min" else -1.0
    assert clips(limited(operator, sign * np.inf, kind)) == []
    assert stored(limited(operator, sign * np.inf, kind)) == []
    # At the very end of the range nothing is limited that is finite there; what a wider format
    # could hold beyond it counts as an overflow.
    end = limited(operator, sign * MOST[kind], kind)
    assert clips(end) == []
    assert stored(end) == [Arithmetic(0.0, 0.0, MOST[kind])]
    # So does what could pass any limit far out, which is none for networks.
    for limit in (float(np.nextafter(np.float32(MOST[FLOAT]), np.float32(0.0))), 1e30, 2.0**40):
        far = limited(operator, sign * limit, kind)
        assert clips(far) == []
        assert stored(far) == [Arithmetic(0.0, 0.0, float(np.float32(limit)))] or kind == DOUBLE
    for limit in (2.0**16, 2.0**20, 9e11):
        assert len(clips(limited(operator, sign * limit, kind))) == 1


def test_casts_are_kept_where_they_round() -> None:
    def lines(*kinds: int) -> Network:
        names = ["x", *(f"v{k}" for k in range(len(kinds)))]
        nodes: list[Any] = [
            ("Cast", before, after, {"to": kind})
            for kind, (before, after) in zip(kinds, pairwise(names), strict=True)
        ]
        model = Case("cast", [*nodes, ("Cast", names[-1], "y", {"to": 11})], (1, 3)).model(DOUBLE)
        return network(model)

    assert stored(lines(FLOAT)) == [SINGLE]
    assert stored(lines(DOUBLE, FLOAT, FLOAT, DOUBLE, FLOAT)) == [SINGLE, SINGLE]
    assert stored(lines(DOUBLE, DOUBLE)) == []
    assert all(node.format is None for node in lines(DOUBLE).nodes)
    # Simplified for the analysis, which computes in float64; kept where rounding is charged.
    assert stored(simplify(lines(FLOAT))) == []
    assert stored(simplify(lines(FLOAT), moves_only=True)) == [SINGLE]


def test_every_value_of_a_mixed_file_has_its_own_format() -> None:
    nodes: list[Any] = [
        ("Relu", "x", "a", {}), ("Cast", "a", "b", {"to": FLOAT}), ("Relu", "b", "c", {}),
        ("Neg", "c", "d", {}), ("Cast", "d", "e", {"to": DOUBLE}), ("Abs", "e", "y", {}),
    ]  # fmt: skip
    ours = network(Case("mixed", nodes, (1, 3)).model(DOUBLE))
    found = [(type(node.kind).__name__, node.format) for node in ours.nodes]
    assert found == [
        ("Input", DOUBLE_FORMAT), ("Clip", DOUBLE_FORMAT), ("Diagonal", SINGLE), ("Clip", SINGLE),
        ("Diagonal", SINGLE), ("PReLU", DOUBLE_FORMAT),
    ]  # fmt: skip


def test_the_softmax_and_casts_behind_it_say_what_leaves_the_file() -> None:
    for casts, leaves in [("Double", DOUBLE_FORMAT), ("Float", SINGLE), ("Float Double", SINGLE)]:
        lines, last = ["z = Relu x", "v = Softmax z"], "v"
        for number, cast in enumerate(casts.split()):
            lines.append(f"v{number} = {cast} {last}")
            last = f"v{number}"
        kind = FLOAT if casts.endswith("Float") else DOUBLE
        model = file_of([*lines, f"y = Identity {last}"], leaves=kind, size=2)
        assert network(model).leaves == leaves


@pytest.mark.parametrize("to", [onnx.TensorProto.INT64, onnx.TensorProto.BOOL, 16])
def test_other_casts_are_refused(to: int) -> None:
    nodes: list[Any] = [("Cast", "x", "a", {"to": to}), ("Cast", "a", "y", {"to": FLOAT})]
    name = onnx.TensorProto.DataType.Name(to)
    problems = reading(Case("cast", nodes, (1, 3)).model()).problems
    assert f"a cast to {name} of a value that depends on the network's input" in problems[0]


def test_the_coarsest_of_several_formats() -> None:
    half, brain = FORMATS["float16"], FORMATS["bfloat16"]
    assert coarsest(None, None) is None
    assert coarsest(None, SINGLE) == coarsest(DOUBLE_FORMAT, SINGLE) == SINGLE
    assert coarsest(half, DOUBLE_FORMAT) == half
    both = coarsest(half, brain)
    assert both == Arithmetic(brain.unit, half.tiny, half.largest, SINGLE)


# Constants ---------------------------------------------------------------------------------------

LONG = np.array([1e8, 1.0, -1e8, 1e-3, 5.0, -7.0, 3e7, -3e7] * 16, np.float32)
FOLDED: dict[str, tuple[Any, dict[str, Any]]] = {
    "exponentials": ([("Exp", "a", "k", {})], {"a": np.linspace(-3, 3, 24)}),
    "powers": ([("Pow", "a b", "k", {})], {"a": np.linspace(0.1, 3, 24), "b": np.array(1.7)}),
    "a softmax": ([("Softmax", "a", "k", {})], {"a": np.linspace(-1, 3, 24)}),
    "curves": ([("Tanh", "a", "t", {}), ("Erf", "t", "k", {})], {"a": np.linspace(-3, 3, 24)}),
}


@pytest.mark.parametrize("name", FOLDED)
def test_constants_are_those_of_onnxruntime_to_the_last_bit(name: str) -> None:
    nodes, inits = FOLDED[name]
    model = Case(name, [*nodes, ("Add", "x k", "y", {})], (1, 24), 17, inits, batch=1).model()
    ours = network(model)
    [theirs] = session(model).run(None, {"x": np.zeros((1, 24), np.float32)})
    found = (
        ours.values(torch.zeros(1, 1, 24, dtype=torch.float64))[-1].numpy().reshape(theirs.shape)
    )
    np.testing.assert_array_equal(found, theirs.astype(np.float64))


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean", "MatMul", "Gemm", "CumSum"])
def test_constants_that_depend_on_the_order_of_a_sum_are_refused(operator: str) -> None:
    """Runtimes, and levels of optimisation, add in orders of their own."""
    product = operator in ("MatMul", "Gemm")
    long = LONG.reshape(1, -1) if product else LONG
    inits: dict[str, Any] = {"a": long, "b": np.ones((len(LONG), 1), np.float32), "o": np.array(0)}
    inputs = "a b" if product else "a o" if operator == "CumSum" else "a"
    nodes: list[Any] = [(operator, inputs, "s", {}), ("ReduceMax", "s", "k", {"keepdims": 0}),
                        ("Add", "x k", "y", {})]  # fmt: skip
    problems = reading(Case("sum", nodes, (1, 4), 17, inits).model()).problems
    assert f"{operator}-" in problems[0]
    assert "the order of a sum" in problems[0]


def test_constants_that_are_not_finite_are_refused() -> None:
    nodes: list[Any] = [("Div", "x c", "y", {})]
    model = Case("div", nodes, (1, 3), 17, {"c": np.array(1.0)}).model(DOUBLE)
    tiny = onnx.numpy_helper.from_array(np.array(1e-310), "c")
    model.graph.initializer[0].CopyFrom(tiny)
    assert "are not finite" in reading(model).problems[0]


def test_a_dropout_of_constants_that_is_on_is_refused() -> None:
    nodes: list[Any] = [("Dropout", "c r t", "k", {}), ("Add", "x k", "y", {})]
    inits = {"c": (3,), "r": np.array(0.5), "t": np.array(True)}
    [problem, *_] = reading(Case("dropout", nodes, (1, 3), 17, inits).model()).problems
    assert "training_mode is on" in problem


def test_default_operators_of_two_versions_are_refused(tmp_path: Path) -> None:
    model = Case("two", [("Relu", "x", "y", {})], (1, 3)).model()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 9))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CannotCertify, match=r"versions \[9, 17\]"):
        load_model(tmp_path / "model.onnx")


# Activations written out -------------------------------------------------------------------------


def gelu(*lines: str, **inits: Any) -> Case:
    found = []
    for line in ("d = Div x r", "e = Erf d", *lines):
        output, operator, *inputs = line.replace(" = ", " ").split(" ")
        found.append((operator, " ".join(inputs), output, {}))
    root = np.array(np.sqrt(2.0))
    return Case("gelu", found, (1, 4), 17, {"r": root, **inits})


def products(case: Case) -> bool:
    """Whether a product of two values is read as one, and not as an activation."""
    return any(isinstance(node.kind, Product) for node in network(case.model()).nodes)


def test_summands_that_cancel_are_no_activation() -> None:
    """``(erf + 1000) − 999`` is ``erf + 1`` but for what it rounds."""
    lines = ("a = Add e big", "b = Sub a less", "m = Mul x b", "y = Mul m half")
    case = gelu(*lines, big=np.array(1e3), less=np.array(999.0), half=np.array(0.5))
    assert products(case)
    plain = gelu("b = Add e one", "m = Mul x b", "y = Mul m half", one=np.array(1.0),
                 half=np.array(0.5))  # fmt: skip
    assert not products(plain)


def test_factors_that_could_overflow_are_no_part_of_an_activation() -> None:
    lines = ("u = Mul x big", "v = Mul u small", "b = Add e one", "y = Mul v b")
    inits = {"big": np.array(2.0**40), "small": np.array(2.0**-41), "one": np.array(1.0)}
    assert products(gelu(*lines, **inits))


def test_activations_written_out_round_in_the_type_of_the_file() -> None:
    lines = ("b = Add e one", "m = Mul x b", "y = Mul m half")
    ours = network(gelu(*lines, one=np.array(1.0), half=np.array(0.5)).model())
    assert [n.format for n in ours.nodes if isinstance(n.kind, Activation)] == [SINGLE]


def test_long_detours_are_no_activation() -> None:
    product = X
    for _ in range(5):
        product = product * Polynomial.constant(1.5) * Polynomial.constant(2 / 3)
    with pytest.raises(NoPolynomial):
        _ = product * Polynomial.constant(1.5)


def test_the_constants_of_a_pattern_are_within_half_the_activations_rounding() -> None:
    """Every constant as far off as is let pass, one way and the other: what that moves is at most
    half of what is charged."""
    unit = SINGLE.unit
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)

    def charged(activation: Activation) -> torch.Tensor:
        relative, absolute, scaled = activation.rounding
        return unit * (relative * activation.value(z).abs() + absolute + scaled * z.abs())

    def check(polynomial: Polynomial, exact: Activation, run: torch.Tensor) -> None:
        found = known(polynomial, unit)
        assert found is not None
        activation, inner, outer = found
        assert type(activation) is type(exact)
        ours = outer * activation.value(inner * z)
        assert bool(((ours - run).abs() <= charged(activation) / 2).all())

    for sign in (1, -1):
        off, few = 1 + sign * 3.9 * unit, 1 + sign * 1.9 * unit
        slope, most = 1.0, 6.0
        clip = Function(
            "clip", (X * Polynomial.constant(slope * few) + Polynomial.constant(3.0),), (0.0, most)
        )
        hard = X * Polynomial.single(clip) * Polynomial.constant(1 / 6)
        check(hard, HardSwish(), z * (few * z + 3).clamp(0, 6) * (1 / 6))
        root = np.sqrt(2 / np.pi)
        inside = X * Polynomial.constant(root) + X * X * X * Polynomial.constant(
            root * 0.044715 * off
        )
        curve = Polynomial.single(Function("tanh", (inside,)))
        half = X * Polynomial.constant(0.5)
        bent = torch.tanh(root * z + root * 0.044715 * off * z**3)
        check(half + half * curve, GeluTanh(), 0.5 * z + 0.5 * z * bent)


# Batches -----------------------------------------------------------------------------------------

WEIGHTS: dict[str, Any] = {"w": (4, 3), "zero": np.array(0), "axis": np.array([0]),
                           "rest": np.array([-1]), "b": (3,), "many": np.array(4)}  # fmt: skip
FIRST: Any = ("MatMul", "x w", "e", {})
LAST: Any = ("Add", "e m", "y", {})
COUNT: Any = [FIRST, ("Shape", "x", "s", {}), ("Gather", "s zero", "n", {})]
MIXED = "mixes the samples of a batch"
CUT = "does not treat all samples of a batch alike"
COUNTED = "depends on how many samples a batch has"

BATCHES: dict[str, tuple[list[Any], str | None]] = {
    "a mean over the batch": ([FIRST, ("ReduceMean", "e", "m", {"axes": [0]}), LAST],
                              f"ReduceMean-13 at m: {MIXED}"),
    "a largest over everything": ([FIRST, ("ReduceMax", "e", "m", {"keepdims": 0}), LAST],
                                  f"ReduceMax-13 at m: {MIXED}"),
    "a product along the batch": (
        [FIRST, ("Transpose", "e", "t", {"perm": [1, 0]}), ("ReduceMin", "t", "m", {"axes": [1],
         "keepdims": 0}), LAST], f"ReduceMin-13 at m: {MIXED}"),
    "the first sample": ([FIRST, ("Gather", "e zero", "m", {"axis": 0}), LAST],
                         f"Gather-13 at m: {CUT}"),
    "the first of them cut out": ([FIRST, ("Slice", "e zeros one axis", "m", {}), LAST],
                                  f"Slice-13 at m: {CUT}"),
    "the samples backwards": ([FIRST, ("Slice", "e end start axis back", "y", {})], CUT),
    "their number as a divisor": (
        [*COUNT, ("Cast", "n", "f", {"to": 1}), ("Div", "e f", "y", {})],
        f"Div-13 at y: its result {COUNTED}"),
    "more than four of them": (
        [*COUNT, ("Greater", "n many", "g", {}), ("Where", "g b e", "y", {})],
        f"Greater-13 at g: its result {COUNTED}"),
    "a polynomial of their number": (
        [*COUNT, ("Sub", "n one", "p", {}), ("Sub", "n two", "q", {}), ("Mul", "p q", "r", {}),
         ("Cast", "r", "f", {"to": 1}), ("Add", "e f", "y", {})],
        f"Mul-13 at r: its result {COUNTED}"),
    "their number in a shape": (
        [*COUNT, ("Unsqueeze", "n axis", "u", {}), ("Concat", "u rest", "c", {"axis": 0}),
         ("Reshape", "e c", "y", {})], None),
    "there and back": ([("Transpose", "x", "t", {"perm": [1, 0]}), ("Transpose", "t", "u",
                       {"perm": [1, 0]}), ("MatMul", "u w", "y", {})], None),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_files_of_any_batch_treat_each_sample_by_itself(name: str) -> None:
    nodes, told = BATCHES[name]
    numbers = {"zeros": [0], "end": [-1], "start": [-(2**40)], "back": [-1], "one": [1],
               "two": [2]}  # fmt: skip
    inits = WEIGHTS | {key: np.array(value) for key, value in numbers.items()}
    case = Case(name, nodes, (1, 4), 13, inits)
    found = reading(case.model())
    if told is None:
        assert found.network is not None
        assert found.any_batch
    else:
        [problem] = found.problems
        assert told in problem
        assert "fixed batch of 1" in problem
        assert any(not row.supported for row in found.operators)
    # For one sample each of them is a network.
    assert reading(replace(case, batch=1).model()).network is not None


def test_a_file_for_which_onnxruntime_takes_one_sample_takes_no_batch() -> None:
    nodes: list[Any] = [("Reshape", "x s", "f", {}), ("MatMul", "f w", "y", {})]
    case = Case("baked", nodes, (1, 4), 13, {"s": np.array([1, 4]), "w": (4, 3)})
    found = reading(case.model())
    assert found.network is not None
    assert not found.any_batch
