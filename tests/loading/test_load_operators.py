"""Every supported operator, in every version and attribute that matters, against onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from loading.load_models import DOUBLE, FLOAT, Case, assert_agrees, reading
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from lipcert.loading import cross_check, load_model
from lipcert.loading.rules import RULES

IMAGE = (1, 4, 6, 5)
NEWEST = 23


def one(operator: str, *, at: Any = 17, shape: Any = IMAGE, named: str = "", **rest: Any) -> Any:
    """Cases of a single node at each opset of ``at``; ``a_b=`` are attributes, ``_w=`` constants.

    A constant given as None is an input left out.
    """
    inits = {key[1:]: value for key, value in rest.items() if key.startswith("_")}
    attributes = {key: value for key, value in rest.items() if not key.startswith("_")}
    inputs = " ".join(["x", *("" if value is None else key for key, value in inits.items())])
    given = {key: value for key, value in inits.items() if value is not None}
    opsets = at if isinstance(at, tuple) else (at,)
    return [
        Case(
            f"{operator}-{opset}-{named}",
            [(operator, inputs, "y", attributes)],
            shape,
            opset,
            given,
        )
        for opset in opsets
    ]


def sorted_(named: str, count: int, *, at: Any = 11, shape: Any = IMAGE, **a: Any) -> Any:
    return many(f"TopK-{named}", ("TopK", "x k", "y i", a), shape=shape, at=at, k=ints(count))


def first(
    operator: str, *, at: Any = 17, shape: Any = IMAGE, c: Any, named: str = "", **a: Any
) -> Any:
    """The constant ``c`` as the first input, ``x`` as the second."""
    opsets = at if isinstance(at, tuple) else (at,)
    return [
        Case(
            f"{operator}-{opset}-first-{named}", [(operator, "c x", "y", a)], shape, opset, {"c": c}
        )
        for opset in opsets
    ]


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def many(name: str, *nodes: Any, at: Any = 17, shape: Any = IMAGE, **inits: Any) -> Any:
    opsets = at if isinstance(at, tuple) else (at,)
    full = [(*node, {}) if len(node) == 3 else node for node in nodes]
    return [Case(f"{name}-{opset}", full, shape, opset, inits) for opset in opsets]


ALL = (7, 9, 11, 13, 15, 17, 19, 21, NEWEST)
SPACES = ((1, 4, 7), (1, 4, 7, 6), (1, 4, 5, 6, 4))
KERNEL = (3, 2, 2)
BATCH_NORM: dict[str, Any] = {
    "_g": (4,),
    "_b": (4,),
    "_m": (4,),
    "_v": np.array([0.5, 1.0, 2.0, 0.01]),
}

AFFINE_CASES = [
    *one("Conv", at=ALL, _w=(3, 4, 3, 2), _b=(3,)),
    *(c for s in SPACES for c in one("Conv", shape=s, _w=(2, 4, *KERNEL[: len(s) - 2]))),
    *one("Conv", named="pads", _w=(3, 4, 3, 2), pads=[0, 1, 2, 1], strides=[2, 1]),
    *one("Conv", named="dilated", _w=(3, 4, 2, 2), dilations=[2, 3], pads=[1, 1, 1, 1]),
    *one("Conv", named="groups", _w=(6, 2, 3, 3), _b=(6,), group=2, kernel_shape=[3, 3]),
    *one("Conv", named="depthwise", _w=(4, 1, 3, 3), group=4, strides=[2, 2]),
    *one("Conv", named="upper", _w=(3, 4, 4, 2), auto_pad="SAME_UPPER", strides=[2, 3]),
    *one("Conv", named="lower", _w=(3, 4, 4, 2), auto_pad="SAME_LOWER", strides=[2, 1]),
    *one("Conv", named="valid", _w=(3, 4, 3, 3), auto_pad="VALID", strides=[1, 2]),
    *one("BatchNormalization", at=ALL, **BATCH_NORM, epsilon=1e-3),
    *one("BatchNormalization", named="flat", shape=(1, 4), **BATCH_NORM),
    *one("Gemm", at=(7, 9, 11, 13, NEWEST), shape=(1, 5), _w=(5, 3), _c=(3,)),
    *one("Gemm", named="scaled", shape=(1, 5), _w=(3, 5), _c=(1, 3), transB=1, alpha=0.5, beta=1.5),
    *one("Gemm", named="scalar", shape=(1, 5), _w=(5, 3), _c=()),
    *one("Gemm", named="without", at=(11, 13), shape=(1, 5), _w=(5, 3)),
    *one("Gemm", named="transA", shape=(1, 5), _w=(1, 3), transA=1, _c=(5, 3)),
    *first("Gemm", shape=(1, 5), c=(3, 1), alpha=2.0),
    *first("Gemm", named="turned", shape=(1, 5), c=(5, 3), transA=1, transB=1),
    *many("gemm-residual", ("Gemm", "x w x", "y", {"beta": 0.5}), shape=(1, 5), w=(5, 5)),
    *one("MatMul", at=(7, 9, 13, NEWEST), _w=(5, 3)),
    *one("MatMul", named="vector", _w=(5,)),
    *one("MatMul", named="ones", shape=(1, 5), _w=(1, 1, 5, 3)),
    *first("MatMul", at=(9, 13), c=(3, 6)),
    *first("MatMul", named="vector", c=(6,)),
    *first("MatMul", named="ones", shape=(1, 5), c=(1, 1, 2, 1)),
    *one("Add", at=ALL, _c=(4, 1, 1)),
    *one("Add", named="larger", shape=(1, 5), _c=(3, 1, 5)),
    *one("Sub", at=(7, 13, NEWEST), _c=(1, 4, 1, 5)),
    *first("Sub", at=(7, 14), c=(5,)),
    *first("Sub", named="larger", shape=(1, 1, 5), c=(2, 5)),
    *one("Mul", at=(7, 13), _c=(4, 1, 1)),
    *one("Mul", named="larger", shape=(1, 1, 5), _c=(2, 4, 5)),
    *first("Mul", c=()),
    *one("Div", at=(7, 14), _c=np.array([[[2.0]], [[0.3]], [[-1.0]], [[7.0]]])),
    *one("Neg", at=(7, 13)),
    *one("Sum", at=(8, 13), _a=(4, 1, 1), _b=(5,)),
    *one("Mean", at=(8, 13), _a=(4, 1, 1), _b=IMAGE),
    *many("twice", ("Add", "x x", "y")),
    *many("nothing", ("Sub", "x x", "d"), ("Add", "d c", "y"), c=(5,)),
    *many("sub", ("Relu", "x", "r"), ("Sub", "x r", "y")),
    *many("outer", ("Transpose", "x", "t", {"perm": [1, 0]}), ("Add", "x t", "y"), shape=(1, 4)),
    *many("sum", ("Relu", "x", "r"), ("Abs", "x", "a"), ("Sum", "x r a c", "y"), c=(5,)),
    *many("mean", ("Relu", "x", "r"), ("Abs", "x", "a"), ("Mean", "x r a", "y")),
]

POOL: dict[str, Any] = {"kernel_shape": [3, 2]}
POOL_CASES = [
    case
    for kind in ("MaxPool", "AveragePool")
    for case in (
        *one(kind, at=ALL, **POOL),
        *(c for s in SPACES for c in one(kind, shape=s, kernel_shape=KERNEL[: len(s) - 2])),
        *one(kind, named="pads", **POOL, pads=[1, 0, 2, 1], strides=[2, 2]),
        *one(kind, named="upper", **POOL, auto_pad="SAME_UPPER", strides=[2, 2]),
        *one(kind, named="lower", **POOL, auto_pad="SAME_LOWER", strides=[2, 1]),
        *one(kind, named="valid", **POOL, auto_pad="VALID", strides=[2, 3]),
        *one(kind, named="ceil", at=(11, 19, 22), **POOL, ceil_mode=1, strides=[2, 2]),
        *one(kind, named="ceil3", at=(11, 19), **POOL, ceil_mode=1, strides=[4, 3]),
        *one(
            kind, named="ceilpads", at=(11, 19, 22), kernel_shape=[3, 3],
            ceil_mode=1, strides=[2, 2], pads=[1, 1, 1, 1],
        ),
        *one(kind, named="dilated", at=19, kernel_shape=[2, 2], dilations=[2, 2], strides=[1, 2]),
    )
]  # fmt: skip

REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
REDUCE_CASES = [
    *one(
        "AveragePool", named="include", at=(7, 19), **POOL, pads=[1, 1, 1, 1], count_include_pad=1
    ),
    *one(
        "AveragePool", named="include-ceil", at=(19, 22), **POOL,
        pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=1, count_include_pad=1,
    ),
    *(c for s in SPACES for c in one("GlobalAveragePool", shape=s)),
    *(c for s in SPACES for c in one("GlobalMaxPool", shape=s)),
    *(
        c for kind in REDUCTIONS for c in (
            *one(kind, named="attribute", at=(7, 11), axes=[1, -1]),
            *one(kind, named="dropped", at=11, axes=[2], keepdims=0),
            *one(kind, named="all", at=11, keepdims=0),
            *one(kind, named="input", at=(18, 20), _axes=ints(2, 3), keepdims=0),
            *one(kind, named="noop", at=18, noop_with_empty_axes=1),
            *one(kind, named="two", at=18, shape=(1, 3, 2, 4), _axes=ints(2), keepdims=0),
            *one(kind, named="one", at=18, shape=(1, 3, 1, 4), _axes=ints(2)),
        )
    ),
    *one("ReduceSum", named="axes", at=13, _axes=ints(-1)),
]  # fmt: skip

MOVE_CASES = [
    *one("Reshape", at=(7, 13, 14, NEWEST), _s=ints(0, -1, 10)),
    *one("Flatten", at=ALL, axis=2),
    *one("Flatten", named="negative", at=13, axis=-1),
    *one("Transpose", at=(7, 13), perm=[0, 3, 1, 2]),
    *one("Transpose", named="default"),
    *one("Squeeze", at=(7, 11), axes=[0]),
    *one("Squeeze", named="input", at=(13, NEWEST), _a=ints(0)),
    *one("Squeeze", named="all", at=(11, 13)),
    *one("Unsqueeze", at=(7, 11), axes=[0, 3]),
    *one("Unsqueeze", named="input", at=(13, NEWEST), _a=ints(0, -1)),
    *one("Slice", at=(7, 9), axes=[2, 3], starts=[1, -3], ends=[9223372036854775807, -1]),
    *one("Slice", named="input", at=(10, 11, 13), _s=ints(1, 4), _e=ints(6, -9), _a=ints(2, 3),
         _t=ints(2, -2)),
    *one("Gather", at=(7, 11, 13), _i=ints(3, 0, 0), axis=1),
    *one("Gather", named="scalar", _i=np.array(-1, dtype=np.int64), axis=2),
    *one("GatherElements", shape=(1, 4), _i=np.array([[2, 2, 0]], dtype=np.int64), axis=1),
    *one("GatherND", at=(11, 13), _i=np.array([[0, 1], [0, 3]], dtype=np.int64)),
    *one("ScatterElements", at=(11, 13, 16, 18), shape=(1, 4), axis=1,
         _i=np.array([[2, 0]], dtype=np.int64), _u=np.array([[0.5, -1.5]], dtype=np.float32)),
    *one("ScatterND", at=(11, 13, 16, 18), shape=(1, 4),
         _i=np.array([[0, 1], [0, 3]], dtype=np.int64), _u=np.array([0.5, -1.5], dtype=np.float32)),
    *one("Expand", at=(8, 13), shape=(1, 4, 1), _s=ints(2, 1, 3)),
    *one("Tile", at=(7, 13), shape=(1, 4, 2), _r=ints(2, 1, 3)),
    *one("Pad", at=(7, 10), pads=[0, 1, 0, 2, 0, 0, 1, 0]),
    *one("Pad", named="value", at=(7, 10), pads=[0, 0, 1, 2, 0, 0, 1, 0], value=1.5),
    *one("Pad", named="input", at=(11, 13, 18), _p=ints(0, 0, 1, 2, 0, 0, 1, 0)),
    *one("Pad", named="constant", at=(11, 13, 18, 21), _p=ints(0, 0, 1, 2, 0, 0, 1, 0),
         _v=np.array(-0.5)),
    *one("Pad", named="zero", at=(11, 21), _p=ints(0, 0, 1, 2, 0, 0, 1, 0), _v=np.array(0.0)),
    *one("Pad", named="axes", at=(18, 21), _p=ints(1, 2), _v=None, _a=ints(2)),
    *one("Pad", named="reflect", at=7, mode="reflect", pads=[0, 0, 2, 1, 0, 0, 1, 3]),
    *one("Pad", named="reflect", at=(11, 18), mode="reflect", _p=ints(0, 0, 2, 1, 0, 0, 1, 3)),
    *one("Pad", named="edge", at=(11, 18), mode="edge", _p=ints(0, 0, 2, 1, 0, 0, 1, 3)),
    *one("DepthToSpace", at=(7, 11, 13), blocksize=2),
    *one("DepthToSpace", named="crd", at=11, blocksize=2, mode="CRD"),
    *one("SpaceToDepth", at=(7, 13), shape=(1, 2, 4, 6), blocksize=2),
    *one("Identity", at=(7, 14)),
    *one("Dropout", at=(7, 10), ratio=0.3),
    *one("Dropout", named="input", at=(12, 13), _r=np.array(0.5), _t=np.array(False)),
    *one("Concat", at=(7, 11, 13), _c=(1, 4, 2, 5), axis=2),
    *first("Concat", c=(1, 1, 6, 5), axis=-3),
    *many("concat-self", ("Concat", "x x", "y", {"axis": 1})),
    *many("where", ("Relu", "x", "r"), ("Where", "m x r", "y"),
          m=np.arange(30).reshape(6, 5) % 3 == 0),
    *many("where-constant", ("Where", "m x c", "y"), m=np.arange(5) % 2 == 0, c=(4, 1, 1)),
    *many("split", ("Split", "x", "a b", {"axis": 1}), ("Relu", "a", "r"),
          ("Concat", "b r", "y", {"axis": 1}), at=(7, 11, 13)),
    *many("split-18", ("Split", "x", "a b c", {"axis": 3, "num_outputs": 3}),
          ("Concat", "c a b", "y", {"axis": 3}), at=(18, NEWEST)),
    *many("split-sizes", ("Split", "x s", "a b", {"axis": 1}), ("Concat", "b a", "y", {"axis": 1}),
          at=(13, 18), s=ints(1, 3)),
    *many("split-attribute", ("Split", "x", "a b", {"axis": -2, "split": [2, 4]}),
          ("Concat", "b a", "y", {"axis": 2}), at=(7, 11)),
    *many("shape", ("Shape", "x", "s"), ("Slice", "s b e", "t"),
          ("Concat", "t m", "u", {"axis": 0}), ("Reshape", "x u", "y"),
          at=(10, 13, 15, 21), b=ints(0), e=ints(2), m=ints(-1)),
    *many("shape-15", ("Shape", "x", "s", {"start": 1, "end": -1}), ("ReduceProd", "s", "p"),
          ("CastLike", "p x", "f"), ("Size", "x", "z"), ("CastLike", "z c", "g"),
          ("Div", "f g", "q"), ("CastLike", "x c", "w"), ("Mul", "w q", "y"), at=(15, 17), c=()),
    *many("fill", ("Shape", "x", "s"), ("ConstantOfShape", "s", "c",),
          ("CastLike", "c x", "d"), ("Range", "a b e", "r"), ("Add", "d r", "f"),
          ("Add", "x f", "y"), at=(15, 20), a=np.array(0.0), b=np.array(5.0), e=np.array(1.0)),
]  # fmt: skip

SCALAR = np.array(0.25)
ACTIVATION_CASES = [
    *one("Relu", at=ALL),
    *one("Abs", at=(7, 13)),
    # As the last operator it would be left out.
    *many("Sigmoid", ("Sigmoid", "x", "s"), ("Neg", "s", "y"), at=(7, 13)),
    *one("Tanh", at=(7, 13)),
    *one("LeakyRelu", at=(7, 16)),
    *one("LeakyRelu", named="alpha", alpha=0.3),
    *one("HardSigmoid", at=(7, 22)),
    *one("HardSigmoid", named="set", alpha=0.4, beta=0.1),
    *one("Elu", at=(7, 22)),
    *one("Elu", named="alpha", alpha=0.3),
    *one("Celu", at=12, alpha=0.4),
    *one("Selu", at=(7, 22)),
    *one("Selu", named="set", alpha=0.8, gamma=1.3),
    *one("Softplus", at=(7, 22)),
    *one("Erf", at=(9, 13)),
    *one("Gelu", at=20),
    *one("Gelu", named="tanh", at=20, approximate="tanh"),
    *one("HardSwish", at=(14, 22)),
    *one("Mish", at=(18, 22)),
    *sorted_("largest", 1, at=(10, 11, NEWEST), axis=2),
    *sorted_("smallest", 1, axis=1, largest=0, sorted=0),
    *sorted_("pairs", 2, shape=(1, 3, 2, 4), at=(10, 11), axis=2),
    *sorted_("rising", 2, shape=(1, 5, 2), axis=-1, largest=0),
    *sorted_("one-of-pairs", 1, shape=(1, 5, 2), axis=-1),
    *sorted_("alone", 1, shape=(1, 5, 1)),
    *many("TopK-attribute", ("TopK", "x", "y i", {"k": 2}), shape=(1, 5, 2), at=7),
    *one("PRelu", at=(7, 9, 16), _s=(4, 1, 1)),
    *one("PRelu", named="scalar", _s=(1,)),
    *one("Clip", at=7, min=-0.2, max=0.7),
    *one("Clip", named="upper", at=7, max=0.7),
    *one("Clip", named="none", at=(7, 11, 13)),
    *one("Clip", named="input", at=(11, 12, 13), _l=-SCALAR, _u=SCALAR),
    *one("Clip", named="only-upper", at=(11, 13), _l=None, _u=SCALAR),
    *one("Clip", named="only-lower", at=(11, 13), _l=SCALAR),
    *one("Max", at=(8, 12, 13), _c=(4, 1, 1)),
    *one("Min", at=(8, 12, 13), _c=SCALAR),
    *one("Max", named="larger", shape=(1, 5), _c=(3, 5)),
    *one("Min", named="several", _c=SCALAR, _d=(5,), _e=(4, 1, 1)),
    *one("Max", named="alone"),
    *[
        case
        for kind in ("Max", "Min")
        for case in (
            *many(f"{kind}-two", ("Neg", "x", "n"), (kind, "x n", "y")),
            *many(
                f"{kind}-broadcast",
                ("Transpose", "x", "t", {"perm": [1, 0]}),
                (kind, "t c x", "y"),
                shape=(1, 4),
                c=(4,),
            ),
            *many(
                f"{kind}-three",
                ("Neg", "x", "n"),
                ("Mul", "x c", "m"),
                (kind, "x n m c n", "y"),
                c=(4, 1, 1),
            ),
        )
    ],
]

CASES = [*AFFINE_CASES, *POOL_CASES, *REDUCE_CASES, *MOVE_CASES, *ACTIVATION_CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_agrees_with_onnxruntime(case: Case) -> None:
    case = replace(case, batch=1)
    assert_agrees(case.model(FLOAT), 1e-5)
    double = in_double(case)
    if double is not None:
        assert_agrees(double, 1e-10)


# Those that have no meaning for a batch, by the start of their names: constants and shapes that fit
# one sample, reductions and cuts of all axes or the first, the size of the input as a number.
NOT_IN_BATCHES = {
    "Expand-8-", "Expand-13-", "GatherElements-17-", "GatherND-11-", "GatherND-13-",
    "Mul-17-larger", "ReduceMax-11-all", "ReduceMean-11-all", "ReduceMin-11-all",
    "ScatterElements-11-", "ScatterElements-13-", "ScatterElements-16-", "ScatterElements-18-",
    "ScatterND-11-", "ScatterND-13-", "ScatterND-16-", "ScatterND-18-",
    "ReduceSum-11-all", "Tile-7-", "Tile-13-", "shape-15-15", "shape-15-17",
}  # fmt: skip


def test_operators_that_keep_samples_apart() -> None:
    refused = {case.name for case in CASES if reading(case.model(FLOAT)).network is None}
    assert refused == NOT_IN_BATCHES


def in_double(case: Case) -> onnx.ModelProto | None:
    """The case in float64, or None where onnxruntime computes it in float32, or with constants
    rounded to float32 (GELU by tanh)."""
    if any(attributes.get("approximate") == "tanh" for *_, attributes in case.nodes):
        return None
    try:
        return case.model(DOUBLE)
    except (NoKernel, InvalidGraph):
        return None


def test_every_rule_has_a_case() -> None:
    covered = {kind for case in CASES for kind, *_ in case.nodes}
    # The softmax only as the last operator, Cast, whose target is one type, and Swish, newer than
    # onnxruntime; scikit-learn's is with its ends; the rest has tests of its own below.
    other = {"Cast", "LogSoftmax", "Shrink", "Softmax", "Swish", "ai.onnx.ml.Scaler"}
    other |= {"ConvTranspose", "Einsum", "Resize", "ThresholdedRelu", "Upsample"}
    assert set(RULES) - covered == other


def test_double_precision_is_compared_for_most() -> None:
    """The comparison in float64 is the sharp one: it must not fall away unnoticed."""
    some = CASES[::7]
    assert sum(in_double(case) is not None for case in some) > len(some) / 2


RESIZES: list[tuple[str, dict[str, Any], Any, int]] = [
    ("scales", {"mode": "nearest"}, [1, 1, 2, 2], 13),
    ("scales down", {"mode": "nearest", "nearest_mode": "ceil"}, [1, 1, 0.5, 0.6], 13),
    ("asymmetric", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                    "nearest_mode": "floor"}, [1, 1, 1.5, 2], 19),
    ("linear", {"mode": "linear"}, [1, 1, 2, 2], 13),
    ("linear, aligned", {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
     [1, 1, 1.7, 2.3], 13),
    ("linear, of torch", {"mode": "linear",
                          "coordinate_transformation_mode": "pytorch_half_pixel"},
     [1, 1, 1.5, 0.4], 13),
    ("cubic", {"mode": "cubic"}, [1, 1, 2, 1.5], 13),
    ("cubic, inside", {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
     [1, 1, 1.7, 2], 13),
    ("smoothed", {"mode": "linear", "antialias": 1}, [1, 1, 0.5, 0.6], 18),
    ("smoothed, cubic", {"mode": "cubic", "antialias": 1}, [1, 1, 0.5, 1], 18),
    ("channels last", {"mode": "nearest"}, [1, 2, 1.5, 1], 13),
    ("channels last, linear", {"mode": "linear"}, [1, 2, 1.5, 1], 13),
]  # fmt: skip


@pytest.mark.parametrize(("named", "attributes", "scales", "opset"), RESIZES)
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize_agrees_with_onnxruntime(
    named: str, attributes: dict[str, Any], scales: Any, opset: int, by: str
) -> None:
    sizes = [int(np.floor(n * s)) for n, s in zip(IMAGE, scales, strict=True)]
    inits: dict[str, Any] = {"s": np.array(scales, np.float32)}
    inputs = "x  s"
    if by == "sizes":
        inits, inputs = {"s": ints(*sizes)}, "x   s"
    # Sizes say how many samples there are.
    batch: Any = "N" if by == "scales" else 1
    case = Case(f"R {named}", [("Resize", inputs, "y", attributes)], IMAGE, opset, inits, batch)
    ours = assert_agrees(case.model(FLOAT), 2e-6)
    assert ours.nodes[-1].shape == tuple(sizes)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_axes_of_a_resize_may_be_named(mode: str, by: str) -> None:
    given = np.array([1.5, 2], np.float32) if by == "scales" else ints(9, 12)
    inputs = "x  s" if by == "scales" else "x   s"
    node = ("Resize", inputs, "y", {"mode": mode, "axes": [3, -2]})
    ours = assert_agrees(Case("axes", [node], IMAGE, 18, {"s": given}).model(FLOAT), 2e-6)
    assert ours.nodes[-1].shape[:2] == IMAGE[:2]


@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("rounded", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_a_second_reader_that_resizes_otherwise_is_not_asked(
    tmp_path: Path, coordinates: str, rounded: str
) -> None:
    """onnx2torch takes the nearest by one rule, whatever the file says."""
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounded}
    sizes = {"s": ints(1, 1, 11, 5), "w": (10, 55)}
    nodes = [("Resize", "x   s", "r", {"mode": "nearest"} | attributes), ("Flatten", "r", "f", {}),
             ("Gemm", "f w", "y", {"transB": 1})]  # fmt: skip
    onnx.save(Case("r", nodes, (1, 1, 8, 8), 17, sizes, 1).model(FLOAT), tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx")
    inputs = np.random.default_rng(0).random((4, 1, 1, 8, 8)).astype(np.float32)
    found = cross_check(model, model.network, inputs)
    assert found.max_relative_difference < 1e-5
    same = coordinates == "asymmetric" and rounded == "floor"
    assert (found.onnx2torch is not None) == same


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10)])
def test_the_old_upsample(operator: str, opset: int, mode: str) -> None:
    scales = [1.0, 1.0, 2.0, 3.0]
    attributes: dict[str, Any] = {"mode": mode} | ({"scales": scales} if opset == 7 else {})
    inits = {} if opset == 7 else {"s": np.array(scales, np.float32)}
    node = (operator, "x s" if inits else "x", "y", attributes)
    assert_agrees(Case("old", [node], IMAGE, opset, inits).model(FLOAT), 2e-6)


@pytest.mark.parametrize(
    "attributes", [{"coordinate_transformation_mode": "tf_crop_and_resize"}],
)  # fmt: skip
def test_other_resizes_are_refused(attributes: dict[str, Any]) -> None:
    inits = {"r": np.zeros(8, np.float32) + np.repeat([0, 1], 4).astype(np.float32),
             "s": np.array([1, 1, 0.5, 0.5], np.float32)}  # fmt: skip
    case = Case("Resize", [("Resize", "x r s", "y", attributes)], IMAGE, 18, inits)
    [problem] = reading(case.model(FLOAT)).problems
    assert problem.startswith("Resize-18 at y: ")


EINSUMS = [
    ("bi,oi->bo", (2, 6), (4, 6), 0), ("oi,bi->bo", (2, 6), (4, 6), 1),
    ("bchw,dc->bdhw", (1, 4, 6, 5), (3, 4), 0), ("bhi,hij->bhj", (1, 3, 4), (3, 4, 5), 0),
    ("bhi,hj->bijh", (1, 3, 4), (3, 2), 0), ("bij,ij->b", (1, 3, 4), (3, 4), 0),
    ("...i,oi->...o", (1, 3, 6), (4, 6), 0), ("bi,io", (1, 6), (6, 4), 0),
    ("...ij,jk->...ik", (1, 3, 4), (4, 2), 0), ("b i , o i -> b o", (1, 6), (4, 6), 0),
    ("bi,", (1, 6), (), 0),
]  # fmt: skip


@pytest.mark.parametrize(("equation", "x", "w", "slot"), EINSUMS)
def test_einsum_with_a_constant(equation: str, x: Any, w: Any, slot: int) -> None:
    node = ("Einsum", "w x" if slot else "x w", "y", {"equation": equation})
    case = Case("Einsum", [node], x, 13, {"w": w}, batch=x[0])
    model = case.model(FLOAT)
    if x[0] == 1:
        assert_agrees(model, 1e-5)
    else:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
        assert_agrees(model, 1e-5)


@pytest.mark.parametrize("equation", ["bchw->bwhc", "bchw->bh", "bchw->bwc", "bchw", "b...->b..."])
def test_einsum_of_a_value_alone(equation: str) -> None:
    node = ("Einsum", "x", "y", {"equation": equation})
    assert_agrees(Case("Einsum", [node], (1, 2, 3, 4), 13, {}, batch=1).model(FLOAT), 1e-5)


@pytest.mark.parametrize("equation", ["bi,oi->b", "bii,oi->bo"])
def test_other_equations_are_refused(equation: str) -> None:
    shape = (1, 6, 6) if equation.startswith("bii") else (1, 6)
    node = ("Einsum", "x w", "y", {"equation": equation})
    model = Case("Einsum", [node], shape, 13, {"w": (4, 6)}).model(FLOAT)
    [problem] = reading(model).problems
    assert "equation" in problem


TRANSPOSED: list[dict[str, Any]] = [
    {}, {"strides": [2, 2]}, {"strides": [2, 1], "pads": [1, 0, 1, 2]},
    {"strides": [3, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
    {"dilations": [2, 2]}, {"group": 2, "strides": [2, 2]},
]  # fmt: skip


@pytest.mark.parametrize("attributes", TRANSPOSED)
@pytest.mark.parametrize("kind", [FLOAT, DOUBLE])
def test_conv_transpose(attributes: dict[str, Any], kind: int) -> None:
    weight = (4, 3 if attributes.get("group", 1) == 1 else 1, 3, 2)
    outputs = weight[1] * attributes.get("group", 1)
    node = ("ConvTranspose", "x w b", "y", attributes)
    case = Case("t", [node], IMAGE, 17, {"w": weight, "b": (outputs,)})
    try:
        model = case.model(kind)
    except (NoKernel, InvalidGraph):
        model = case.model(FLOAT)
    assert_agrees(model, 1e-5)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 3), (4, 4)])
@pytest.mark.parametrize("strides", [[2, 2], [2, 1], [3, 2]])
@pytest.mark.parametrize(
    "attributes",
    [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"}, "shape",
     {"auto_pad": "SAME_UPPER", "dilations": [2, 1]}],
)  # fmt: skip
def test_a_transposed_padding_that_is_not_written_down(
    attributes: Any, strides: list[int], kernel: tuple[int, int]
) -> None:
    if attributes == "shape":
        space = zip(IMAGE[2:], strides, kernel, strict=True)
        attributes = {"output_shape": [s * (n - 1) + k - (k > 2) for n, s, k in space]}
    node = ("ConvTranspose", "x w", "y", {"strides": strides} | attributes)
    case = Case("t", [node], IMAGE, 17, {"w": (4, 3, *kernel)})
    assert_agrees(case.model(FLOAT), 1e-5)


def test_what_follows_a_refused_node_is_no_obstacle_of_its_own() -> None:
    """SiLU, GELU and the like behind a refused node are what they are without it."""
    gelu = [("Div", "h r", "d", {}), ("Erf", "d", "e", {}), ("Add", "e one", "p", {}),
            ("Mul", "h p", "m", {}), ("Mul", "m half", "g", {})]  # fmt: skip
    cube = [("Pow", "g three", "u", {}), ("Mul", "u k", "v", {}), ("Add", "g v", "w", {}),
            ("Tanh", "w", "t", {}), ("Add", "t one", "q", {}), ("Mul", "g q", "z", {})]  # fmt: skip
    silu = [("Sigmoid", "s", "a", {}), ("Mul", "s a", "h", {})]
    real = [("Neg", "s", "n", {}), ("Sin", "z", "o", {}), ("Add", "o n", "y", {})]
    nodes = [("Sin", "x", "s", {}), *silu, *gelu, *cube, *real]
    inits = {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5),
             "three": np.float32(3), "k": np.float32(0.044715)}  # fmt: skip
    problems = reading(Case("after", nodes, (1, 6), 17, inits).model()).problems
    assert [problem.split(" ")[0] for problem in problems] == ["Sin-7", "Sin-7"]
    assert "at o" in problems[1]
