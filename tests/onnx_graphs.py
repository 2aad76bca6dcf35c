"""Random ONNX files, written with onnx.helper: what people and enemies may put together.

Each is made from a seed alone. Operators that lipcert does not read are among them: what it makes
of a file is that it refuses it, or certifies what onnxruntime computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Rng = np.random.Generator
Array = np.ndarray

TYPES = {
    np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE,
}  # fmt: skip
_OPSETS = (13, 17, 20)
# Graphs that onnxruntime does not run, or that give no numbers, are drawn again.
_TRIES = 60


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, its shape without the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: type

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Graph:
    """A model, the shape of one of its inputs, and the kinds of trap that are in it."""

    model: onnx.ModelProto
    shape: tuple[int, ...]
    traps: frozenset[str]


def pick(rng: Rng, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def session(model: onnx.ModelProto, *, optimised: bool = False) -> onnxruntime.InferenceSession:
    """onnxruntime at one of two optimisation levels."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def graph(seed: int) -> Graph:
    """The graph of this seed: one that onnxruntime runs."""
    for attempt in range(_TRIES):
        maker = _Maker(np.random.default_rng((seed, attempt)))
        try:
            made = maker.make()
        except Exception:
            # onnxruntime lacks a kernel for this type, or the checker refuses the whole.
            continue
        if made is not None:
            return made
    raise RuntimeError(f"seed {seed}: no graph that onnxruntime runs")


class _Maker:
    """Puts nodes after each other; every step takes a value and gives another one."""

    def __init__(self, rng: Rng) -> None:
        self.rng, self.opset = rng, int(pick(rng, _OPSETS))
        self.dtype = pick(rng, [np.float32] * 6 + [np.float64] * 5 + [np.float16])
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.weights: dict[tuple[Any, ...], str] = {}
        self.traps: set[str] = set()
        self.seen: list[Value] = []
        self.count = 0

    # Pieces --------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def constant(self, array: Any, dtype: type | None = None) -> str:
        given = np.asarray(array)
        with np.errstate(over="ignore"):
            given = given.astype(dtype or given.dtype)
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(given, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.count += 1
        name = f"v{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def value(
        self, like: Value, kind: str, *more: str, shape: Any = None, **attributes: Any
    ) -> Value:
        """The result of a node whose first input is ``like``."""
        name = self.node(kind, like.name, *more, **attributes)
        return Value(name, like.shape if shape is None else tuple(map(int, shape)), like.dtype)

    def number(self, like: Value, value: float) -> str:
        return self.constant(np.array(value), like.dtype)

    def matrix(self, rows: int, columns: int) -> Array:
        """With a spectrum that is plain, all but flat, in two clusters, or of low rank."""
        rng, small = self.rng, min(rows, columns)
        plain = rng.standard_normal((rows, columns))
        u, s, v = np.linalg.svd(plain, full_matrices=False)
        kind = int(rng.integers(5))
        if kind == 1:
            s = 1 + 10.0 ** -rng.integers(3, 12) * rng.standard_normal(small)
        elif kind == 2:
            s = np.where(np.arange(small) < (small + 1) // 2, 1.0, 0.5) * (1 + 1e-9 * s)
        elif kind == 3:
            s = np.where(np.arange(small) < 1, 1.0, 1e-6)
        if kind in (1, 2, 3):
            self.traps.add("spectrum")
        return (u * s) @ v if kind in (1, 2, 3) else plain / np.sqrt(columns)

    def weight(self, key: tuple[Any, ...], dtype: type, array: Callable[[], Array]) -> str:
        """A new initializer, or one of the same kind and shape that others share."""
        key = (*key, dtype)
        if key not in self.weights or not self.chance(0.3):
            scale = 10.0 ** float(self.rng.uniform(-1, 1))
            if self.chance(0.08) and dtype != np.float16:
                scale = 10.0 ** float(self.rng.uniform(-35, 35) if dtype == np.float32
                                      else self.rng.uniform(-280, 280))  # fmt: skip
                self.traps.add("extreme constant")
            self.weights[key] = self.constant(array() * scale, dtype)
        else:
            self.traps.add("shared initializer")
        return self.weights[key]

    # Affine --------------------------------------------------------------------------------------

    def flat(self, x: Value) -> Value:
        if len(x.shape) == 1:
            return x
        if self.chance(0.5):
            return self.value(x, "Flatten", shape=[x.size], axis=1)
        return self.value(x, "Reshape", self.constant([0, -1], np.int64), shape=[x.size])

    def dense(self, x: Value, width: int | None = None) -> Value:
        x, rng = self.flat(x), self.rng
        same = x.size < 13 and self.chance(0.3)
        width = width or (x.size if same else int(rng.integers(2, 13)))
        if self.chance(0.5):
            name = self.weight(("m", x.size, width), x.dtype, lambda: self.matrix(x.size, width))
            y = self.value(x, "MatMul", name, shape=[width])
            bias = self.constant(rng.standard_normal(width), x.dtype)
            return self.value(y, "Add", bias) if self.chance(0.7) else y
        name = self.weight(("g", width, x.size), x.dtype, lambda: self.matrix(width, x.size))
        bias = self.constant(rng.standard_normal(pick(rng, [width, 1])), x.dtype)
        alpha, beta = float(pick(rng, [1.0, 0.5, -2.0])), float(pick(rng, [1.0, 0.3]))
        return self.value(x, "Gemm", name, bias, shape=[width], transB=1, alpha=alpha, beta=beta)

    def convolution(self, x: Value) -> Value:
        if len(x.shape) != 3 or min(x.shape[1:]) < 2:
            return self.dense(x)
        rng, (channels, height, width) = self.rng, x.shape
        group = pick(rng, [1, channels])
        out = group * int(rng.integers(1, 4))
        kernel, stride, pad = int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(2))
        kernel = min(kernel, height + 2 * pad, width + 2 * pad)
        shape = (out, channels // group, kernel, kernel)
        name = self.weight(
            ("c", *shape), x.dtype,
            lambda: self.matrix(shape[0], int(np.prod(shape[1:]))).reshape(shape),
        )  # fmt: skip
        extents = [(n + 2 * pad - kernel) // stride + 1 for n in (height, width)]
        bias = self.constant(rng.standard_normal(out), x.dtype)
        return self.value(
            x, "Conv", name, bias, shape=[out, *extents],
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group,
        )  # fmt: skip

    def batch_norm(self, x: Value) -> Value:
        rng, c = self.rng, x.shape[0]
        numbers = (rng.uniform(0.5, 2, c), rng.standard_normal(c), rng.standard_normal(c),
                   rng.uniform(0.1, 2, c))  # fmt: skip
        names = [self.constant(n, x.dtype) for n in numbers]
        return self.value(x, "BatchNormalization", *names, epsilon=1e-5)

    def arithmetic(self, x: Value) -> Value:
        """By a constant; a large one that is taken away again leaves what rounding leaves."""
        rng = self.rng
        shape = pick(rng, [(), x.shape, x.shape[-1:]])
        kind = pick(rng, ["Add", "Sub", "Mul", "Div", "there and back", "Neg", "Mean", "scaled"])
        if kind == "there and back":
            self.traps.add("cancelling")
            most = {np.float16: 2, np.float32: 5, np.float64: 12}[x.dtype]
            large = self.constant(10.0 ** rng.uniform(0, most) * np.ones(shape), x.dtype)
            return self.value(self.value(x, "Add", large), "Sub", large)
        if kind == "scaled":
            self.traps.add("extreme constant")
            reach = {np.float16: 2, np.float32: 30, np.float64: 250}[x.dtype]
            scale = 10.0 ** float(rng.uniform(-reach, reach))
            y = self.value(x, "Mul", self.number(x, scale))
            y = self.limit(y) if self.chance(0.5) else self.activation(y)
            back = ("Div", scale) if self.chance(0.5) else ("Mul", 1 / scale)
            return self.value(y, back[0], self.number(x, back[1]))
        if kind == "Neg":
            return self.value(x, "Neg")
        if kind == "Mean":
            return self.value(x, "Mean", x.name, self.constant(rng.standard_normal(shape), x.dtype))
        numbers = rng.uniform(0.3, 2, shape) * (1 if kind == "Div" else pick(rng, [1, -1]))
        return self.value(x, kind, self.constant(numbers, x.dtype))

    # Moves ---------------------------------------------------------------------------------------

    def move(self, x: Value) -> Value:
        rng = self.rng
        axis = int(rng.integers(len(x.shape)))
        size, shape = x.shape[axis], list(x.shape)
        kind = pick(rng, ["transpose", "slice", "gather", "pad", "split", "concat", "tile", "where",
                          "unsqueeze", "identity", "expand", "dropout"])  # fmt: skip
        if kind == "transpose":
            order = rng.permutation(len(shape))
            return self.value(x, "Transpose", shape=[shape[a] for a in order],
                              perm=[0, *(int(a) + 1 for a in order)])  # fmt: skip
        if kind == "slice" and size > 2:
            start, step = int(rng.integers(2)), int(rng.integers(1, 3))
            numbers = [self.constant([n], np.int64) for n in (start, 2**31, axis + 1, step)]
            shape[axis] = -(-(size - start) // step)
            return self.value(x, "Slice", *numbers, shape=shape)
        if kind == "gather":
            at = rng.integers(-size, size, int(rng.integers(1, size + 2)))
            shape[axis] = len(at)
            return self.value(x, "Gather", self.constant(at, np.int64), shape=shape, axis=axis + 1)
        if kind == "pad":
            before = [0] * (len(shape) + 1)
            before[axis + 1] = 1
            shape[axis] += 1
            pads = self.constant([*before, *[0] * len(before)], np.int64)
            fill = self.number(x, float(pick(rng, [0.0, 1.5])))
            mode = pick(rng, ["constant", "constant", "reflect", "edge"])
            if mode == "reflect" and size < 2:
                mode = "constant"
            more = (fill,) if mode == "constant" else ()
            return self.value(x, "Pad", pads, *more, shape=shape, mode=mode)
        if kind == "split" and size > 1:
            first = int(rng.integers(1, size))
            self.count += 1
            names = [f"v{self.count}a", f"v{self.count}b"]
            sizes = self.constant([first, size - first], np.int64)
            self.nodes.append(helper.make_node("Split", [x.name, sizes], names, axis=axis + 1))
            # The value, then its two parts once more.
            shape[axis] = 2 * size
            return self.value(x, "Concat", *names, shape=shape, axis=axis + 1)
        if kind == "concat" and x.size < 40:
            other = self.activation(x) if self.chance(0.6) else x
            shape[axis] = 2 * size
            return self.value(x, "Concat", other.name, shape=shape, axis=axis + 1)
        if kind == "tile" and x.size < 20:
            repeats = [1] * (len(shape) + 1)
            repeats[axis + 1], shape[axis] = 2, 2 * size
            return self.value(x, "Tile", self.constant(repeats, np.int64), shape=shape)
        if kind == "where":
            chosen = self.constant(rng.random(x.shape) < 0.7)
            name = self.node("Where", chosen, x.name, self.number(x, float(rng.standard_normal())))
            return Value(name, x.shape, x.dtype)
        if kind == "unsqueeze":
            place = self.constant([len(shape) + 1], np.int64)
            y = self.value(x, "Unsqueeze", place, shape=[*shape, 1])
            return self.value(self.activation(y), "Squeeze", place, shape=shape)
        if kind == "expand" and len(shape) == 1:
            y = self.value(x, "Unsqueeze", self.constant([1], np.int64), shape=[1, *shape])
            return self.value(y, "Expand", self.constant([1, 2, 1], np.int64), shape=[2, *shape])
        return self.value(x, "Dropout" if kind == "dropout" else "Identity")

    def pool(self, x: Value) -> Value:
        if len(x.shape) != 3 or min(x.shape[1:]) < 2:
            return self.reduce(x)
        rng, (channels, height, width) = self.rng, x.shape
        kind = pick(rng, ["AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"])
        if kind.startswith("Global"):
            return self.value(x, kind, shape=[channels, 1, 1])
        stride, pad = int(rng.integers(1, 3)), int(rng.integers(2))
        more = {"count_include_pad": int(rng.integers(2))} if kind == "AveragePool" else {}
        extents = [(n + 2 * pad - 2) // stride + 1 for n in (height, width)]
        return self.value(x, kind, shape=[channels, *extents], kernel_shape=[2, 2],
                          strides=[stride] * 2, pads=[pad] * 4, **more)  # fmt: skip

    def reduce(self, x: Value) -> Value:
        """Over one axis of a sample, or over samples: then it is no function of one of them."""
        kind = pick(self.rng, ["Mean", "Sum", "Max", "Min", "Mean", "Sum", "L1", "L2", "SumSquare"])
        if self.chance(0.25):
            self.traps.add("batch axis")
            axes = pick(self.rng, [[0], None, [0, len(x.shape)], [-len(x.shape) - 1]])
            over = self._reduced(x, kind, axes, keep=True)
            how = pick(self.rng, ["Add", "Sub", "Max", "Min"])
            return self.value(x, how, over)
        axis, keep = int(self.rng.integers(len(x.shape))), len(x.shape) == 1 or self.chance(0.5)
        name = self._reduced(x, kind, [pick(self.rng, [axis + 1, axis - len(x.shape)])], keep=keep)
        shape = [n for place, n in enumerate(x.shape) if keep or place != axis]
        if keep:
            shape[axis] = 1
        y = Value(name, tuple(shape), x.dtype)
        beside = keep and self.chance(0.7)
        return self.value(x, pick(self.rng, ["Add", "Sub"]), name) if beside else y

    def _reduced(self, x: Value, kind: str, axes: list[int] | None, *, keep: bool) -> str:
        given = self.opset >= (13 if kind == "Sum" else 18)
        inputs = [self.constant(axes, np.int64)] if given and axes is not None else []
        more = {"axes": axes} if not given and axes is not None else {}
        return self.node(f"Reduce{kind}", x.name, *inputs, keepdims=int(keep), **more)

    # Activations ---------------------------------------------------------------------------------

    def activation(self, x: Value) -> Value:
        rng = self.rng
        plain = ["Relu"] * 5 + [
            "Sigmoid", "Tanh", "Abs", "Elu", "Selu", "Celu", "Softplus", "Erf", "LeakyRelu",
            "HardSigmoid", "HardSwish", "Softsign", "Exp", "Sqrt", "Sin",
        ]  # fmt: skip
        newer = ["Mish", "Gelu"] if self.opset >= 20 else []
        if self.chance(0.35):
            return self.spelled_out(x)
        kind = pick(rng, [*plain, *newer, "PRelu", "top 2"])
        if kind == "PRelu":
            slope = rng.uniform(-0.5, 1.5, pick(rng, [(1,), x.shape]))
            return self.value(x, "PRelu", self.constant(slope, x.dtype))
        if kind == "top 2" and x.shape[-1] == 2:
            self.count += 1
            names = [f"v{self.count}a", f"v{self.count}b"]
            self.nodes.append(helper.make_node(
                "TopK", [x.name, self.constant([2], np.int64)], names, axis=-1))  # fmt: skip
            return Value(names[0], x.shape, x.dtype)
        kind = "Relu" if kind == "top 2" else kind
        more = {}
        if kind in ("LeakyRelu", "Elu", "Celu") and self.chance(0.5):
            more = {"alpha": float(rng.uniform(0.05, 1.5))}
        return self.value(x, kind, **more)

    def spelled_out(self, x: Value) -> Value:
        """Activations as exporters and people write them, node by node."""
        kind = pick(self.rng, ["silu", "gelu", "mish", "relu6", "hard swish", "softplus", "abs",
                               "relu", "leaky", "square", "tanh gelu", "swish"])  # fmt: skip

        def by(name: str, op: str, number: float) -> str:
            return self.node(op, name, self.number(x, number))

        name = x.name
        match kind:
            case "silu":
                out = self.node("Mul", name, self.node("Sigmoid", name))
            case "swish":
                out = self.node("Mul", name, self.node("Sigmoid", by(name, "Mul", 1.7)))
            case "gelu":
                bent = by(self.node("Erf", by(name, "Div", 2**0.5)), "Add", 1.0)
                out = by(self.node("Mul", name, bent), "Mul", 0.5)
            case "tanh gelu":
                cube = by(by(name, "Pow", 3.0), "Mul", 0.044715)
                inner = by(self.node("Add", name, cube), "Mul", (2 / np.pi) ** 0.5)
                bent = by(self.node("Tanh", inner), "Add", 1.0)
                out = by(self.node("Mul", name, bent), "Mul", 0.5)
            case "mish":
                out = self.node("Mul", name, self.node("Tanh", self.node("Softplus", name)))
            case "relu6":
                out = self.node("Clip", name, self.number(x, 0.0), self.number(x, 6.0))
            case "hard swish":
                ends = self.number(x, 0.0), self.number(x, 6.0)
                cut = self.node("Clip", by(name, "Add", 3.0), *ends)
                out = by(self.node("Mul", name, cut), "Div", 6.0)
            case "softplus":
                out = self.node("Log", by(self.node("Exp", name), "Add", 1.0))
            case "abs":
                out = self.node("Max", name, self.node("Neg", name))
            case "relu":
                out = by(name, "Max", 0.0)
            case "leaky":
                out = self.node("Max", name, by(name, "Mul", 0.1))
            case _:
                out = self.node("Mul", name, name)
        return Value(out, x.shape, x.dtype)

    def limit(self, x: Value) -> Value:
        """Clip, Max or Min, at limits that are near, far, at the ends of a type, or none."""
        self.traps.add("limits")
        rng = self.rng
        ends = [float(np.finfo(t).max) for t in TYPES]
        far = [*ends, np.inf, 10.0 ** float(rng.uniform(0, 300)), float(np.finfo(x.dtype).tiny)]
        with np.errstate(over="ignore"):
            high, low = (
                float(x.dtype(pick(rng, far) if self.chance(0.5) else rng.uniform(0, 2)))
                for _ in range(2)
            )
        kind = pick(rng, ["Clip", "Clip", "Max", "Min", "one end"])
        if kind == "Clip":
            return self.value(x, "Clip", self.number(x, -low), self.number(x, high))
        if kind == "one end":
            side = ("", self.number(x, high)) if self.chance(0.5) else (self.number(x, -low),)
            return self.value(x, "Clip", *side)
        numbers = np.full(pick(rng, [(), x.shape]), -low if kind == "Max" else high)
        return self.value(x, kind, self.constant(numbers, x.dtype))

    def cast(self, x: Value) -> Value:
        """To another type and back, or on in the other one."""
        self.traps.add("cast")
        to = pick(self.rng, [t for t in TYPES if t is not x.dtype])
        y = Value(self.node("Cast", x.name, to=TYPES[to]), x.shape, to)
        if self.chance(0.5):
            return Value(self.node("Cast", y.name, to=TYPES[x.dtype]), x.shape, x.dtype)
        return y

    def branch(self, x: Value) -> Value:
        """Two ways from one value, that meet again."""
        y = pick(self.rng, [self.activation, self.limit, self.arithmetic])(x)
        if y.shape != x.shape or y.dtype is not x.dtype:
            return y
        return self.value(x, pick(self.rng, ["Add", "Sub", "Max", "Min", "Sum", "Mul"]), y.name)

    def again(self, x: Value) -> Value:
        """What an earlier value says, beside this one."""
        earlier = [value for value in self.seen if value.dtype is x.dtype]
        if not earlier or x.size > 40:
            return self.dense(x)
        self.traps.add("shared value")
        x = self.flat(x)
        return self.value(x, "Add", self.dense(pick(self.rng, earlier), x.size).name)

    # The whole -----------------------------------------------------------------------------------

    def make(self) -> Graph | None:
        rng = self.rng
        shape = pick(rng, [(int(rng.integers(2, 9)),), (int(rng.integers(1, 3)), 4, 4), (2, 3, 3)])
        start = x = Value("x", shape, self.dtype)
        steps = [self.dense] * 4 + [self.convolution] * 3 + [self.activation] * 6
        steps += [self.arithmetic, self.arithmetic, self.move, self.move, self.branch, self.branch]
        steps += [self.limit, self.limit, self.pool, self.reduce, self.batch_norm, self.cast]
        steps += [self.again, self.again]
        for _ in range(int(rng.integers(2, 8))):
            self.seen.append(x)
            x = pick(rng, steps)(x)
            if x.size > 120:
                x = self.dense(x)
        if x.size > 5 or x.size < 2 or self.chance(0.7):
            x = self.dense(x, int(rng.integers(2, 6)))
        inputs = self._inputs(start)
        x = self._balanced(start, x, inputs)
        for _ in range(pick(rng, [0, 0, 0, 1, 1, 2])):
            ends = [self.activation, self.limit, self.cast, self.arithmetic]
            x = pick(rng, [*ends, self.softmax, self.softmax])(x)
        if len(x.shape) > 1 and self.chance(0.5):
            x = self.flat(x)
        model = self._model(start, x)
        logits = session(model).run(None, {"x": inputs})[0].astype(np.float64)
        logits = logits.reshape(len(inputs), -1)
        if not np.isfinite(logits).all() or logits.shape[1] != x.size:
            return None
        if len(set(logits.argmax(1).tolist())) < 2:
            # One class everywhere has nothing to flip: seldom.
            return Graph(model, shape, frozenset(self.traps)) if self.chance(0.02) else None
        return Graph(model, shape, frozenset(self.traps))

    def softmax(self, x: Value) -> Value:
        if len(x.shape) > 1:
            return x
        return self.value(x, pick(self.rng, ["Softmax", "Softmax", "LogSoftmax"]), axis=-1)

    def _inputs(self, start: Value) -> Array:
        return self.rng.random((24, *start.shape)).astype(start.dtype)

    def _balanced(self, start: Value, x: Value, inputs: Array) -> Value:
        """No class wins everywhere."""
        values = session(self._model(start, x)).run(None, {"x": inputs})[0]
        mean = values.astype(np.float64).mean(0)
        return self.value(x, "Sub", self.constant(mean, x.dtype)) if self.chance(0.9) else x

    def _model(self, start: Value, end: Value) -> onnx.ModelProto:
        made = helper.make_graph(
            self.nodes, "fuzz",
            [helper.make_tensor_value_info("x", TYPES[start.dtype], ["N", *start.shape])],
            [helper.make_tensor_value_info(end.name, TYPES[end.dtype], ["N", *end.shape])],
            self.tensors,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(made, opset_imports=opsets, ir_version=8)
